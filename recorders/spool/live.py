"""Works on spools while their programs run, as a process of its own beside them.

`wb record --convert live` has it turn rows that are in closed segments into Parquet, and
`wb record --ring` has it forget them. Either way segments that are done with are removed, after
what they held is on the disk: rows in ``part-N.parquet``, and where the conversion stands in
``progress``, each written whole or not at all, in this order. Whoever goes on from there, this
process, the next one, `wb record` or `wb recover`, loses nothing and takes nothing twice.
"""

from __future__ import annotations

import contextlib
import os
import signal
import struct
import sys
import threading
from collections import defaultdict
from pathlib import Path
from typing import Any

from workbench.common.errors import WorkbenchError
from workbench.recorders._native import REMOVED_BYTES_OFFSET, SpoolConverter, read_clock
from workbench.recorders.recovery import process_folders
from workbench.recorders.spool.convert import RowWriter, continued, read_control
from workbench.recorders.spool.names import Names
from workbench.recorders.spool.progress import Progress
from workbench.recorders.trace.writer import TraceWriter

_PAUSE_SECONDS = 0.5
_ROWS_AT_ONCE = 250_000
_ROWS_AT_ONCE_IN_RING = 50_000  # the ring is to keep what it can
# A free that a clock of another processor stamped late must be in sight of the allocation that
# reuses its memory.
_MARGIN_NS = 1_000_000


def work(spool: Path, ring_bytes: int | None) -> None:
    """Take steps on every process of `spool` until a signal or the end of our parent.

    Args:
        spool: the spool folder.
        ring_bytes: how much of each process's segments to keep; None: turn them into Parquet.
    """
    ended = threading.Event()
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda number, frame: ended.set())
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the terminal's Ctrl-C is for the program
    parent = os.getppid()
    given_up: set[Path] = set()
    tried: defaultdict[Path, set[int]] = defaultdict(set)
    while not ended.wait(_PAUSE_SECONDS) and os.getppid() == parent:
        for folder in process_folders(spool):
            if folder in given_up or ended.is_set():
                continue
            try:
                step(folder, ring_bytes, tried[folder])
            except (OSError, WorkbenchError) as error:
                # What is there stays there and is converted at the end.
                given_up.add(folder)
                print(f"wb: {folder.name} is converted at the end only: {error}", file=sys.stderr)


def step(process_folder: Path, ring_bytes: int | None, tried: set[int]) -> int:
    """Do what can be done by now.

    Args:
        process_folder: of the spool.
        ring_bytes: as in `work`.
        tried: numbers of closed segments that earlier steps have seen: there may be one that is
            damaged and cannot be done with. New ones are added.

    Returns:
        The bytes of segments removed.

    Raises:
        BrokenFileError: the spool is damaged.
        RunError, OSError: the disk is full, or writing fails for another reason.
    """
    before = Progress.load(process_folder)
    segments = _segments(process_folder)
    closed = {number for number in segments if _is_closed(process_folder, number)}
    if closed <= tried or (ring_bytes is not None and sum(segments.values()) <= ring_bytes):
        return 0
    tried |= closed
    control = read_control(process_folder)
    clock = read_clock()
    converter = continued(
        process_folder, control, before, end_clock=clock, until=_limits(control, clock)
    )
    if ring_bytes is None:
        parts = before.parts
        names = Names(process_folder / "names")
        path = before.part(process_folder, parts)
        with TraceWriter(path, {"complete": False}) as writer:
            rows = RowWriter(names, names.stacks)
            while rows.write_next(converter, writer, _ROWS_AT_ONCE):
                pass
        after = Progress(parts + 1, False, converter.state())
    else:
        _forget(converter, segments, ring_bytes)
        after = Progress(0, True, converter.state())
    after.save(process_folder)
    return _remove_finished(process_folder, converter, segments, control)


def _forget(converter: SpoolConverter, segments: dict[int, int], ring_bytes: int) -> None:
    """Go on until what is not yet done with fits into the ring."""
    while len(converter.next_rows(_ROWS_AT_ONCE_IN_RING)["id"]):
        finished = _finished(converter, segments)
        if sum(segments.values()) - sum(segments[number] for number in finished) <= ring_bytes:
            return


def _limits(control: dict[str, Any], clock: tuple[int, int]) -> tuple[int, int]:
    """Ticks up to which to convert, and up to which all records are in the spool.

    A record is in the spool before the memory it tells of can reach another thread: one that is
    stamped earlier than this moment and written later is of memory that nobody else has had since.
    """
    ticks, now = clock
    if control["clock_in_nanoseconds"]:
        return max(now - _MARGIN_NS, 0), now
    first_ticks, first_ns = control["first"]
    per_ns = (ticks - first_ticks) / max(now - first_ns, 1)
    return max(ticks - int(_MARGIN_NS * per_ns), 0), ticks


def _segments(process_folder: Path) -> dict[int, int]:
    """Bytes of each segment's file."""
    found = {}
    for path in process_folder.glob("events-*"):
        number = path.name.partition("-")[2]
        if number.isdecimal():
            found[int(number)] = path.stat().st_size
    return found


def _is_closed(process_folder: Path, number: int) -> bool:
    """Whether nothing more will be written to a segment (SegmentHeader::closed)."""
    with (process_folder / f"events-{number}").open("rb") as file:
        header = file.read(40)
    return len(header) == 40 and struct.unpack("<32xQ", header)[0] != 0


def _finished(converter: SpoolConverter, segments: dict[int, int]) -> list[int]:
    below, listed = converter.finished()
    others = set(listed)
    return [number for number in segments if number < below or number in others]


def _remove_finished(
    process_folder: Path,
    converter: SpoolConverter,
    segments: dict[int, int],
    control: dict[str, Any],
) -> int:
    finished = _finished(converter, segments)
    removed = 0
    for number in finished:
        with contextlib.suppress(FileNotFoundError):
            (process_folder / f"events-{number}").unlink()
            removed += segments[number]
    # For the program's recorder, which keeps to a limit.
    with (process_folder / "control").open("r+b") as file:
        file.seek(REMOVED_BYTES_OFFSET)
        file.write(struct.pack("=Q", control["removed_bytes"] + removed))
    return removed


def main(arguments: list[str]) -> None:
    """``python -m workbench.recorders.spool.live SPOOL [RING_BYTES]``."""
    spool, *ring = arguments
    os.nice(5)  # the program comes first
    work(Path(spool), int(ring[0]) if ring else None)


if __name__ == "__main__":
    main(sys.argv[1:])
