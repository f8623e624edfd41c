"""Writes a trace as a stream; the file appears whole or not at all."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from workbench.common.errors import RunError, UsageError
from workbench.common.files import replaced_file
from workbench.recorders.trace.metadata import TraceMetadata
from workbench.recorders.trace.schema import (
    METADATA_KEY,
    REQUIRED,
    ROW_GROUP_ROWS,
    SCHEMA,
)

_DELTA_COLUMNS = ("time_ns", "id", "offset", "duration_ns")
_DICTIONARY_COLUMNS = [field.name for field in SCHEMA if field.name not in _DELTA_COLUMNS]


def parquet_options() -> dict[str, Any]:
    """How traces are encoded: together these keep a default trace below 3 bytes per event."""
    return {
        "compression": "zstd",
        "compression_level": 9,
        "use_dictionary": _DICTIONARY_COLUMNS,
        "column_encoding": dict.fromkeys(_DELTA_COLUMNS, "DELTA_BINARY_PACKED"),
        # A flipped bit is then found where it is, instead of read as another number.
        "write_page_checksum": True,
        "write_statistics": ["time_ns", "id", "step"],
    }


class TraceWriter:
    """Writes columns of events to `path`, in bounded memory; a context manager.

    The file is written beside `path` and renamed onto it when the block ends without an error.

    Args:
        path: a local ``.parquet`` file; an existing one is replaced at the end.
        metadata: see `TraceMetadata`; ``events`` is filled in. `metadata` of the writer may be
            changed until the block ends.

    Raises:
        UsageError: the folder of `path` is missing or read-only, or `path` is a folder.
        RunError: writing failed, as on a full disk; nothing half-written is left.
    """

    def __init__(self, path: str | Path, metadata: Mapping[str, Any]) -> None:
        self.path = Path(path)
        self.metadata = TraceMetadata(metadata)
        self.rows = 0
        self._pending: list[pa.RecordBatch] = []
        self._pending_rows = 0
        self._cleanup = contextlib.ExitStack()

    def __enter__(self) -> Self:
        if self.path.is_dir():
            raise UsageError(
                f"{self.path}: is a folder; name a file, as in {self.path}/run.parquet"
            )
        part = self._cleanup.enter_context(replaced_file(self.path))
        try:
            self._sink = pa.OSFile(str(part), "wb")
        except OSError as error:
            raise UsageError(
                f"{self.path}: cannot be created ({_reason(error)}); name a file in a folder that "
                "exists and can be written to"
            ) from error
        self._writer = pq.ParquetWriter(self._sink, SCHEMA, **parquet_options())
        return self

    def write(self, columns: Mapping[str, Any]) -> None:
        """Append rows.

        Args:
            columns: an array (numpy, Arrow or list) for each column, all of one length; columns
                that may be null may be left out, text columns may be dictionary arrays.

        Raises:
            ValueError: a column is missing, unknown, or of another length.
            RunError: the disk is full, or writing fails for another reason.
        """
        batch = _to_batch(columns)
        for start in range(0, batch.num_rows, ROW_GROUP_ROWS):
            part = batch.slice(start, ROW_GROUP_ROWS)
            self._pending.append(part)
            self._pending_rows += part.num_rows
            if self._pending_rows >= ROW_GROUP_ROWS:
                self._flush()
        self.rows += batch.num_rows

    def _flush(self) -> None:
        # Chunks with dictionaries of their own would make Parquet give up on dictionaries.
        table = pa.Table.from_batches(self._pending).unify_dictionaries()
        self._pending.clear()
        self._pending_rows = 0
        with self._reported():
            self._writer.write_table(table, row_group_size=2 * ROW_GROUP_ROWS)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if error is not None:
            self._abandon()
            self._cleanup.__exit__(kind, error, traceback)
            return
        try:
            if self._pending_rows:
                self._flush()
            self.metadata["events"] = self.rows
            with self._reported():
                self._writer.add_key_value_metadata({METADATA_KEY: self.metadata.to_json()})
                self._writer.close()
                self._sink.close()
        except BaseException as failure:
            self._abandon()
            self._cleanup.__exit__(type(failure), failure, failure.__traceback__)
            raise
        with self._reported():
            self._cleanup.close()

    def _abandon(self) -> None:
        """Let go of the file without a complaint: it is about to be removed."""
        with contextlib.suppress(OSError, pa.ArrowException):
            self._writer.close()
        self._writer.is_open = False
        with contextlib.suppress(OSError, pa.ArrowException):
            self._sink.close()

    @contextlib.contextmanager
    def _reported(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise RunError(
                f"{self.path}: the trace could not be written ({_reason(error)}); make room, or "
                "name a file on another disk"
            ) from error


def _reason(error: OSError) -> str:
    """What the system says, without Arrow's account of where in its code."""
    return os.strerror(error.errno) if error.errno else str(error).splitlines()[0]


def _to_batch(columns: Mapping[str, Any]) -> pa.RecordBatch:
    unknown = [name for name in columns if name not in SCHEMA.names]
    missing = [name for name in REQUIRED if name not in columns]
    if unknown or missing:
        raise ValueError(f"columns missing: {missing}; columns unknown: {unknown}")
    rows = len(columns["time_ns"])
    arrays = []
    for field in SCHEMA:
        array = _to_array(columns[field.name], field) if field.name in columns else None
        if array is None:
            array = pa.nulls(rows, field.type)
        if len(array) != rows:
            raise ValueError(f"column {field.name} has {len(array)} rows, time_ns has {rows}")
        arrays.append(array)
    return pa.RecordBatch.from_arrays(arrays, schema=SCHEMA)


def _to_array(values: Any, field: pa.Field) -> pa.Array:
    if isinstance(values, pa.ChunkedArray):
        values = values.combine_chunks()
    if not isinstance(values, pa.Array):
        values = pa.array(
            np.ascontiguousarray(values) if isinstance(values, np.ndarray) else values
        )
    if values.type == field.type:
        return values
    if pa.types.is_dictionary(field.type) and not pa.types.is_dictionary(values.type):
        values = values.cast(pa.string()).dictionary_encode()
    return values.cast(field.type)
