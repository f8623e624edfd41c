"""Reads traces as a stream of batches, with the format's rules enforced."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from workbench.common.errors import BrokenFileError, TraceError, UsageError
from workbench.recorders.trace.checks import CORE_COLUMNS, RowChecks, check_schema
from workbench.recorders.trace.locations import Location, find_files
from workbench.recorders.trace.metadata import TraceMetadata
from workbench.recorders.trace.schema import SCHEMA, TEXT_COLUMNS

BATCH_ROWS = 262_144

# What Arrow raises over a broken file: its own errors, and Python's where it has none of its own.
_ARROW_ERRORS = (pa.ArrowException, OSError, ValueError, TypeError, KeyError, MemoryError)

_DAMAGED = "copy it again from where it came from, or record it again"


class TraceFile:
    """One file of a trace: what one process did. Made by `open_trace`.

    Attributes:
        path: the file, as the user named it.
        metadata: what the trace says about itself.
        rows: number of events.
        schema: all columns as `batches` gives them, unknown ones included.
    """

    def __init__(self, location: Location) -> None:
        self.path = location.shown
        self._location = location
        self._text_columns: list[str] = []  # asking for one that is not there is an error
        file = self._open()
        try:
            self._footer = file.metadata
            self.rows: int = self._footer.num_rows
            self._row_groups = [
                self._footer.row_group(number).num_rows
                for number in range(self._footer.num_row_groups)
            ]
            pairs = self._footer.metadata
            found = file.schema_arrow.remove_metadata()
        except _ARROW_ERRORS as error:
            raise self._damaged("its description of itself cannot be read", error) from error
        finally:
            file.close()
        self.metadata = TraceMetadata.from_parquet(self.path, pairs)
        check_schema(self.path, found)
        if self.rows < 0 or min(self._row_groups, default=0) < 0:
            raise self._damaged("it says that it has fewer than 0 rows", None)
        said = self.metadata["events"]
        if sum(self._row_groups) != self.rows or said != self.rows:
            raise TraceError(
                self.path,
                "row-count-differs",
                f"the file has {self.rows} rows in its footer, {sum(self._row_groups)} in its "
                f"row groups, and metadata key 'events' is {said}",
                _DAMAGED,
            )
        self._text_columns = [name for name in TEXT_COLUMNS if name in found.names]
        absent = [field for field in SCHEMA if field.name not in found.names]
        self._absent = {field.name for field in absent}
        self.schema = pa.schema([*(_as_read(field) for field in found), *absent])

    def batches(
        self,
        columns: Sequence[str] | None = None,
        *,
        check: bool = True,
        batch_rows: int = BATCH_ROWS,
    ) -> Iterator[pa.RecordBatch]:
        """All events in order, in batches.

        Args:
            columns: their names; all columns if None. Text columns come as dictionary arrays whose
                dictionary differs from batch to batch; columns of the format that the file lacks
                come as nulls.
            check: whether to enforce the format's rules on the rows as they go by.
            batch_rows: most rows of a batch.

        Raises:
            KeyError: the file has no such column.
            TraceError: a row breaks a rule.
            BrokenFileError: the file cannot be read or is damaged.
        """
        names = self.schema.names if columns is None else list(columns)
        checks = RowChecks(self.path) if check else None
        wanted = list(dict.fromkeys([*names, *CORE_COLUMNS])) if check else names
        row = 0
        for group in range(len(self._row_groups)):
            for batch in self._read_group(group, wanted, batch_rows):
                if checks is not None:
                    checks.check(batch)
                row += batch.num_rows
                yield batch.select(names)
        if row != self.rows:
            raise self._damaged(f"it ends after {row} of {self.rows} rows", None)

    def read_rows(
        self, start: int, stop: int, columns: Sequence[str] | None = None
    ) -> Iterator[pa.RecordBatch]:
        """The rows [`start`, `stop`), read without what lies before; order is not checked.

        Raises:
            KeyError: the file has no such column.
            TraceError: a value that is not allowed in its column.
            BrokenFileError: the file cannot be read or is damaged.
        """
        names = self.schema.names if columns is None else list(columns)
        checks = RowChecks(self.path)
        first = 0
        for group, rows in enumerate(self._row_groups):
            if start < stop and first < stop and start < first + rows:
                row = first
                for batch in self._read_group(group, names, BATCH_ROWS):
                    checks.check_columns(batch, row)
                    end = row + batch.num_rows
                    if row < stop and start < end:
                        skipped = max(start - row, 0)
                        yield batch.slice(skipped, min(stop, end) - row - skipped)
                    row = end
            first += rows

    def _open(self) -> pq.ParquetFile:
        self._check_ends()
        try:
            return pq.ParquetFile(
                self._location.filesystem.open_input_file(self._location.path),
                read_dictionary=self._text_columns,
                page_checksum_verification=True,
                # Buffering ahead keeps whole row groups of every column in memory.
                pre_buffer=False,
            )
        except _ARROW_ERRORS as error:
            raise self._damaged("its description of itself cannot be read", error) from error

    def _check_ends(self) -> None:
        """Tell a file of another kind, or one cut short, from one that is damaged inside."""
        try:
            with self._location.filesystem.open_input_file(self._location.path) as file:
                size = file.size()
                start = file.read(4)
                file.seek(max(size - 4, 0))
                end = file.read(4)
        except OSError as error:
            raise BrokenFileError(
                self.path,
                f"cannot be read ({str(error).splitlines()[0][:200]})",
                "check the name and the permissions",
            ) from error
        if size == 0:
            raise TraceError(self.path, "truncated-file", "is empty", _DAMAGED)
        if start != b"PAR1":
            raise TraceError(
                self.path,
                "not-a-parquet-file",
                "is not a Parquet file",
                "name a trace that `wb record` wrote",
            )
        if end != b"PAR1" or size < 12:
            raise TraceError(
                self.path,
                "truncated-file",
                f"is cut short: its end is missing at byte {size}",
                _DAMAGED,
            )

    def _read_group(
        self, group: int, names: Sequence[str], batch_rows: int
    ) -> Iterator[pa.RecordBatch]:
        fields = [self.schema.field(name) for name in names]
        present = [name for name in names if name not in self._absent]
        file = self._open()
        try:
            batches = file.iter_batches(batch_rows, row_groups=[group], columns=present)
            while True:
                try:
                    batch = next(batches, None)
                    if batch is None:
                        return
                    batch = _complete(batch, fields)
                except _ARROW_ERRORS as error:
                    raise self._damaged(f"row group {group} cannot be read", error) from error
                yield batch
        finally:
            file.close()

    def _damaged(self, problem: str, error: BaseException | None) -> TraceError:
        lines = str(error or "").splitlines()
        detail = f" ({lines[0][:200]})" if lines else ""
        return TraceError(self.path, "damaged-file", f"is damaged: {problem}{detail}", _DAMAGED)


class Trace:
    """A trace: one file, or one for each process or rank. Made by `open_trace`.

    Attributes:
        path: as the user named it.
        files: its files, in order of rank or name.
    """

    def __init__(self, path: str, files: list[TraceFile]) -> None:
        self.path = path
        self.files = files

    @property
    def metadata(self) -> TraceMetadata:
        """The metadata of the first file."""
        return self.files[0].metadata

    @property
    def rows(self) -> int:
        """Number of events in all files."""
        return sum(file.rows for file in self.files)


def open_trace(source: str | Path) -> Trace:
    """Open a trace; only its description is read yet.

    Args:
        source: a file, a folder of files (``rank=0.parquet`` …), or an fsspec URL of either.

    Raises:
        TraceError: a file is not a trace, or breaks a rule of the format.
        BrokenFileError: nothing is there, or it cannot be read.
        MissingPartError: no installed package can read such a URL.
    """
    if not str(source):
        raise UsageError("no trace was named; give a file, a folder or a URL")
    return Trace(str(source), [TraceFile(location) for location in find_files(source)])


def _as_read(field: pa.Field) -> pa.Field:
    """The field as batches have it: known columns as in the schema, whatever the file says."""
    return SCHEMA.field(field.name) if field.name in SCHEMA.names else field


def _complete(batch: pa.RecordBatch, fields: list[Any]) -> pa.RecordBatch:
    """The columns `fields` of `batch`, with nulls for those that the file lacks."""
    columns = []
    for field in fields:
        if field.name not in batch.schema.names:
            columns.append(pa.nulls(batch.num_rows, field.type))
            continue
        columns.append(_as_type(batch.column(field.name), field.type))
    # Nulls where none may be are for the checks to report: not for Arrow to take on trust.
    loose = pa.schema([pa.field(field.name, field.type) for field in fields])
    return pa.RecordBatch.from_arrays(columns, schema=loose)


def _as_type(column: pa.Array, kind: pa.DataType) -> pa.Array:
    if column.type == kind:
        return column
    if not pa.types.is_dictionary(kind):
        return column.cast(kind)
    if not pa.types.is_dictionary(column.type):
        column = column.dictionary_encode()
    return pa.DictionaryArray.from_arrays(
        column.indices.cast(kind.index_type), column.dictionary.cast(kind.value_type), safe=False
    )
