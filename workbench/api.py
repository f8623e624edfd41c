"""The public Python face; each function mirrors a command."""

from __future__ import annotations

import contextlib
import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

from workbench.replay.call import replay

__all__ = ["mark_step", "record", "replay"]


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


def mark_step(step: int | None = None) -> None:
    """Say at which step the program is, where that is not the number of optimizer steps.

    From the first call on, only these calls count. Without a recording it does nothing.

    Args:
        step: the step that begins now; None for one more than before.
    """
    phases = sys.modules.get("_workbench_phases")
    if phases is not None:
        phases.mark_step(step)
