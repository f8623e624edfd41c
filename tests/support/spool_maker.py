"""Writes spools as the hook does, for tests of what reads them (layout: hook/spool_format.h)."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

ALLOC, FREE, CONTEXT, THREAD, MARK, DETAIL, DEVICE = 1, 2, 3, 4, 5, 6, 7
PINNED, CUDA = 1, 2
"""Devices; CUDA + 1 is ``cuda:1``."""
EVENTS = [
    "alloc",
    "free",
    "mark",
    "live",
    "free_completed",
    "oom",
    "record_stream",
    "synchronize",
    "event_record",
    "event_wait",
    "empty_cache",
    "set_fraction",
    "pool_begin",
    "pool_end",
    "pool_release",
    "capture_begin",
    "capture_end",
    "graph_replay",
    "segment_alloc",
    "segment_free",
    "segment_map",
    "segment_unmap",
    "query",
    "sample",
]
MAGIC = b"WBSPOOL1"


def record(
    ticks: int, kind: int, address: int = 0, value: int = 0, scope: int = 0, stack: int = 0
) -> bytes:
    return struct.pack("<QQIIQ", ticks, address, scope, stack, value << 8 | kind)


def alloc(ticks: int, address: int, size: int, scope: int = 0, stack: int = 0) -> bytes:
    return record(ticks, ALLOC, address, size, scope, stack)


def free(ticks: int, address: int, scope: int = 0) -> bytes:
    return record(ticks, FREE, address, 0, scope)


def context(ticks: int, phase: int, step: int) -> bytes:
    return record(ticks, CONTEXT, phase, step & (2**48 - 1))


def thread(ticks: int, number: int, thread_id: int) -> bytes:
    return record(ticks, THREAD, thread_id, number)


def mark(ticks: int, label: int) -> bytes:
    return record(ticks, MARK, 0, label)


def detail(
    event: int,
    device: int,
    stream: int = 0,
    pool: int = 0,
    duration: int = 0,
    value: int | None = None,
) -> bytes:
    has_value, number = value is not None, value or 0
    return struct.pack(
        "<QiIHHIQ", duration, stream, pool, device, event, has_value, number << 8 | DETAIL
    )


def device(
    ticks: int,
    event: str,
    device: int = CUDA,
    *,
    address: int = 0,
    size: int = 0,
    stream: int = 0,
    pool: int = 0,
    duration: int = 0,
    value: int | None = None,
    stack: int = 0,
) -> bytes:
    """What the hook writes for an event of a device: two records."""
    first = detail(EVENTS.index(event), device, stream, pool, duration, value)
    return first + record(ticks, DEVICE, address, size, 0, stack)


def header(number: int, sequence: int, thread_id: int = 0, closed: bool = False) -> bytes:
    return struct.pack(
        "<8sIIQQQ24x", MAGIC, 1, number, thread_id or 1000 + number, sequence, closed
    )


@dataclass
class Control:
    """The control page; ticks run at two for each nanosecond."""

    first: tuple[int, int] = (0, 0)
    last: tuple[int, int] = (2_000_000, 1_000_000)
    clock_kind: int = 0
    stop_reason: int = 0
    ended: int = 1
    lost_events: int = 0
    zero_byte_allocs: int = 0
    forked_children: int = 0
    steps_seen: int = 1
    process_id: int = 4321
    removed_bytes: int = 0

    def to_bytes(self) -> bytes:
        return struct.pack(
            "<8sIIIIQQQQQQQQQQ",
            MAGIC,
            1,
            self.process_id,
            self.clock_kind,
            self.stop_reason,
            *self.first,
            *self.last,
            self.ended,
            self.lost_events,
            self.zero_byte_allocs,
            self.forked_children,
            self.steps_seen,
            self.removed_bytes,
        )


@dataclass
class Segment:
    number: int
    """Of the thread it was made for."""
    records: Sequence[bytes]
    spare_bytes: int = 320
    """Zeros after the last record: files are allocated ahead."""
    sequence: int | None = None
    closed: bool = False


@dataclass
class Spool:
    folder: Path
    control: Control = field(default_factory=Control)

    def write(
        self, segments: Iterable[Segment], names: Sequence[tuple[str, int, str]] = ()
    ) -> Path:
        """Write a process's folder and return it."""
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / "control").write_bytes(self.control.to_bytes().ljust(4096, b"\0"))
        for place, segment in enumerate(segments):
            sequence = place if segment.sequence is None else segment.sequence
            content = header(segment.number, sequence, closed=segment.closed) + b"".join(
                segment.records
            )
            (self.folder / f"events-{sequence}").write_bytes(content + bytes(segment.spare_bytes))
        lines = [
            json.dumps({"kind": kind, "id": number, "text": text}) for kind, number, text in names
        ]
        (self.folder / "names").write_text("".join(f"{line}\n" for line in lines))
        return self.folder
