"""Compiles small native parts against the installed torch with one plain compiler call.

A part is a shared library with C functions, loaded with ctypes and never unloaded. It is built at
first use and kept in the user's cache by everything that could make it another library: torch's
version, the sources, the flags, the C++ library's ABI.

The recorder loads this file under a private name inside programs that know nothing of `workbench`:
it uses the standard library only, and nothing else of ours.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import importlib.util
import os
import platform
import re
import shlex
import shutil
import struct
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

_STALE_SECONDS = 3600
TOOLKIT = Path("/usr/local/cuda")
"""Where a CUDA toolkit is unless ``$CUDA_HOME`` or ``nvcc`` tell."""
# Of a 64-bit ELF file: its header, and an entry in its table of segments. Byte order as here.
_ELF_HEADER = struct.Struct("=16sHHIQQQIHHHHHH")
_ELF_SEGMENT = struct.Struct("=IIQQQQQQ")


class TorchBuildError(Exception):
    """A native part cannot be built; the message is one sentence with the remedy."""


@dataclass(frozen=True)
class TorchInstall:
    """An installed torch, as found on disk (torch itself is not imported)."""

    folder: Path
    version: str
    cxx11_abi: bool
    cuda: str = ""
    """The CUDA version it is built for, such as ``13.0``; empty for another build."""


@dataclass(frozen=True)
class CudaHeaders:
    """Where the headers of the CUDA runtime are, and which version they are of."""

    folder: Path
    major: int


def find_torch(folder: Path | None = None) -> TorchInstall:
    """The torch in `folder`, or the one that `import torch` would take in this interpreter.

    Raises:
        TorchBuildError: no torch, or one without the headers that wheels bring.
    """
    if folder is None:
        spec = importlib.util.find_spec("torch")
        if spec is None or spec.origin is None:
            raise TorchBuildError(
                f"torch is not installed for {sys.executable}; install it with "
                "`pip install 'allocator-workbench[record]'`"
            )
        folder = Path(spec.origin).parent
    library = folder / "lib" / "libc10.so"
    if not (folder / "include" / "c10" / "core" / "Allocator.h").is_file():
        raise TorchBuildError(
            f"the torch in {folder} has no C++ headers (include/c10 is missing); "
            "install torch from its wheel: `pip install --force-reinstall torch`"
        )
    if not library.is_file():
        raise TorchBuildError(
            f"the torch in {folder} has no lib/libc10.so to link with; "
            "what is compiled against it needs torch's Linux wheel: "
            "`pip install --force-reinstall torch`"
        )
    text = (folder / "version.py").read_text(encoding="utf-8")
    found = dict(re.findall(r"^(__version__|git_version)\b.*?=\s*['\"](.*?)['\"]", text, re.M))
    version = f"{found.get('__version__', 'unknown')}-{found.get('git_version', '')[:12]}"
    cuda = re.search(r"^cuda\b[^=\n]*=\s*['\"]([\d.]+)['\"]", text, re.M)
    # Names of functions that take a std::string carry the ABI of the C++ library in them.
    return TorchInstall(
        folder, version, b"__cxx11" in library.read_bytes(), cuda[1] if cuda else ""
    )


def find_cuda_headers(torch: TorchInstall | None = None) -> CudaHeaders:
    """The headers that pip brought with `torch`, else those of a toolkit of the same major version.

    Args:
        torch: a CUDA build; None for any toolkit, ``$CUDA_HOME``'s first.

    Raises:
        TorchBuildError: `torch` is no CUDA build, or there are no headers.
    """
    if torch is not None and not (torch.cuda and (torch.folder / "lib/libc10_cuda.so").is_file()):
        version = torch.version.split("-")[0].split("+")[0]
        raise TorchBuildError(
            f"the torch in {torch.folder} is not built for CUDA; install a CUDA build, which needs "
            f"no GPU: `pip install --no-deps 'torch==={version}'`"
        )
    folders = []
    major = torch.cuda.split(".")[0] if torch else ""
    if torch:
        nvidia = torch.folder.parent / "nvidia"
        folders = [nvidia / f"cu{major}" / "include", nvidia / "cuda_runtime" / "include"]
    nvcc = shutil.which("nvcc")
    homes = [os.environ.get("CUDA_HOME"), nvcc and Path(nvcc).resolve().parents[1]]
    folders += [Path(home) / "include" for home in (*homes, TOOLKIT) if home]
    for folder in folders:
        header = folder / "cuda_runtime_api.h"
        # Without crt/ there is little that can be compiled.
        if not header.is_file() or not (folder / "crt" / "host_defines.h").is_file():
            continue
        text = header.read_text(encoding="utf-8", errors="replace")
        found = re.search(r"^#define\s+CUDART_VERSION\s+(\d+)", text, re.M)
        if found and major in ("", str(int(found[1]) // 1000)):
            return CudaHeaders(folder, int(found[1]) // 1000)
    package = "nvidia-cuda-{}" if major in ("", "13") else "nvidia-cuda-{}-cu" + major
    wanted = " ".join(f"'{package.format(part)}'" for part in ("runtime", "crt"))
    raise TorchBuildError(
        f"no headers of CUDA {major}".rstrip()
        + f" were found; install them: `pip install {wanted}`, "
        "or a toolkit, and name its folder in CUDA_HOME"
    )


def find_cuda_runtime(torch: TorchInstall) -> Path:
    """The ``libcudart.so`` that pip brought with `torch`, else a toolkit's.

    Raises:
        TorchBuildError: `torch` is no CUDA build, or there is none.
    """
    headers = find_cuda_headers(torch)
    name = f"libcudart.so.{headers.major}"
    nvidia = torch.folder.parent / "nvidia"
    for folder in (
        nvidia / f"cu{headers.major}" / "lib",
        nvidia / "cuda_runtime" / "lib",
        headers.folder.parent / "lib64",
        headers.folder.parent / "lib",
    ):
        if (folder / name).is_file():
            return folder / name
    raise TorchBuildError(
        f"{name} was not found beside {torch.folder} nor {headers.folder}; install what torch "
        "needs: `pip install torch`"
    )


def find_compiler() -> list[str]:
    """The C++ compiler's command: ``$CXX`` (which may hold arguments), else the system's.

    Raises:
        TorchBuildError: there is none.
    """
    wanted = os.environ.get("CXX")
    if wanted:
        try:
            command = shlex.split(wanted)
        except ValueError:
            raise TorchBuildError(
                f"CXX={wanted!r} has a quote that does not end; correct the variable or unset it"
            ) from None
        if command and shutil.which(command[0]):
            return command
        raise TorchBuildError(
            f"the C++ compiler named by CXX={wanted!r} was not found; "
            "correct the variable or unset it"
        )
    for name in ("c++", "g++", "clang++"):
        if shutil.which(name):
            return [name]
    raise TorchBuildError(
        "no C++ compiler was found (looked for $CXX, c++, g++ and clang++); "
        "install one, for example with `apt install g++`"
    )


def compiler_version() -> str:
    """What the C++ compiler says first of itself; empty where it does not.

    Raises:
        TorchBuildError: there is none.
    """
    command = [*find_compiler(), "--version"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return (done.stdout.splitlines() or [""])[0].strip()


def build(
    name: str,
    sources: Sequence[Path],
    *,
    headers: Sequence[Path] = (),
    includes: Sequence[Path] = (),
    defines: Sequence[str] = (),
    libraries: Sequence[str] = ("c10",),
    shared: Sequence[Path] = (),
    uses_python: bool = False,
    uses_cuda: bool = False,
    torch: TorchInstall | None = None,
) -> Path:
    """Path of the shared library made of `sources`; compiled unless the cache has it.

    Args:
        name: the library's name, without ``lib`` and ``.so``.
        sources: C++ files; their folders may hold headers they include.
        headers: our own headers that `sources` include: a change in one means a new library.
        includes: folders to look for them in, besides those of `sources`.
        defines: macros, ``NAME`` or ``NAME=VALUE``.
        libraries: torch's libraries to link with, such as ``c10`` and ``torch_cpu``.
        shared: other libraries to link with; each is loaded before torch's, and what torch's need
            under its name is it.
        uses_python: the sources include ``Python.h``.
        uses_cuda: they include CUDA's headers; torch is a CUDA build.
        torch: the torch to build against; by default the installed one.

    Raises:
        TorchBuildError: no torch, headers or compiler, or the compiler refused.
    """
    torch = torch or find_torch()
    flags = [*(f"-I{folder}" for folder in includes), *(f"-D{name}" for name in defines)]
    if uses_cuda:
        flags += ["-isystem", str(find_cuda_headers(torch).folder)]
    # What torch's libraries need is looked for where ours is told to only by old-style paths.
    flags += ["-Wl,--disable-new-dtags", "-Wl,--no-as-needed"] if shared else []
    for file in shared:
        flags += [str(file), f"-Wl,-rpath,{file.parent}"]
    flags += _flags(torch, libraries, uses_python)
    return compiled(name, sources, flags, headers=headers, version=torch.version)


def compiled(
    name: str,
    sources: Sequence[Path],
    flags: Sequence[str],
    *,
    headers: Sequence[Path] = (),
    version: str = "",
    file_name: str = "",
) -> Path:
    """Path of the shared library that the compiler makes of `sources` with `flags`; kept.

    Args:
        name: as in `build`.
        sources: C++ files.
        flags: all that the compiler is told besides.
        headers: as in `build`.
        version: of what it is compiled against.
        file_name: the library's own where others ask for it by name; it then has a folder of its
            own.

    Raises:
        TorchBuildError: no compiler, or it refused.
    """
    key = hashlib.sha256()
    for text in (version, platform.machine(), os.environ.get("CXX", ""), file_name):
        key.update(text.encode() + b"\0")
    key.update("\0".join(flags).encode())
    for file in (*sources, *headers):
        key.update(file.name.encode() + b"\0" + file.read_bytes())
    folder = _cache_folder()
    stem = "-".join(filter(None, (name, version, key.hexdigest()[:16])))
    library = folder / stem / file_name if file_name else folder / f"{stem}.so"
    if is_whole(library):
        return library
    compiler = find_compiler()
    try:
        library.parent.mkdir(exist_ok=True)
        with _only_one(library.with_suffix(".lock")):
            if not is_whole(library):
                _sweep(folder)
                _compile([*compiler, *map(str, sources), *flags], library)
    except OSError as error:
        raise TorchBuildError(
            f"the compiled part cannot be kept as {library} ({error.strerror or error}); remove "
            "what is there, or make room"
        ) from None
    return library


def is_whole(library: Path) -> bool:
    """Whether a file begins as a shared library does and holds all that its beginning promises.

    The loader maps what is promised: touching what a file cut short does not hold ends the process.
    """
    try:
        with library.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            header = file.read(_ELF_HEADER.size)
            if len(header) < _ELF_HEADER.size or not header.startswith(b"\x7fELF\x02"):
                return False
            found = _ELF_HEADER.unpack(header)
            offset, entry, count = found[5], found[9], found[10]
            file.seek(offset)
            table = file.read(entry * count)
            if entry < _ELF_SEGMENT.size or len(table) < entry * count:
                return False
            segments = [_ELF_SEGMENT.unpack_from(table, entry * i) for i in range(count)]
            return bool(count) and all(one[2] + one[5] <= size for one in segments)
    except (OSError, OverflowError):
        return False


def _sweep(folder: Path) -> None:
    """Remove what compilers that were killed have left; those at work are younger."""
    for part in folder.glob(".*.part"):
        with contextlib.suppress(OSError):
            if time.time() - part.stat().st_mtime > _STALE_SECONDS:
                part.unlink()


def _flags(torch: TorchInstall, libraries: Sequence[str], uses_python: bool) -> list[str]:
    include = ["-isystem", str(torch.folder / "include")]
    if uses_python:
        python_include = sysconfig.get_path("include")
        if not (Path(python_include) / "Python.h").is_file():
            raise TorchBuildError(
                f"Python's C headers are missing in {python_include}; install them, for example "
                "with `apt install python3-dev`"
            )
        include += ["-isystem", python_include]
    return [
        "-std=c++20",
        "-O2",
        "-fPIC",
        "-shared",
        "-fvisibility=hidden",
        f"-D_GLIBCXX_USE_CXX11_ABI={int(torch.cxx11_abi)}",
        *include,
        f"-L{torch.folder / 'lib'}",
        # Found by a program that has not imported torch too.
        f"-Wl,-rpath,{torch.folder / 'lib'}",
        *(f"-l{library}" for library in libraries),
        "-pthread",
    ]


def _cache_folder() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    folder = Path(base) / "allocator-workbench" / "native"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if os.access(folder, os.W_OK | os.X_OK):
            return folder
        problem = "no permission to write"
    except OSError as error:
        problem = error.strerror or str(error)
    # Readable by nobody else, and the same for each process of this user: built once.
    fallback = Path(tempfile.gettempdir()) / f"allocator-workbench-{os.getuid()}"
    fallback.mkdir(mode=0o700, exist_ok=True)
    if fallback.stat().st_uid != os.getuid():
        fallback = Path(tempfile.mkdtemp(prefix="allocator-workbench-"))
    if not any(fallback.iterdir()):
        print(f"wb: cannot keep compiled parts in {folder} ({problem}); using {fallback}",
              file=sys.stderr)  # fmt: skip
    return fallback


@contextlib.contextmanager
def _only_one(lock: Path):  # type: ignore[no-untyped-def]
    """Hold `lock` so that processes that start together compile once."""
    with lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _compile(command: list[str], library: Path) -> None:
    part = library.with_name(f".{library.name}.{os.getpid()}.part")
    try:
        done = subprocess.run(
            [*command, "-o", str(part)],
            capture_output=True,
            text=True,
            env={**os.environ, "LC_ALL": "C"},
            check=False,
        )
        if done.returncode != 0:
            log = library.with_suffix(".log")
            log.write_text(shlex.join(command) + "\n" + done.stderr, encoding="utf-8")
            lines = [line for line in done.stderr.splitlines() if "error" in line]
            reason = (lines or done.stderr.strip().splitlines() or ["no message"])[0]
            raise TorchBuildError(
                f"{command[0]} could not compile the native part: {reason.strip()}; "
                f"the whole output is in {log}"
            )
        part.replace(library)
    finally:
        part.unlink(missing_ok=True)
