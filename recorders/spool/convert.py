"""Turns the spool of one process into a trace, as a stream."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from workbench.common.errors import BrokenFileError
from workbench.recorders._native import SpoolConverter, parse_control
from workbench.recorders.spool.names import Names
from workbench.recorders.trace.metadata import TraceMetadata
from workbench.recorders.trace.schema import PHASES
from workbench.recorders.trace.stacks import write_stacks
from workbench.recorders.trace.writer import TraceWriter

_ROWS_AT_ONCE = 500_000
_EVENTS = pa.array(["alloc", "free", "mark"])
_STOP_REASONS = {1: "the disk was full", 2: "the spool reached its size limit"}
_REMEDY = "nothing of this process can be saved; record it again"


@dataclass(frozen=True)
class ConvertedTrace:
    """What became of one process's spool.

    Attributes:
        path: the trace.
        rows: its events.
        lost: events known to be lost: seen after recording stopped, or unreadable in the spool.
        complete: whether nothing was lost.
        lost_reason: why something was lost, in words.
        unmatched_frees: frees of memory whose allocation is not in the spool; they make no row.
        reused_addresses: allocations whose free was never seen; they stay live in the trace.
        zero_byte_allocs: requests of 0 bytes; they make no row.
        forked_children: children that stopped recording at the fork.
        stacks_path: the file of stacks, if stacks were recorded.
        metadata: as written to the trace.
    """

    path: Path
    rows: int
    lost: int
    complete: bool
    lost_reason: str | None
    unmatched_frees: int
    reused_addresses: int
    zero_byte_allocs: int
    forked_children: int
    stacks_path: Path | None
    metadata: TraceMetadata


def convert_process(
    process_folder: Path,
    output: Path,
    *,
    metadata: Mapping[str, Any],
    end_clock: tuple[int, int] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> ConvertedTrace:
    """Turn the spool of one process into a trace.

    Args:
        process_folder: ``process-PID-TICKS`` of a spool; it is left as it is.
        output: the trace to write, ``NAME.parquet``; stacks go to ``NAME.stacks.parquet``.
        metadata: what is known of the process; counts, losses and threads are filled in here.
        end_clock: (ticks, nanoseconds) read on the same machine when the process ended: the longer
            the line between two readings, the better ticks are turned into nanoseconds.
        progress: called now and then with the records done and the records in all.

    Raises:
        BrokenFileError: the control page is missing or broken.
        UsageError: `output` cannot be created.
        RunError: the disk is full; `output` is then as it was before.
    """
    control = _read_control(process_folder)
    first_ticks, slope = _clock_line(control, end_clock)
    names = Names(process_folder / "names")
    converter = SpoolConverter(process_folder, first_ticks, slope, control["steps_seen"])
    stacks = names.stacks
    stacks_path: Path | None = None
    try:
        with TraceWriter(output, metadata) as writer:
            columns = _Columns(names, stacks)
            while True:
                rows = converter.next_rows(_ROWS_AT_ONCE)
                counts = converter.counts()
                if len(rows["id"]) == 0:
                    break
                writer.write(columns.of(rows, converter))
                if progress is not None:
                    progress(min(counts["records_read"], counts["total_records"]), _total(counts))
            lost = control["lost_events"] + counts["unreadable_records"]
            reason = _lost_reason(control, counts)
            writer.metadata.update(
                complete=reason is None and writer.metadata["complete"],
                lost_events=lost,
                lost_reason=reason or writer.metadata["lost_reason"],
                unmatched_frees=counts["unmatched_frees"],
                reused_addresses=counts["reused_addresses"],
                zero_byte_allocs=control["zero_byte_allocs"],
                forked_children=control["forked_children"],
                threads={str(number): thread for number, thread in converter.threads().items()},
                stacks=bool(stacks) or writer.metadata["stacks"],
            )
            # Before the trace: one that names stacks must never be without them.
            stacks_path = write_stacks(output, list(stacks.values()))
    except BaseException:
        if stacks_path is not None:
            stacks_path.unlink(missing_ok=True)
        raise
    if progress is not None:
        progress(_total(counts), _total(counts))
    return ConvertedTrace(
        path=output,
        rows=writer.rows,
        lost=lost,
        complete=writer.metadata["complete"],
        lost_reason=writer.metadata["lost_reason"],
        unmatched_frees=counts["unmatched_frees"],
        reused_addresses=counts["reused_addresses"],
        zero_byte_allocs=control["zero_byte_allocs"],
        forked_children=control["forked_children"],
        stacks_path=stacks_path,
        metadata=writer.metadata,
    )


class _Columns:
    """Turns the converter's numbers into the columns of a trace."""

    def __init__(self, names: Names, stacks: Mapping[int, str]) -> None:
        self._names = names
        self._scope_texts: dict[str, int] = {}
        self._scope_codes = np.array([], np.int32)
        self._stack_rows = np.full(max(stacks, default=0) + 2, -1, np.int32)
        for row, number in enumerate(stacks):
            self._stack_rows[number] = row

    def of(self, rows: Mapping[str, Any], converter: SpoolConverter) -> dict[str, Any]:
        """The columns of `rows`, as `TraceWriter.write` takes them."""
        count = len(rows["id"])
        zeros = np.zeros(count, np.int32)
        columns = {name: rows[name] for name in ("time_ns", "id", "size", "thread", "step")}
        columns |= {
            "event": _texts(rows["event"].astype(np.int32), _EVENTS),
            "device": _texts(zeros, pa.array(["cpu"])),
            "stream": zeros,
            "pool": zeros,
            "phase": _texts(rows["phase"].astype(np.int32), pa.array(PHASES)),
        }
        if rows["scope"].max() >= 0:
            self._name_scopes(converter)
            codes = self._scope_codes[rows["scope"]]
            columns["scope"] = _texts(codes, pa.array(list(self._scope_texts)), codes < 0)
        if rows["stack"].max() > 0:
            last = len(self._stack_rows) - 1  # never a stack: for numbers whose name was lost
            stack_ids = self._stack_rows[np.minimum(rows["stack"], last)]
            columns["stack_id"] = pa.array(stack_ids, mask=stack_ids < 0)
        if rows["label"].max() >= 0:
            columns["label"] = pa.array(
                [self._names.label(n) if n >= 0 else None for n in rows["label"].tolist()],
                pa.string(),
            )
        return columns

    def _name_scopes(self, converter: SpoolConverter) -> None:
        numbers = converter.scopes()
        known = len(self._scope_codes) - 1
        new = [
            self._scope_texts.setdefault(self._names.scope(int(number)), len(self._scope_texts))
            for number in numbers[max(known, 0) :]
        ]
        # The last entry stands for no scope: -1 as an index reaches it.
        self._scope_codes = np.concatenate(
            [self._scope_codes[:-1], np.array([*new, -1], np.int32)], dtype=np.int32
        )


