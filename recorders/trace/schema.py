"""The columns and events of trace format version 1."""

from __future__ import annotations

from typing import Final

import pyarrow as pa

FORMAT_VERSION: Final = 1
METADATA_KEY: Final = b"workbench.trace"
ROW_GROUP_ROWS: Final = 1_000_000

_TEXT: Final = pa.dictionary(pa.int32(), pa.string())

SCHEMA: Final = pa.schema(
    [
        pa.field("time_ns", pa.int64(), nullable=False),
        pa.field("event", _TEXT, nullable=False),
        pa.field("id", pa.int64(), nullable=False),
        pa.field("size", pa.int64(), nullable=False),
        pa.field("device", _TEXT, nullable=False),
        pa.field("stream", pa.int32(), nullable=False),
        pa.field("thread", pa.int32(), nullable=False),
        pa.field("pool", pa.int32(), nullable=False),
        pa.field("step", pa.int32(), nullable=False),
        pa.field("phase", _TEXT, nullable=False),
        pa.field("scope", _TEXT),
        pa.field("stack_id", pa.int32()),
        pa.field("segment", pa.int32()),
        pa.field("offset", pa.int64()),
        pa.field("duration_ns", pa.int64()),
        pa.field("value", pa.int64()),
        pa.field("label", pa.string()),
    ]
)
"""Every column; those that may be null may also be absent from a file."""

REQUIRED: Final = tuple(field.name for field in SCHEMA if not field.nullable)
TEXT_COLUMNS: Final = tuple(field.name for field in SCHEMA if field.type == _TEXT)

LOWEST: Final = {
    "time_ns": 0,
    "id": -1,
    "size": 0,
    "stream": -1,
    "thread": 0,
    "pool": 0,
    "step": -1,
    "stack_id": 0,
    "segment": 0,
    "offset": 0,
    "duration_ns": 0,
}
"""The lowest number a column may hold."""

EVENTS: Final = (
    # memory, and marks: what CPU recordings tell of comes first
    "alloc",
    "free",
    "mark",
    "live",
    "free_completed",
    "oom",
    # order of work
    "record_stream",
    "synchronize",
    "event_record",
    "event_wait",
    # control
    "empty_cache",
    "set_fraction",
    "pool_begin",
    "pool_end",
    "pool_release",
    "capture_begin",
    "capture_end",
    "graph_replay",
    # observed
    "segment_alloc",
    "segment_free",
    "segment_map",
    "segment_unmap",
    "query",
    "sample",
)
"""Names of events this version knows, in the order of the spool's numbers; others are kept."""

PHASES: Final = ("other", "forward", "backward", "optimizer", "data")
"""Names of phases, in the order of the spool's numbers."""
