"""Turns the spool of one process into a trace, as a stream."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from workbench.common.errors import BrokenFileError
from workbench.recorders._native import SpoolConverter, parse_control
from workbench.recorders.spool.facts import described, device_name
from workbench.recorders.spool.names import Names
from workbench.recorders.spool.progress import Progress
from workbench.recorders.trace.metadata import TraceMetadata
from workbench.recorders.trace.schema import EVENTS, PHASES, SCHEMA, TEXT_COLUMNS
from workbench.recorders.trace.stacks import write_stacks
from workbench.recorders.trace.writer import TraceWriter

_ROWS_AT_ONCE = 500_000
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
    control = read_control(process_folder)
    before = Progress.load(process_folder)
    names = Names(process_folder / "names")
    converter = continued(process_folder, control, before, end_clock=end_clock)
    stacks = names.stacks
    stacks_path: Path | None = None
    try:
        with TraceWriter(output, {**metadata, **described(names, metadata)}) as writer:
            for number in range(before.parts):
                _write_part(before.part(process_folder, number), writer)
            columns = RowWriter(names, stacks)
            while columns.write_next(converter, writer, _ROWS_AT_ONCE):
                counts = converter.counts()
                if progress is not None:
                    progress(min(counts["records_read"], counts["total_records"]), _total(counts))
            counts = converter.counts()
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
                dropped_events=counts["rows_before"],
                recorded=list(dict.fromkeys([*writer.metadata["recorded"], *columns.devices])),
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


def continued(
    process_folder: Path,
    control: Mapping[str, Any],
    before: Progress,
    *,
    end_clock: tuple[int, int] | None,
    until: tuple[int, int] | None = None,
) -> SpoolConverter:
    """A converter that goes on where `before` ended.

    Args:
        process_folder: of the spool.
        control: its control page, as `read_control` gave it.
        before: what has been done already.
        end_clock: (ticks, nanoseconds), a late reading of both clocks.
        until: ticks after which no row is made, and ticks up to which all records are there;
            without it the whole spool is converted, which begins with a key frame where a ring
            dropped what came before.

    Raises:
        BrokenFileError: what has been done already cannot be read.
    """
    first_ticks, slope = _clock_line(control, end_clock)
    limits = {"until": until[0], "known_until": until[1]} if until is not None else {}
    try:
        return SpoolConverter(
            process_folder,
            first_ticks,
            slope,
            control["steps_seen"],
            before.state,
            key_frame=before.is_ring and until is None,
            **limits,
        )
    except ValueError as error:
        raise BrokenFileError(process_folder / "progress", str(error), _REMEDY) from error


def _write_part(path: Path, writer: TraceWriter) -> None:
    """Copy the rows that were converted while the program ran."""
    try:
        with pq.ParquetFile(path, read_dictionary=list(TEXT_COLUMNS)) as file:
            for batch in file.iter_batches(batch_size=_ROWS_AT_ONCE):
                writer.write({name: batch.column(name) for name in SCHEMA.names})
    except (pa.ArrowException, FileNotFoundError, ValueError, KeyError) as error:
        reason = str(error).splitlines()[0]
        raise BrokenFileError(path, f"cannot be read ({reason})", _REMEDY) from error


class RowWriter:
    """Turns the converter's numbers into the columns of a trace, and writes them.

    Attributes:
        devices: names of devices seen, in order of first use.
    """

    def __init__(self, names: Names, stacks: Mapping[int, str]) -> None:
        self.devices: dict[str, None] = {}
        self._names = names
        self._scope_texts: dict[str, int] = {}
        self._scope_codes = np.array([], np.int32)
        self._stack_rows = np.full(max(stacks, default=0) + 2, -1, np.int32)
        for row, number in enumerate(stacks):
            self._stack_rows[number] = row

    def write_next(self, converter: SpoolConverter, writer: TraceWriter, rows: int) -> bool:
        """Write about `rows` further rows; false at the end."""
        found = converter.next_rows(rows)
        if len(found["id"]) == 0:
            return False
        writer.write(self._columns(found, converter))
        return True

    def _columns(self, rows: Mapping[str, Any], converter: SpoolConverter) -> dict[str, Any]:
        copied = ("time_ns", "id", "size", "stream", "thread", "pool", "step")
        columns = {name: rows[name] for name in copied}
        columns |= {
            "event": _texts(rows["event"].astype(np.int32), pa.array(EVENTS)),
            "device": self._devices(rows["device"]),
            "phase": _texts(rows["phase"].astype(np.int32), pa.array(PHASES)),
        }
        for name in ("duration_ns", "value"):
            if rows[name].max() >= 0:
                columns[name] = pa.array(rows[name], mask=rows[name] < 0)
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

    def _devices(self, codes: npt.NDArray[np.uint16]) -> pa.DictionaryArray:
        used = np.flatnonzero(np.bincount(codes))
        places = np.zeros(used[-1] + 1, np.int32)
        places[used] = np.arange(len(used), dtype=np.int32)
        names = [device_name(int(code)) for code in used]
        self.devices |= dict.fromkeys(names)
        return _texts(places[codes], pa.array(names))

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


def read_control(process_folder: Path) -> dict[str, Any]:
    """The fields of a process's control page.

    Raises:
        BrokenFileError: it is missing or broken.
    """
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
