"""The parent's side of a recording: the spool folder and the program."""

from __future__ import annotations

import contextlib
import fcntl
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType, ModuleType
from typing import IO, Any

from workbench.common import torch_build
from workbench.common.errors import MissingPartError, RunError, UsageError
from workbench.common.outputs import check_output
from workbench.common.version import __version__
from workbench.recorders.recovery import ABOUT, HowItEnded

SCOPES = ("op", "module")
SMALLEST_RING = 16 << 20
AGENT_FOLDER = Path(__file__).parent / "agent"
_MEMORY_BACKED = {"tmpfs", "ramfs"}


@dataclass(frozen=True)
class RecordOptions:
    """What to record, and where to.

    Attributes:
        output: the trace.
        scopes: what fills the column `scope`: ``op``, ``module`` or both.
        stacks: record Python stacks.
        children: record forked children, too.
        force: replace an existing trace.
        spool: folder to put the spool in; by default beside `output`.
        spool_limit: bytes of spool per process after which recording stops; by default half of
            what the disk has free.
        ring: keep only about this many bytes of each process's spool, the latest; None: all.
        converts_live: turn what can be turned into Parquet while the program runs.
    """

    output: Path
    scopes: tuple[str, ...] = ()
    stacks: bool = False
    children: bool = False
    force: bool = False
    spool: Path | None = None
    spool_limit: int | None = None
    ring: int | None = None
    converts_live: bool = False


@dataclass
class Spool:
    """A spool folder that this process has locked."""

    folder: Path
    options: RecordOptions
    lock: IO[bytes] = field(repr=False)

    def remove(self) -> None:
        """Delete the folder and give up the lock."""
        shutil.rmtree(self.folder, ignore_errors=True)
        self.lock.close()

    def limits(self) -> tuple[int, int]:
        """Bytes of spool per process, and bytes of the disk that stay free for the program."""
        free = shutil.disk_usage(self.folder).free
        return self.options.spool_limit or free // 2, free // 10


def check_scopes(scopes: Sequence[str]) -> tuple[str, ...]:
    """`scopes` without doubles.

    Raises:
        UsageError: one of them is unknown.
    """
    for scope in scopes:
        if scope not in SCOPES:
            raise UsageError(f"scope {scope!r} is unknown; use {' or '.join(SCOPES)}, or both")
    return tuple(dict.fromkeys(scopes))


def check_ring(ring_bytes: int) -> int:
    """`ring_bytes`, if it holds more than the segments that are being written to.

    Raises:
        UsageError: it does not.
    """
    if ring_bytes < SMALLEST_RING:
        raise UsageError(
            f"--ring {ring_bytes} is too small: segments have up to 4 MiB and are kept while a "
            f"thread writes to them; ask for {SMALLEST_RING >> 20}MiB or more"
        )
    return ring_bytes


def build_parts(options: RecordOptions) -> None:
    """Compile the native parts now, where a failure can still be a clear sentence.

    Raises:
        MissingPartError: no torch, no headers, no compiler, or it refused.
    """
    agent = load_agent()
    try:
        agent.build_parts(torch_build, None, options.stacks, "op" in options.scopes)
    except torch_build.TorchBuildError as error:
        raise MissingPartError(str(error)) from error


def load_agent() -> ModuleType:
    """The agent's module, under the private name it has in recorded programs."""
    name = "_workbench_recorder"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, AGENT_FOLDER / "agent.py")
    if spec is None or spec.loader is None:
        raise MissingPartError(f"the recorder's agent is missing in {AGENT_FOLDER}; reinstall")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def open_spool(options: RecordOptions, command: Sequence[str]) -> Spool:
    """Make and lock the spool folder, after a check of everything that could spoil the end.

    Raises:
        UsageError: the output exists, or its folder is missing or cannot be written to; another
            recording uses the spool; the spool would lie in memory.
    """
    output = options.output.absolute()
    # Whether it exists is asked below, once no other recording is writing it.
    check_output(output, force=True, inputs=filter(os.path.isfile, command), is_trace=True)
    base = (options.spool or output.parent).absolute()
    if options.spool is not None:
        _check_folder(base, "--spool")
    elif _file_system(base) in _MEMORY_BACKED:
        raise UsageError(
            f"{base} lies in memory, which the spool would take from the program; "
            "name a folder on a disk with --spool DIR"
        )
    folder = base / f"{output.name}.spool"
    lock = _lock_spool(folder, options)
    try:
        if output.exists() and not options.force:
            raise UsageError(f"{output} exists; use --force to replace it, or another -o")
        about = {"output": str(output), "command": list(command), "workbench": __version__}
        (folder / ABOUT).write_text(json.dumps(about), encoding="utf-8")
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        lock.close()
        raise
    return Spool(folder, options, lock)


def _check_folder(folder: Path, option: str) -> None:
    if not folder.is_dir():
        raise UsageError(f"the folder {folder} does not exist; create it, or use another {option}")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise UsageError(f"the folder {folder} is read-only; use another {option}")


