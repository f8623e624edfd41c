"""Small traces for tests, right or wrong in one place."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from workbench.recorders.trace import SCHEMA, TraceMetadata, TraceWriter
from workbench.recorders.trace.schema import METADATA_KEY

Event = tuple[str, int, int]
"""(event, id, size)"""

GOOD: list[Event] = [("alloc", 0, 100), ("alloc", 1, 50), ("free", 0, 100), ("alloc", 2, 8)]


def columns(events: list[Event], **changed: Any) -> dict[str, Any]:
    """Columns for `TraceWriter.write`, 10 ns apart; `changed` replaces whole columns."""
    count = len(events)
    made: dict[str, Any] = {
        "time_ns": [10 * place for place in range(count)],
        "event": [event for event, _, _ in events],
        "id": [number for _, number, _ in events],
        "size": [size for _, _, size in events],
        "device": ["cpu"] * count,
        "stream": [0] * count,
        "thread": [0] * count,
        "pool": [0] * count,
        "step": [0] * count,
        "phase": ["forward"] * count,
    }
    return {
        name: pa.array(values, SCHEMA.field(name).type.value_type)
        if pa.types.is_dictionary(SCHEMA.field(name).type)
        else pa.array(values, SCHEMA.field(name).type)
        for name, values in (made | changed).items()
    }


def write_trace(
    path: Path, events: list[Event] | None = None, metadata: Any = None, **changed: Any
) -> Path:
    """A trace of `events` (`GOOD` if None) with columns `changed`."""
    with TraceWriter(path, {"recorded": ["cpu"], **(metadata or {})}) as writer:
        writer.write(columns(GOOD if events is None else events, **changed))
    return path


def write_parquet(
    path: Path,
    table: pa.Table,
    metadata: bytes | None = None,
    **options: Any,
) -> Path:
    """Any table as a Parquet file with `metadata` under the key of traces."""
    if metadata is None:
        metadata = TraceMetadata({"events": table.num_rows}).to_json()
    pq.write_table(table.replace_schema_metadata({METADATA_KEY: metadata}), path, **options)
    return path


def table(events: list[Event] | None = None, **changed: Any) -> pa.Table:
    """The table of a trace, text columns as plain strings, without the columns that may be null."""
    return pa.table(columns(GOOD if events is None else events, **changed))
