"""PyTorch's memory snapshots, as ``torch.cuda.memory._dump_snapshot`` pickles them."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from workbench.common.units import format_bytes
from workbench.recorders.importers import Imported
from workbench.recorders.importers._columns import some, text
from workbench.recorders.importers._pickle import load_plain
from workbench.recorders.importers._snapshot_file import (
    NOT_TOLD,
    Entries,
    Segments,
    ShapeError,
    SnapshotFile,
    read_snapshot,
)
from workbench.recorders.importers._snapshot_history import (
    GONE,
    MADE,
    MAPPED,
    OOM,
    UNMAPPED,
    NotReconstructible,
    build_history,
)
from workbench.recorders.importers._snapshot_host import DEVICE as HOST
from workbench.recorders.importers._snapshot_host import HostRows
from workbench.recorders.importers._snapshot_settings import odd_settings, settings_text
from workbench.recorders.importers._snapshot_trace import EVENTS, DeviceRows, phases_and_steps
from workbench.recorders.importers._source import Progress, Source
from workbench.recorders.trace.history import History
from workbench.recorders.trace.schema import PHASES

NAME = "torch-snapshot"
SUMMARY = "memory snapshot of PyTorch (torch.cuda.memory._dump_snapshot)"

Array = npt.NDArray[Any]
_REMEDY = "name a snapshot that torch.cuda.memory._dump_snapshot wrote"
# Entries that move nothing.
_KNOWN_MARKS = {"snapshot", "annotate", "user_defined"}
_LONGEST_AGO = datetime(1970, 1, 1, tzinfo=UTC)


def recognises(head: bytes, path: Path) -> bool:
    """Whether it is a pickle of a protocol with a header."""
    return len(head) > 2 and head[0] == 0x80 and 2 <= head[1] <= 5


def read(source: Source, progress: Progress | None) -> Imported:
    """The snapshot as a trace, with the histories that a self-check replays.

    Raises:
        BrokenFileError: not a snapshot, or one whose entries and final state contradict each other.
    """
    data = load_plain(source, progress)
    try:
        # Every item takes a byte of the file at least.
        file = read_snapshot(data, source.size * (300 if source.is_gzip else 1))
    except ShapeError as error:
        raise source.broken(f"is a pickle, but no memory snapshot ({error})", _REMEDY) from None
    del data
    return _Importing(source, file).imported()


class _Importing:
    def __init__(self, source: Source, file: SnapshotFile) -> None:
        self._source = source
        self._file = file
        pointers = [np.zeros(1, dtype=np.uint64)]
        for entries, final in file.devices.values():
            pointers += [entries.stream, final.segments["stream"]]
        self._streams = np.unique(np.concatenate(pointers))
        self._notes: list[str] = []

    def imported(self) -> Imported:
        if not self._file.devices:
            raise self._source.broken(
                "is a snapshot without any segment or entry",
                "turn recording on before the snapshot: torch.cuda.memory._record_memory_history()",
            )
        histories = [self._history(number, *parts) for number, parts in self._file.devices.items()]
        rows: list[DeviceRows | HostRows] = [
            DeviceRows(history, entries, final, len(self._streams))
            for history, (entries, final) in zip(
                histories, self._file.devices.values(), strict=True
            )
        ]
        devices = [history.device for history in histories]
        if self._file.host is not None and len(self._file.host[0]):
            rows.append(HostRows(self._file.host[0]))
            devices.append(HOST)
            self._notes.append(
                f"Pinned host memory is in the trace as device {HOST}, without a self-check."
            )
        columns, start = self._columns(devices, rows)
        waits = max((part.waits for part in rows), default=0)
        if waits:
            self._notes.append(
                f"Some frees were completed later: they waited for other streams, which the file "
                f"does not name; {waits} stand for them."
            )
        return Imported(
            columns=columns,
            metadata=self._metadata(histories, rows, start, waits),
            stacks=self._file.stacks or None,
            histories=histories,
            notes=self._notes,
        )

    def _history(self, number: int, entries: Entries, final: Segments) -> History:
        device = f"cuda:{number}"
        try:
            history = build_history(
                device,
                entries,
                final,
                self._streams,
                settings_text(self._file.settings),
                self._file.settings is not None,
            )
            odd = odd_settings(self._file.settings)
            unknown = sorted(set(entries.labels.values()) - _KNOWN_MARKS)
            if unknown:
                odd.append(
                    f"entries: those of kinds that are not known ({', '.join(unknown[:5])[:200]}) "
                    "are taken to move nothing"
                )
            return replace(history, assumed=tuple(odd))
        except NotReconstructible as error:
            raise self._source.broken(
                f"not reconstructible: {device}: {error}",
                "take the snapshot again; such a file proves nothing",
            ) from None

    def _columns(
        self, devices: list[str], rows: list[DeviceRows | HostRows]
    ) -> tuple[dict[str, Any], int]:
        time_us = np.concatenate([part.columns["time_us"] for part in rows])
        order = np.argsort(time_us, kind="stable")
        device = np.repeat(np.arange(len(rows)), [len(part.columns["order"]) for part in rows])
        labels: list[str] = []
        for part in rows:
            held = part.columns["label"]
            held[held >= 0] += len(labels)
            labels += part.labels
        joined = {
            name: np.concatenate([part.columns[name] for part in rows])[order]
            for name in rows[0].columns
        }
        time_us, device = time_us[order], device[order]
        start = int(time_us[0]) if len(time_us) else 0
        event, owner = joined["event"], joined["owner"]
        allocates = (event == EVENTS.index("alloc")) | (event == EVENTS.index("live"))
        # Of each device its own numbers; in the trace, numbers in order of allocation.
        most = int(owner.max(initial=0)) + 1
        numbers = np.full(most * len(rows), -1, dtype=np.int64)
        key = device * most + owner
        numbers[key[allocates]] = np.arange(int(allocates.sum()))
        ids = np.where(owner >= 0, numbers[np.maximum(key, 0)], -1)
        phase = np.zeros(len(order), dtype=np.int8)
        step = np.full(len(order), -1, dtype=np.int32)
        for place, number in enumerate(self._file.devices):
            chosen = device == place
            phase[chosen], step[chosen] = phases_and_steps(
                self._file.annotations.get(number, []), time_us[chosen]
            )
        import pyarrow as pa

        def or_null(values: Array) -> Any:
            return pa.array(values, mask=values < 0)

        return {
            "time_ns": (time_us - start) * 1000,
            "event": text(event, EVENTS),
            "id": ids,
            "size": joined["size"],
            "device": text(device, devices),
            "stream": joined["stream"],
            "thread": np.zeros(len(order), dtype=np.int32),
            "pool": joined["pool"],
            "step": step,
            "phase": text(phase, PHASES),
            "stack_id": or_null(joined["stack"]),
            "segment": or_null(joined["segment"]),
            "offset": or_null(joined["offset"]),
            "value": or_null(joined["value"]),
            "label": text(joined["label"], labels).cast(pa.string()),
        }, start

    def _metadata(
        self,
        histories: list[History],
        rows: list[DeviceRows | HostRows],
        start: int,
        waits: int,
    ) -> dict[str, Any]:
        devices = {history.device: _about_device(history) for history in histories}
        host = next((part for part in rows if isinstance(part, HostRows)), None)
        if host is not None:
            devices[HOST] = {"name": None, "capacity": None, "held_by_others": None}
        settings = self._file.settings or {}
        reasons = []
        lost = settings.get("trace_alloc_overflowed")
        most = settings.get("trace_alloc_max_entries")
        if lost:
            ring = f" of {most:,} entries" if type(most) is int and most > 0 else ""
            reasons.append(f"the recorded history was a ring{ring} that overflowed")
        for history, part in zip(histories, rows, strict=False):
            if part.live or history.before.reserved:
                reasons.append(
                    f"the history of {history.device} begins in mid-run: "
                    f"{some(part.live, 'block')} {'was' if part.live == 1 else 'were'} live before "
                    f"it, in {format_bytes(history.before.reserved)} of segments; they are in the "
                    "trace as live events"
                )
        streams = {
            str(number): {"pointer": int(pointer)} for number, pointer in enumerate(self._streams)
        } | {str(len(self._streams) + number): {"inferred": True} for number in range(waits)}
        return {
            "complete": not reasons,
            "lost_events": lost if type(lost) is int and lost > 0 else 0,
            "lost_reason": "; ".join(reasons) or None,
            "unmatched_frees": host.unmatched_frees if host is not None else 0,
            "recorded": list(devices),
            "not_recorded": ["cpu", "threads"],
            "start_wall_clock": self._start(start),
            "streams": streams,
            "pools": {
                str(number): {"id": list(pair)}
                for number, pair in enumerate(self._file.pools)
                if number
            },
            "devices": devices,
            "allocator": {
                "backend": "native",
                "settings": histories[0].settings if self._file.settings is not None else None,
            },
            "stacks": bool(self._file.stacks),
        }

    def _start(self, start: int) -> str | None:
        timed = any(entries.time_us is not None for entries, _ in self._file.devices.values())
        if not timed or not 0 < start < 1 << 52:
            return None
        return (_LONGEST_AGO + timedelta(microseconds=start)).isoformat()


def _about_device(history: History) -> dict[str, Any]:
    """What a trace says of a device; `left_to_pytorch` is known where memory ran out."""
    sign = np.zeros(len(history.action), dtype=np.int64)
    sign[(history.action == MADE) | (history.action == MAPPED)] = 1
    sign[(history.action == GONE) | (history.action == UNMAPPED)] = -1
    reserved = history.before.reserved + np.cumsum(sign * history.size)
    failed = np.flatnonzero(history.action == OOM)
    about: dict[str, Any] = {"name": None, "capacity": None, "held_by_others": None}
    failed = failed[history.address[failed] != NOT_TOLD]
    if failed.size:
        at = failed[-1]
        about["left_to_pytorch"] = int(reserved[at]) + int(history.address[at])
    return about
