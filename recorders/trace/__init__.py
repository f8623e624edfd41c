"""The trace format: one Parquet file per recorded process (docs/trace-format.md)."""

from __future__ import annotations

from workbench.recorders.trace.metadata import TraceMetadata
from workbench.recorders.trace.reader import Trace, TraceFile, open_trace
from workbench.recorders.trace.schema import EVENTS, PHASES, SCHEMA
from workbench.recorders.trace.writer import TraceWriter

__all__ = [
    "EVENTS",
    "PHASES",
    "SCHEMA",
    "Trace",
    "TraceFile",
    "TraceMetadata",
    "TraceWriter",
    "open_trace",
]
