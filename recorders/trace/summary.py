"""What a trace holds, from one pass over it in memory bounded by its live set."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from workbench.recorders._native import TraceSummary
from workbench.recorders.trace.checks import OPS, TextCodes
from workbench.recorders.trace.reader import TraceFile

_COLUMNS = ("time_ns", "event", "id", "size", "device", "step", "phase", "scope")


@dataclass(frozen=True)
class Share:
    """Memory live at a peak that was allocated under one name."""

    name: str | None
    bytes: int
    blocks: int


@dataclass(frozen=True)
class DeviceSummary:
    """Memory of one device; bytes are requested bytes.

    Attributes:
        device: its name in the trace.
        allocs, frees: events; ``live`` counts as an allocation.
        allocated_bytes: sum over all allocations.
        live_bytes, live_blocks: at the end of the trace.
        peak_bytes, peak_blocks: at the event where most bytes were live.
        peak_event, peak_time_ns, peak_step, peak_phase: that event.
        peak_phases, peak_scopes: where the memory live at the peak was allocated, most bytes first.
    """

    device: str
    allocs: int
    frees: int
    allocated_bytes: int
    live_bytes: int
    live_blocks: int
    peak_bytes: int
    peak_blocks: int
    peak_event: int
    peak_time_ns: int
    peak_step: int
    peak_phase: str
    peak_phases: list[Share] = field(default_factory=list)
    peak_scopes: list[Share] = field(default_factory=list)


@dataclass(frozen=True)
class PeakCheck:
    """The highest sum of requested bytes on a device, by PyTorch's report and by the trace.

    PyTorch's native allocator counts memory that was freed while other streams used it until they
    are done with it.

    Attributes:
        device: its name in the trace.
        reported: bytes, as PyTorch reported them when recording ended.
        in_trace: bytes, summed up over the rows in the same way.
    """

    device: str
    reported: int
    in_trace: int


@dataclass(frozen=True)
class Bucket:
    """Numbers in [`low`, `high`): how many, and bytes where the numbers are sizes."""

    low: int
    high: int
    count: int
    bytes: int | None = None


@dataclass(frozen=True)
class FileSummary:
    """What one file of a trace holds.

    Attributes:
        path: the file.
        events: number of rows.
        event_counts: rows by event, in order of first appearance.
        first_time_ns, last_time_ns: None without events.
        last_step: -1 where there are no steps.
        devices: one entry for each device that something was allocated on, highest peak first.
        sizes: requested sizes of allocations, by power of two.
        lifetimes_in_events, lifetimes_in_ns: from allocation to free, of what was freed.
        metadata: the file's.
        peak_checks: for each device whose peak PyTorch reported and the trace can reach.
    """

    path: str
    events: int
    event_counts: dict[str, int]
    first_time_ns: int | None
    last_time_ns: int | None
    last_step: int
    devices: list[DeviceSummary]
    sizes: list[Bucket]
    lifetimes_in_events: list[Bucket]
    lifetimes_in_ns: list[Bucket]
    metadata: dict[str, Any]
    peak_checks: list[PeakCheck] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """Plain dictionaries and lists."""
        return asdict(self)


def summarise(file: TraceFile, progress: Callable[[int, int], None] | None = None) -> FileSummary:
    """Read one file of a trace, check its rules and sum it up.

    Args:
        file: one of `Trace.files`.
        progress: called now and then with the rows done and the rows in all.

    Raises:
        TraceError: a row breaks a rule.
        BrokenFileError: the file cannot be read or is damaged.
    """
    native = TraceSummary()
    reported = _reported_peaks(file)
    held = _HeldMemory(file) if reported else None
    events, devices, phases, scopes = TextCodes(), TextCodes(), TextCodes(), TextCodes()
    counts = np.zeros(0, np.int64)
    first_time: int | None = None
    last_time: int | None = None
    last_step = -1
    done = 0
    for batch in file.batches(_COLUMNS):
        if not batch.num_rows:
            continue
        event_codes = events.encode(batch.column("event"))
        counts = np.bincount(event_codes, minlength=len(events.texts)) + np.pad(
            counts, (0, len(events.texts) - len(counts))
        )
        ops = np.array([OPS.get(text or "", 0) for text in events.texts], np.uint8)
        times = batch.column("time_ns").to_numpy()
        steps = batch.column("step").to_numpy()
        row_ops, ids = ops[event_codes], batch.column("id").to_numpy()
        others = (
            batch.column("size").to_numpy(),
            devices.encode(batch.column("device")),
            steps,
            phases.encode(batch.column("phase")),
            scopes.encode(batch.column("scope")),
        )
        native.add(times, row_ops, ids, *others)
        if held is not None:
            held.native.add(times, held.ops(row_ops, ids), ids, *others)
        first_time = int(times[0]) if first_time is None else first_time
        last_time = int(times[-1])
        last_step = max(last_step, int(steps.max()))
        done += batch.num_rows
        if progress is not None:
            progress(done, file.rows)
    return FileSummary(
        path=file.path,
        events=file.rows,
        event_counts={
            str(text): int(count) for text, count in zip(events.texts, counts, strict=True) if count
        },
        first_time_ns=first_time,
        last_time_ns=last_time,
        last_step=last_step,
        devices=_devices(native, devices, phases, scopes),
        sizes=_buckets(native.size_counts(), native.size_bytes()),
        lifetimes_in_events=_buckets(native.lifetimes_in_events()),
        lifetimes_in_ns=_buckets(native.lifetimes_in_ns()),
        metadata=dict(file.metadata),
        peak_checks=held.checks(reported, devices) if held is not None else [],
    )


def _reported_peaks(file: TraceFile) -> dict[str, int]:
    """Peaks of requested bytes by device, where the trace has all that led to them."""
    about = file.metadata
    is_native = about["allocator"].get("backend") == "native"
    if not is_native or about["dropped_events"] or not about["complete"]:
        return {}
    return {
        device: peaks["requested"]
        for device, peaks in about["reported_peaks"].items()
        if peaks.get("requested") is not None and not peaks.get("requested_before")
    }


class _HeldMemory:
    """Sums up memory as PyTorch's native allocator does, for which a block that other streams use
    is freed when it notices that they are done with it, and stays where it never does.
    """

    def __init__(self, file: TraceFile) -> None:
        self.native = TraceSummary()
        uses = {(id_, stream) for id_, stream in _rows_of(file, "record_stream")}
        used = np.unique(np.array([id_ for id_, _ in uses], np.int64))
        own = dict(_rows_of(file, "alloc", used)) if len(used) else {}
        held = {id_ for id_, stream in uses if own.get(id_, stream) != stream}
        self._held = np.array(sorted(held), np.int64)

    def ops(self, ops: npt.NDArray[np.uint8], ids: npt.NDArray[np.int64]) -> Any:
        """`ops`, with the frees of held memory put where they complete."""
        is_held = np.isin(ids, self._held)
        found = np.where(is_held & (ops == OPS["free"]), 0, ops)
        found = np.where(is_held & (ops == OPS["free_completed"]), OPS["free"], found)
        return found.astype(np.uint8)

    def checks(self, reported: Mapping[str, int], devices: TextCodes) -> list[PeakCheck]:
        """The trace's own peaks beside those that were reported."""
        own = {
            str(devices.texts[code]): entry["peak_bytes"]
            for code, entry in enumerate(self.native.devices())
        }
        return [PeakCheck(name, peak, own.get(name, 0)) for name, peak in reported.items()]