def _file_system(folder: Path) -> str:
    """The type of the file system that holds `folder`, such as ``ext4``; empty if not known."""
    best, kind = "", ""
    path = str(folder.resolve())
    try:
        lines = Path("/proc/self/mountinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return ""
    for line in lines:
        left, _, right = line.partition(" - ")
        mounted = left.split()[4].encode().decode("unicode_escape")
        inside = path == mounted or path.startswith(mounted.rstrip("/") + "/")
        if inside and len(mounted) >= len(best):
            best, kind = mounted, right.split()[0]
    return kind


def _lock_spool(folder: Path, options: RecordOptions) -> IO[bytes]:
    with contextlib.suppress(FileExistsError):
        try:
            folder.mkdir()
        except OSError as error:
            if isinstance(error, FileExistsError):
                raise
            raise UsageError(
                f"cannot make the spool folder {folder}: {error.strerror}; use another -o"
            ) from error
    lock = (folder / "lock").open("ab")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        lock.close()
        raise UsageError(
            f"another `wb record` is writing {options.output} right now; "
            "wait for it, or use another -o"
        ) from error
    if (folder / ABOUT).exists():
        if not options.force:
            lock.close()
            raise UsageError(
                f"{folder} is left from a recording that was cut short; save it with "
                f"`wb recover {folder}`, or use --force to throw it away"
            )
        for path in folder.iterdir():
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
    return lock


def environment(spool: Spool) -> dict[str, str]:
    """This process's environment and what the agent needs to know, for the program."""
    limit, keep_free = spool.limits()
    site = str(AGENT_FOLDER / "site")
    before = os.environ.get("PYTHONPATH")
    return {
        **os.environ,
        "PYTHONPATH": f"{site}{os.pathsep}{before}" if before else site,
        "WORKBENCH_RECORD_SPOOL": str(spool.folder),
        "WORKBENCH_RECORD_BUILDER": str(torch_build.__file__),
        "WORKBENCH_RECORD_LIMIT": str(limit),
        "WORKBENCH_RECORD_KEEP_FREE": str(keep_free),
        "WORKBENCH_RECORD_SCOPE": ",".join(spool.options.scopes),
        "WORKBENCH_RECORD_STACKS": "1" if spool.options.stacks else "0",
        "WORKBENCH_RECORD_CHILDREN": "1" if spool.options.children else "0",
    }


def run_program(command: Sequence[str], variables: Mapping[str, str]) -> tuple[int, HowItEnded]:
    """Run `command` to its end, with our terminal, and let its signals be its own.

    Returns:
        Its process id, and how it ended.

    Raises:
        UsageError: the command cannot be started.
    """
    from workbench.recorders._native import read_clock

    program: subprocess.Popen[bytes] | None = None
    early: list[int] = []

    def pass_on(number: int, frame: FrameType | None) -> None:
        if program is None:
            early.append(number)
        else:
            program.send_signal(number)

    def leave_to_program(number: int, frame: FrameType | None) -> None:
        """The terminal sends Ctrl-C to the program, too; we wait for what it makes of it."""

    handlers: dict[int, Callable[[int, FrameType | None], None]] = {
        signal.SIGINT: leave_to_program,
        signal.SIGQUIT: leave_to_program,
        signal.SIGTERM: pass_on,
        signal.SIGHUP: pass_on,
    }
    with _signals(handlers):
        try:
            program = subprocess.Popen(list(command), env=dict(variables))
        except OSError as error:
            raise UsageError(
                f"cannot run {command[0]}: {error.strerror}; check the name"
            ) from error
        for number in early:
            program.send_signal(number)
        code = program.wait()
        clock = read_clock()
    if code < 0:
        return program.pid, HowItEnded(128 - code, -code, clock)
    return program.pid, HowItEnded(code, None, clock)


@contextlib.contextmanager
def _signals(
    handlers: Mapping[int, Callable[[int, FrameType | None], None]],
) -> Iterator[None]:
    """Handlers in place; functions, not SIG_IGN, which the program would inherit."""
    before = {
        number: signal.signal(number, handler)
        for number, handler in handlers.items()
        if signal.getsignal(number) is not signal.SIG_IGN  # as under nohup: stays so
    }
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def start_here(spool: Spool) -> Any:
    """Record this process into `spool`; returns the agent's `Recording`.

    Raises:
        MissingPartError: torch is missing, or a native part cannot be built.
        RunError: the recorder could not start.
    """
    build_parts(spool.options)
    import torch

    agent = load_agent()
    limit, keep_free = spool.limits()
    options = agent.Options(
        str(spool.folder),
        str(torch_build.__file__),
        limit,
        keep_free,
        spool.options.scopes,
        spool.options.stacks,
        spool.options.children,
    )
    try:
        return agent.Recording(torch, options)
    except (OSError, RuntimeError) as error:
        raise RunError(str(error)) from error