def _texts(
    codes: npt.NDArray[np.int32], texts: pa.Array, mask: npt.NDArray[np.bool_] | None = None
) -> pa.DictionaryArray:
    return pa.DictionaryArray.from_arrays(pa.array(codes, mask=mask), texts)


def _read_control(process_folder: Path) -> dict[str, Any]:
    path = process_folder / "control"
    try:
        control: dict[str, Any] = parse_control(path.read_bytes())
    except OSError as error:
        raise BrokenFileError(path, f"cannot be read ({error.strerror})", _REMEDY) from error
    except ValueError as error:
        raise BrokenFileError(path, str(error), _REMEDY) from error
    return control


def _clock_line(control: Mapping[str, Any], end: tuple[int, int] | None) -> tuple[int, float]:
    """The ticks that are time 0, and nanoseconds per tick."""
    first_ticks, first_ns = control["first"]
    if control["clock_in_nanoseconds"]:
        return first_ticks, 1.0
    readings = [control["last"], *([end] if end is not None else [])]
    later = [(ticks, ns) for ticks, ns in readings if ticks > first_ticks and ns > first_ns]
    if not later:
        # Killed before a second reading and ended unseen: one tick stands for one nanosecond.
        return first_ticks, 1.0
    last_ticks, last_ns = max(later)
    return first_ticks, (last_ns - first_ns) / (last_ticks - first_ticks)


def _total(counts: Mapping[str, int]) -> int:
    return max(counts["total_records"], 1)


def _lost_reason(control: Mapping[str, Any], counts: Mapping[str, int]) -> str | None:
    reasons = []
    if control["stop_reason"]:
        reasons.append(_STOP_REASONS.get(control["stop_reason"], "recording stopped early"))
    elif control["lost_events"]:
        reasons.append("the hook could not keep them")
    if counts["unreadable_records"]:
        reasons.append(f"{counts['unreadable_records']} records of the spool are unreadable")
    for key, words in (
        ("missing_segments", "missing"),
        ("broken_segments", "broken"),
    ):
        if counts[key]:
            reasons.append(f"{counts[key]} segment files of the spool are {words}")
    return "; ".join(reasons) or None
