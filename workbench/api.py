"""The public Python face; each function mirrors a command."""

from __future__ import annotations

import contextlib
import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from workbench.replay.call import replay

if TYPE_CHECKING:
    from workbench.importing import ImportReport
    from workbench.replay.fitting import Fits
    from workbench.replay.tuning import Tuning
    from workbench.replay.why import Why

__all__ = ["fit", "import_file", "include_folder", "mark_step", "record", "replay", "tune", "why"]


@contextlib.contextmanager
def record(
    path: str | os.PathLike[str],
    *,
    scope: str | Sequence[str] = (),
    stacks: bool = False,
    force: bool = False,
) -> Iterator[None]:
    """Record the CPU allocations of the block into a trace, as ``wb record`` does for a program.

    The trace is written when the block ends, also when it ends with an exception. Inside another
    recording (`wb record`, or a block around this one) it warns and does nothing. Tensors made
    before the block whose storage is resized in it are not seen.

    Args:
        path: the trace.
        scope: what fills the column `scope`: ``op``, ``module`` or both.
        stacks: record Python stacks.
        force: replace an existing trace.

    Raises:
        UsageError: `path` cannot be written, or `scope` is unknown.
        MissingPartError: torch, its headers or a compiler is missing.
        RunError: the recorder could not start, or the trace could not be written.
    """
    from workbench.recorders import recording
    from workbench.recorders.recovery import convert_spool

    if recording.load_agent().recording_here():
        warnings.warn(
            f"this process is being recorded already; {os.fspath(path)} is not written",
            stacklevel=3,
        )
        yield
        return
    scopes = recording.check_scopes([scope] if isinstance(scope, str) else scope)
    options = recording.RecordOptions(Path(path), scopes, stacks, force=force)
    spool = recording.open_spool(options, sys.argv)
    try:
        started = recording.start_here(spool)
    except BaseException:
        spool.remove()
        raise
    try:
        yield
    finally:
        started.stop()
        convert_spool(spool.folder, options.output, main_process=os.getpid(), ended=None)
        spool.remove()


def include_folder() -> str:
    """The folder of ``workbench_allocator.h``, for a C compiler's ``-I``."""
    from importlib.resources import files

    return str(files("workbench.replay") / "include")


def mark_step(step: int | None = None) -> None:
    """Say at which step the program is, where that is not the number of optimizer steps.

    From the first call on, only these calls count. Without a recording it does nothing.

    Args:
        step: the step that begins now; None for one more than before.
    """
    phases = sys.modules.get("_workbench_phases")
    if phases is not None:
        phases.mark_step(step)


def tune(
    trace: str | os.PathLike[str],
    *,
    check: str | os.PathLike[str] | Sequence[str | os.PathLike[str]] = (),
    device: str | None = None,
    capacity: int | str | None = None,
    quick: bool = False,
    trials: int = 200,
    objective: str = "peak_reserved",
    completion: str = "recorded",
    without: Sequence[str] = (),
    seed: int = 0,
    timeout: float = 600.0,
) -> Tuning:
    """Search the settings of ``PYTORCH_ALLOC_CONF`` for a trace, as ``wb tune`` does.

    Args:
        trace: a file, a folder of ranks, or a URL.
        check: one or several traces of other runs, on which the best must be better too.
        device: whose traffic; None for the GPU with most bytes, else the busiest device.
        capacity: of the device: bytes, or text such as ``8GiB``; None for what the trace says.
        quick: try about 40 usual settings, no search; needs no optuna.
        trials: how many settings to try.
        objective: ``peak_reserved``, ``retries``, ``device_calls``, or a sum such as
            ``0.9*peak_reserved+0.1*device_calls``.
        completion: ``recorded``, ``immediate``, ``never`` or ``delay:N``.
        without: keys not to try.
        seed: of the search; equal ones give equal answers.
        timeout: seconds that one replay may take.

    Raises:
        UsageError: a wrong value, or nothing to replay.
        BrokenFileError: not a trace.
        MissingPartError: optuna is not installed, and `quick` is not set.
        RunError: the default settings could not be replayed.
    """
    from workbench.common.units import parse_size
    from workbench.replay.tune import TuneOptions, tune_trace

    options = TuneOptions(
        check=[os.fspath(one) for one in _listed(check)],
        device=device,
        capacity=None if capacity is None else parse_size(str(capacity), "capacity"),
        quick=quick,
        trials=trials,
        objective=objective,
        completion=completion,
        without=without,
        seed=seed,
        timeout=timeout,
    )
    return tune_trace(os.fspath(trace), options)


def fit(
    trace: str | os.PathLike[str],
    allocator: str | Sequence[str] = "caching",
    *,
    device: str | None = None,
    completion: str = "recorded",
    timeout: float = 600.0,
) -> Fits:
    """Find the smallest device that holds a trace, for each allocator, as ``wb fit`` does.

    Args:
        trace: a file, a folder of ranks, or a URL.
        allocator: one or several of ``NAME[:key:value,…]``, or ``all``.
        device: whose traffic; None for the allocator's kind of memory, else the busiest device.
        completion: ``recorded``, ``immediate``, ``never`` or ``delay:N``.
        timeout: seconds that one replay may take.

    Raises:
        UsageError: a wrong name or value, or nothing to replay.
        BrokenFileError: not a trace.
    """
    from workbench.replay.fit import FitOptions, fit_trace

    allocators = [allocator] if isinstance(allocator, str) else list(allocator)
    options = FitOptions(device=device, completion=completion, timeout=timeout)
    return fit_trace(os.fspath(trace), allocators, options)


def why(
    file: str | os.PathLike[str],
    *,
    device: str | None = None,
    capacity: int | str | None = None,
    device_memory: int | str | None = None,
) -> Why:
    """Say what ate the memory and what would help, as ``wb why`` does.

    Args:
        file: a memory snapshot of PyTorch, a trace, or what `import_file` reads.
        device: whose memory; None for where it ran out, else the busiest device.
        capacity: what PyTorch could have: bytes, or text such as ``70GiB``; None for what the
            file says.
        device_memory: of the whole device, likewise.

    Raises:
        UsageError: a wrong device or size, or nothing is allocated.
        BrokenFileError: the file cannot be read, is of no known kind, or is broken.
    """
    from workbench.common.units import parse_size
    from workbench.importing import explain

    sizes = [
        None if size is None else parse_size(str(size), name)
        for size, name in ((capacity, "capacity"), (device_memory, "device_memory"))
    ]
    return explain(os.fspath(file), device=device, capacity=sizes[0], device_memory=sizes[1])


def import_file(
    file: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    kind: str | None = None,
    force: bool = False,
) -> ImportReport:
    """Write a file of another tool as a trace, as ``wb import`` does.

    Args:
        file: a memory snapshot or profile of PyTorch, a log of RMM, a problem of MiniMalloc …
        output: the trace.
        kind: what `file` is; None: its content says.
        force: replace an existing trace.

    Raises:
        UsageError: `output` exists or cannot be created; `kind` is not known.
        BrokenFileError: the file cannot be read, is of no known kind, or is broken.
        RunError: the disk is full, or memory was not enough; nothing half-written is left.
    """
    from workbench import importing

    return importing.import_file(os.fspath(file), os.fspath(output), kind=kind, force=force)


def _listed(
    paths: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
) -> Sequence[str | os.PathLike[str]]:
    return [paths] if isinstance(paths, (str, os.PathLike)) else paths
