"""What `wb record` puts into the user's process; loaded by path as `_workbench_recorder`.

It waits until `import torch` has completed, loads the compiled hook and starts the recording. It
uses the standard library only and imports nothing of `workbench`, whose names may be the user's
own. Whatever fails here costs the recording, never the program.
"""

from __future__ import annotations

import ctypes
import datetime
import importlib.abc
import importlib.machinery
import importlib.util
import json
import os
import platform
import sys
import time
from collections.abc import Sequence
from types import ModuleType
from typing import Any

_HERE = os.path.dirname(os.path.abspath(__file__))
_HOOK = ("cpu_hook.cpp", "spool_names.cpp", "spool_segment.cpp", "spool_writer.cpp")
_HEADERS = (
    "clock.h",
    "hook_face.h",
    "spool_format.h",
    "spool_names.h",
    "spool_segment.h",
    "spool_writer.h",
)
_FACE = ("hook_face.h", "spool_format.h")
_CUDA = ("cuda_hook", "cuda_numbers", "cuda_peaks", "cuda_records")
# Settings that explain a recording. Everything else in the environment may be a secret.
_KEPT_VARIABLES = (
    "PYTORCH_ALLOC_CONF",
    "PYTORCH_CUDA_ALLOC_CONF",
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "CUDA_VISIBLE_DEVICES",
    "RANK",
    "WORLD_SIZE",
    "LOCAL_RANK",
    "TORCHELASTIC_RESTART_COUNT",
)


def load_beside(name: str, path: str) -> ModuleType:
    """The module in the file `path`, under the private `name`, which only we know."""
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"cannot load {path}")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def build_parts(
    builder: Any, torch_folder: str | None, stacks: bool, ops: bool, cuda: bool = True
) -> dict[str, str]:
    """Paths of the compiled parts: the hook, and what the options need beside it."""
    from pathlib import Path

    folder = Path(_HERE) / "hook"
    torch = builder.find_torch(Path(torch_folder) if torch_folder else None)
    headers = [folder / name for name in _HEADERS]
    sources = [folder / name for name in _HOOK]
    parts = {"hook": str(builder.build("cpu_hook", sources, headers=headers, torch=torch))}
    if ops:
        parts["ops"] = str(
            builder.build(
                "scope_op",
                [folder / "scope_op.cpp"],
                headers=[folder / name for name in _FACE],
                libraries=("c10", "torch_cpu"),
                torch=torch,
            )
        )
    if stacks:
        parts["stacks"] = str(
            builder.build(
                "stacks",
                [folder / "stacks.cpp"],
                headers=[folder / name for name in _FACE],
                uses_python=True,
                torch=torch,
            )
        )
    if cuda and torch.cuda:
        try:
            parts["cuda"] = build_cuda_part(builder, torch)
            parts["pinned"] = build_pinned_part(builder, torch)
        except builder.TorchBuildError as error:
            parts["no_cuda"] = str(error)
    return parts


def build_cuda_part(builder: Any, torch: Any, shared: Sequence[Any] = ()) -> str:
    """Path of the hook for CUDA memory; `shared` are libraries to be loaded before torch's."""
    from pathlib import Path

    folder = Path(_HERE) / "hook"
    headers = [f"{name}.h" for name in (*_CUDA[1:], "cuda_forward")]
    return str(
        builder.build(
            "cuda_hook",
            [folder / f"{name}.cpp" for name in _CUDA],
            headers=[folder / name for name in (*headers, *_FACE)],
            libraries=("c10", "c10_cuda"),
            shared=shared,
            uses_cuda=True,
            torch=torch,
        )
    )


def build_pinned_part(builder: Any, torch: Any) -> str:
    """Path of the hook for pinned memory."""
    from pathlib import Path

    folder = Path(_HERE) / "hook"
    return str(
        builder.build(
            "pinned_hook",
            [folder / "pinned_hook.cpp"],
            headers=[folder / name for name in _FACE],
            libraries=("c10", "torch_cpu"),
            torch=torch,
        )
    )


