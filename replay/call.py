"""``workbench.replay()``: the Python face of ``wb replay``."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from workbench.replay.summary import Result


def replay(
    trace: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    allocator: str | Sequence[str] = "all",
    *,
    backend: str | None = None,
    device: str | None = None,
    capacity: int | str | None = None,
    completion: str = "recorded",
    after_oom: str = "stop",
    order: str = "global",
    profile: str | os.PathLike[str] | None = None,
    repeat: int | None = None,
    timeout: float = 600.0,
    output: str | os.PathLike[str] | None = None,
    force: bool = False,
) -> Result:
    """Replay traces against allocators, as ``wb replay`` does.

    Args:
        trace: one trace or several: files, folders of ranks, or URLs.
        allocator: one or several of ``NAME[:key:value,…]``, or ``all``; ``caching:env`` takes the
            settings from ``PYTORCH_ALLOC_CONF``, or else ``PYTORCH_CUDA_ALLOC_CONF``.
        backend: where memory comes from; None for the allocator's default.
        device: whose traffic; None for the allocator's kind of memory, else the busiest device.
        capacity: of the device: bytes, or text such as ``8GiB``; None for what the trace says.
        completion: ``recorded``, ``immediate``, ``never`` or ``delay:N``.
        after_oom: ``stop`` or ``continue``.
        order: in which order the recorded threads make their calls: ``global``, all by one thread
            as recorded; ``handoff``, each by a thread of its own, which waits where a block comes
            from another; ``free``, without waiting.
        profile: what driver calls cost, for cells on the backend ``simulated``: the name of one
            that comes with the workbench, or a file that ``wb calibrate`` wrote.
        repeat: timed processes for each cell; None for 10, or at least 3 where they take long.
        timeout: seconds that a process may take.
        output: folder to keep the results in; None for one that goes with the returned object.
        force: replace whatever is in the way in `output`.

    Returns:
        One result for each cell. A cell that crashed, hung or ran out of memory is among them.

    Raises:
        UsageError: a wrong name or value.
        BrokenFileError: not a trace, or a broken one.
        RunError: passes of a cell decided differently, or a result could not be written.
    """
    from workbench.common.errors import RunError
    from workbench.common.units import parse_size
    from workbench.replay.job import Options
    from workbench.replay.runner import replay_traces
    from workbench.replay.summary import Result, TemporaryFolder

    options = Options(
        device=device,
        backend=backend,
        capacity=None if capacity is None else parse_size(str(capacity), "capacity"),
        completion=completion,
        after_oom=after_oom,
        order=order,
        profile=None if profile is None else os.fspath(profile),
        repeat=repeat,
        timeout=timeout,
        force=force,
        command="workbench.replay()",
    )
    traces = [trace] if isinstance(trace, (str, os.PathLike)) else list(trace)
    allocators = [allocator] if isinstance(allocator, str) else list(allocator)
    # It removes the folder however this call ends.
    temporary = (
        TemporaryFolder(tempfile.mkdtemp(prefix="workbench-results-")) if output is None else None
    )
    folder = Path(temporary.path if temporary else os.fspath(output or "."))
    session = replay_traces([os.fspath(one) for one in traces], allocators, folder, options)
    if session.errors:
        raise RunError("; ".join(session.errors))
    for cell in session.results:
        cell.keeps = temporary
    return Result(session.results, session.left_out)