def _rows_of(
    file: TraceFile, event: str, ids: npt.NDArray[np.int64] | None = None
) -> Iterator[tuple[int, int]]:
    """Id and stream of the rows of `event`, of those of `ids` where they are given."""
    for batch in file.batches(("event", "id", "stream")):
        rows = batch.filter(pc.equal(batch.column("event").cast(pa.string()), event))
        found, streams = rows.column("id").to_numpy(), rows.column("stream").to_numpy()
        if ids is not None:
            wanted = np.isin(found, ids)
            found, streams = found[wanted], streams[wanted]
        yield from zip(found.tolist(), streams.tolist(), strict=True)


def _devices(
    native: TraceSummary, devices: TextCodes, phases: TextCodes, scopes: TextCodes
) -> list[DeviceSummary]:
    shares: dict[tuple[int, bool], list[Share]] = {}
    for device, is_scope, code, size, blocks in native.groups_at_peak():
        if blocks:
            texts = scopes.texts if is_scope else phases.texts
            name = texts[code] if code >= 0 else None
            shares.setdefault((device, is_scope), []).append(Share(name, size, blocks))
    for group in shares.values():
        group.sort(key=lambda share: (-share.bytes, share.name or ""))
    summaries = []
    for code, entry in enumerate(native.devices()):
        if not entry["allocs"]:
            continue
        phase = entry.pop("peak_phase")
        summaries.append(
            DeviceSummary(
                device=str(devices.texts[code]),
                peak_event=entry.pop("peak_row"),
                peak_phase=str(phases.texts[phase]),
                peak_phases=shares.get((code, False), []),
                peak_scopes=shares.get((code, True), []),
                **entry,
            )
        )
    return sorted(summaries, key=lambda summary: -summary.peak_bytes)


def _buckets(counts: list[int], sizes: list[int] | None = None) -> list[Bucket]:
    """Bucket 0 holds the number 0, bucket k those in [2^(k-1), 2^k); empty ones are left out."""
    return [
        Bucket(
            low=1 << (place - 1) if place else 0,
            high=1 << place,
            count=count,
            bytes=sizes[place] if sizes is not None else None,
        )
        for place, count in enumerate(counts)
        if count
    ]