class Options:
    """What the parent asked for, from the environment or from `workbench.record()`."""

    def __init__(
        self,
        spool: str,
        builder: str,
        limit: int,
        keep_free: int,
        scopes: Sequence[str] = (),
        stacks: bool = False,
        children: bool = False,
    ) -> None:
        self.spool = spool
        self.builder = builder
        self.limit = limit
        self.keep_free = keep_free
        self.scopes = tuple(scopes)
        self.stacks = stacks
        self.children = children

    @classmethod
    def from_environment(cls) -> Options:
        """As `wb record` set them."""
        get = os.environ.get
        return cls(
            os.environ["WORKBENCH_RECORD_SPOOL"],
            os.environ["WORKBENCH_RECORD_BUILDER"],
            int(os.environ["WORKBENCH_RECORD_LIMIT"]),
            int(os.environ["WORKBENCH_RECORD_KEEP_FREE"]),
            [scope for scope in get("WORKBENCH_RECORD_SCOPE", "").split(",") if scope],
            get("WORKBENCH_RECORD_STACKS") == "1",
            get("WORKBENCH_RECORD_CHILDREN") == "1",
        )


class _Finder(importlib.abc.MetaPathFinder):
    """Finds torch like the finders after it, and starts the recording once torch has run."""

    def __init__(self, options: Options) -> None:
        self._options = options

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname != "torch":
            return None
        for finder in sys.meta_path:
            if finder is self or not hasattr(finder, "find_spec"):
                continue
            spec = finder.find_spec(fullname, path, target)
            if spec is not None:
                break
        else:
            return None
        loader = spec.loader
        if loader is None:
            return spec
        execute = loader.exec_module

        def execute_and_record(module: ModuleType) -> None:
            del loader.exec_module
            execute(module)
            if self in sys.meta_path:
                sys.meta_path.remove(self)
                start(module, self._options)

        loader.exec_module = execute_and_record  # type: ignore[method-assign]
        return spec


def wait_for_torch() -> None:
    """Starts the recording when the program has imported torch."""
    sys.meta_path.insert(0, _Finder(Options.from_environment()))


def start(torch: ModuleType, options: Options) -> Recording | None:
    """Starts the recording; on any trouble one line on stderr, and None."""
    try:
        return Recording(torch, options)
    except Exception as error:
        text = str(error) if type(error).__name__ == "TorchBuildError" else repr(error)
        print(f"wb: this program is not recorded: {text}", file=sys.stderr, flush=True)
        return None


def recording_here() -> bool:
    """Whether this process is being recorded, or will be once it imports torch."""
    return Recording.current is not None or any(isinstance(f, _Finder) for f in sys.meta_path)


class Recording:
    """A recording in progress in this process."""

    current: Recording | None = None
    watches_forks = False

    def __init__(self, torch: ModuleType, options: Options) -> None:
        self.options = options
        builder = load_beside("_workbench_torch_build", options.builder)
        parts = build_parts(
            builder,
            os.path.dirname(os.path.abspath(str(torch.__file__))),
            options.stacks,
            "op" in options.scopes,
        )
        self.hook = load_hook(parts["hook"])
        self._torch = torch
        self._begin()
        self._phases = load_beside("_workbench_phases", os.path.join(_HERE, "phases.py"))
        self._phases.install(torch, self.hook)
        self._undo = [self._phases.uninstall]
        for name in ("ops", "stacks"):
            if name in parts:
                self._start_part(parts[name], name)
        if "no_cuda" in parts:
            self._not_recorded("CUDA and pinned memory", parts["no_cuda"])
        if "cuda" in parts:
            cuda = load_beside("_workbench_cuda", os.path.join(_HERE, "cuda.py"))
            try:
                self._undo.append(cuda.CudaRecording(torch, self.hook, parts).remove)
            except (OSError, AttributeError) as error:  # the CPU is recorded all the same
                self._not_recorded("CUDA and pinned memory", str(error))
        if "module" in options.scopes:
            modules = load_beside("_workbench_modules", os.path.join(_HERE, "module_scope.py"))
            self._undo.append(modules.ModuleScope(torch, self.hook).remove)
        Recording.current = self
        if options.children and not Recording.watches_forks:
            Recording.watches_forks = True
            os.register_at_fork(after_in_child=_go_on_in_child)

    def _begin(self) -> None:
        """Starts the hook in a folder of this process's own."""
        options = self.options
        self.folder = os.path.join(options.spool, f"process-{os.getpid()}-{time.monotonic_ns()}")
        os.mkdir(self.folder)
        self._describe(self._torch)
        error = self.hook.wb_start(
            os.fsencode(self.folder), options.limit, options.keep_free, not options.children
        )
        if error != 0:
            reason = os.strerror(error) if error > 0 else "PyTorch kept its own allocator"
            raise RuntimeError(f"the hook could not start in {self.folder}: {reason}")

    def _not_recorded(self, what: str, reason: str) -> None:
        print(f"wb: {what} will not be recorded: {reason}", file=sys.stderr, flush=True)
        note = json.dumps({"text": f"{what}: {reason}"})
        self.hook.wb_define_name(b"note", note.encode())

    def _start_part(self, path: str, name: str) -> None:
        part = ctypes.CDLL(path)
        start = getattr(part, f"wb_{name}_start")
        start.argtypes, start.restype = [ctypes.c_void_p, ctypes.c_char_p], None
        stop = getattr(part, f"wb_{name}_stop")
        stop.argtypes, stop.restype = [], None
        start(self.hook.wb_face(), os.fsencode(os.path.join(_HERE, "")))
        self._undo.append(stop)

    def go_on_in_child(self) -> None:
        """A forked child's own recording, after the hook fell silent at the fork."""
        self._begin()
        self._phases.tell_again()

    def _describe(self, torch: ModuleType) -> None:
        described = {
            "program": sys.argv or [sys.executable],
            "process_id": os.getpid(),
            "parent_process_id": os.getppid(),
            "rank": _number("RANK"),
            "world_size": _number("WORLD_SIZE"),
            "restart_count": _number("TORCHELASTIC_RESTART_COUNT"),
            "start_wall_clock": datetime.datetime.now(datetime.UTC).isoformat(),
            "boot_id": _read("/proc/sys/kernel/random/boot_id"),
            "process_start": _read("/proc/self/stat").rpartition(")")[2].split()[19:20],
            "versions": {
                "python": platform.python_version(),
                "torch": str(torch.__version__),
                "cuda": getattr(getattr(torch, "version", None), "cuda", None),
            },
            "host": {"cpu": _processor(), "cores": os.cpu_count()},
            "scopes": sorted(self.options.scopes),
            "stacks": self.options.stacks,
            "environment": {
                name: os.environ[name] for name in _KEPT_VARIABLES if name in os.environ
            },
        }
        path = os.path.join(self.folder, "process.json")
        with open(path, "w", encoding="utf-8") as file:
            json.dump(described, file)

    def stop(self) -> None:
        """Ends the recording and takes everything out of PyTorch again."""
        for undo in self._undo:
            undo()
        self.hook.wb_stop()
        Recording.current = None


def _go_on_in_child() -> None:
    if Recording.current is not None:
        try:
            Recording.current.go_on_in_child()
        except Exception as error:
            Recording.current = None
            print(f"wb: this child is not recorded: {error}", file=sys.stderr, flush=True)


def load_hook(path: str) -> Any:
    """The compiled hook with the types of its functions; stays loaded for the process's life."""
    hook = ctypes.CDLL(path)
    hook.wb_start.argtypes = [ctypes.c_char_p, ctypes.c_uint64, ctypes.c_uint64, ctypes.c_int]
    hook.wb_context.argtypes = [ctypes.c_uint32, ctypes.c_uint64]
    hook.wb_context.restype = None
    hook.wb_set_module.argtypes = [ctypes.c_uint32]
    hook.wb_set_module.restype = None
    hook.wb_face.argtypes = []
    hook.wb_face.restype = ctypes.c_void_p
    hook.wb_define_name.argtypes = [ctypes.c_char_p, ctypes.c_char_p]
    hook.wb_define_name.restype = ctypes.c_uint32
    for name in ("wb_stop", "wb_pause", "wb_resume", "wb_step_seen"):
        getattr(hook, name).argtypes = []
        getattr(hook, name).restype = None
    return hook


def _number(variable: str) -> int | None:
    text = os.environ.get(variable, "")
    return int(text) if text.isdigit() else None


def _read(path: str) -> str:
    try:
        with open(path, encoding="utf-8") as file:
            return file.read().strip()
    except OSError:
        return ""


def _processor() -> str:
    for line in _read("/proc/cpuinfo").splitlines():
        name, _, value = line.partition(":")
        if name.strip() == "model name":
            return value.strip()
    return platform.machine()
