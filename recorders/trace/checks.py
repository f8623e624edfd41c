"""The rules on rows, checked batch by batch while a trace is read.

The rules on the order of rows (ids, frees, times) are checked in C++, in memory that is bounded by
the live set. Each rule has a name, listed with its message in docs/trace-format.md.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from workbench.common.errors import TraceError
from workbench.recorders._native import TraceChecker
from workbench.recorders.trace.schema import LOWEST, REQUIRED, SCHEMA

CORE_COLUMNS: Final = ("time_ns", "event", "id", "size", "device")
"""Columns that the rules on the order of rows need."""

OPS: Final = {"alloc": 1, "live": 1, "free": 2, "free_completed": 3, "record_stream": 4}
"""Events that the rules are about, as numbers of ``TraceOp`` in trace_batch.h; others are 0."""

_REMEDY: Final = "the trace is damaged or was written by a faulty tool: record it again"

# In the order of TraceRule in trace_checker.h: name, column, message.
_ORDER_RULES: Final = (
    ("negative-time", "time_ns", "time {value} ns is before the start of the recording"),
    ("time-goes-backwards", "time_ns", "time {value} ns comes after {expected} ns"),
    ("negative-size", "size", "size is {value} bytes"),
    ("missing-id", "id", "this event needs an id, it has {value}"),
    ("allocated-twice", "id", "id {value} is allocated a second time"),
    ("id-skipped", "id", "id {value} is allocated where {expected} is the next in order"),
    ("freed-twice", "id", "id {value} is freed a second time"),
    ("freed-before-allocated", "id", "id {value} is freed and was never allocated"),
    ("free-size-differs", "size", "{value} bytes are freed of an allocation of {expected}"),
    ("free-device-differs", "device", "the free names another device than its allocation"),
    ("completed-before-freed", "id", "the free of id {value} completes before it is freed"),
    ("completed-twice", "id", "the free of id {value} completes a second time"),
    ("use-of-unknown-id", "id", "id {value} is used and not live"),
    ("too-many-live-bytes", "size", "with {value} bytes more than {expected} bytes are live"),
)


def row_error(path: str, rule: str, row: int, column: str, problem: str) -> TraceError:
    """The error of a rule that `row` (counted from 0 over the file) of `column` breaks."""
    return TraceError(path, rule, f"row {row}, column {column}: {problem}", _REMEDY)


class TextCodes:
    """Gives each text of a dictionary column one number, the same in all batches of a trace."""

    def __init__(self) -> None:
        self.texts: list[str | None] = []
        self._codes: dict[str | None, int] = {}
        self._last: tuple[pa.Array, npt.NDArray[np.int32]] | None = None

    def code(self, text: str | None) -> int:
        """The number of `text`, given out if it is new."""
        code = self._codes.setdefault(text, len(self.texts))
        if code == len(self.texts):
            self.texts.append(text)
        return code

    def encode(self, column: pa.DictionaryArray) -> npt.NDArray[np.int32]:
        """One number for each row of `column`; -1 where it is null."""
        dictionary = column.dictionary
        if self._last is None or not self._last[0].equals(dictionary):
            codes = np.fromiter((self.code(text) for text in dictionary.to_pylist()), np.int32)
            self._last = (dictionary, np.append(codes, np.int32(-1)))
        # The last entry stands for null: -1 as an index reaches it.
        indices = column.indices
        if column.null_count:
            indices = indices.fill_null(-1)
        codes_of_rows: npt.NDArray[np.int32] = self._last[1][indices.to_numpy(zero_copy_only=False)]
        return codes_of_rows


@dataclass
class RowChecks:
    """Checks the batches of one file in order.

    Args:
        path: the file, for messages.
    """

    path: str

    def __post_init__(self) -> None:
        self._checker = TraceChecker()
        self._events = TextCodes()
        self._devices = TextCodes()
        self._row = 0

    def check(self, batch: pa.RecordBatch) -> None:
        """Check the next batch, which must have `CORE_COLUMNS`.

        Raises:
            TraceError: a row breaks a rule.
        """
        self.check_columns(batch, self._row)
        events = self._events.encode(batch.column("event"))
        ops = np.array([OPS.get(text or "", 0) for text in self._events.texts], np.uint8)
        broken = self._checker.check(
            batch.column("time_ns").to_numpy(),
            ops[events] if len(events) else events.astype(np.uint8),
            batch.column("id").to_numpy(),
            batch.column("size").to_numpy(),
            self._devices.encode(batch.column("device")),
        )
        if broken is not None:
            number, row, value, expected = broken
            rule, column, problem = _ORDER_RULES[number]
            raise row_error(
                self.path,
                rule,
                self._row + row,
                column,
                problem.format(value=value, expected=expected),
            )
        self._row += batch.num_rows

    def check_columns(self, batch: pa.RecordBatch, first_row: int) -> None:
        """Check each column by itself: nulls, dictionaries, text, lowest values.

        Args:
            batch: rows of the file, any columns.
            first_row: the number of its first row in the file.

        Raises:
            TraceError: a row breaks a rule.
        """
        for name, column in zip(batch.schema.names, batch.columns, strict=True):
            if name not in SCHEMA.names:
                continue
            if column.null_count and name in REQUIRED:
                row = int(np.argmax(column.is_null().to_numpy(zero_copy_only=False)))
                raise row_error(self.path, "null-value", first_row + row, name, "there is no value")
            if pa.types.is_dictionary(column.type):
                self._check_dictionary(name, column, first_row)
            elif pa.types.is_string(column.type):
                self._check_text(name, column, first_row)
            elif name in LOWEST and name not in CORE_COLUMNS:
                self._check_lowest(name, column, first_row)

    def _check_lowest(self, name: str, column: pa.Array, first_row: int) -> None:
        lowest = pc.min(column).as_py()
        if lowest is not None and lowest < LOWEST[name]:
            raise row_error(
                self.path,
                "value-too-low",
                first_row + pc.index(column, lowest).as_py(),
                name,
                f"{lowest} is below {LOWEST[name]}, the lowest value",
            )

    def _check_dictionary(self, name: str, column: pa.DictionaryArray, first_row: int) -> None:
        bounds = pc.min_max(column.indices).as_py()
        lowest, highest, size = bounds["min"], bounds["max"], len(column.dictionary)
        if highest is not None and (lowest < 0 or highest >= size):
            bad = lowest if lowest < 0 else highest
            raise row_error(
                self.path,
                "bad-dictionary-index",
                first_row + pc.index(column.indices, bad).as_py(),
                name,
                f"entry {bad} of a dictionary of {size} entries",
            )
        if column.dictionary.null_count and highest is not None:
            raise row_error(
                self.path, "null-value", first_row, name, "its dictionary holds an entry of nothing"
            )
        self._check_text(name, column.dictionary, first_row)

    def _check_text(self, name: str, texts: pa.Array, first_row: int) -> None:
        try:
            texts.validate(full=True)
        except pa.ArrowInvalid as error:
            raise row_error(
                self.path, "bad-text", first_row, name, "from here on, text that is not UTF-8"
            ) from error


def check_schema(path: str, schema: pa.Schema) -> None:
    """Check that a file's columns are those of the format; columns it does not know are let be.

    Args:
        path: the file, for messages.
        schema: as it is read, text columns as dictionaries.

    Raises:
        TraceError: a column is missing, there twice, or of another type.
    """
    counts = Counter(schema.names)
    for name, count in counts.items():
        if count > 1:
            raise _schema_error(path, "double-column", f"column {name} is there {count} times")
    for field in SCHEMA:
        if field.name not in counts and not field.nullable:
            raise _schema_error(path, "missing-column", f"column {field.name} is missing")
        if field.name in counts and not _same_type(schema.field(field.name).type, field.type):
            raise _schema_error(
                path,
                "wrong-column-type",
                f"column {field.name} has type {schema.field(field.name).type}, not {field.type}",
            )


def _same_type(found: Any, wanted: Any) -> bool:
    """Whether a column may have type `found`: text as pandas writes it back is as good."""
    if pa.types.is_dictionary(wanted):
        wanted = wanted.value_type
        found = found.value_type if pa.types.is_dictionary(found) else found
    if pa.types.is_string(wanted):
        return bool(pa.types.is_string(found) or pa.types.is_large_string(found))
    return bool(found == wanted)


def _schema_error(path: str, rule: str, problem: str) -> TraceError:
    return TraceError(
        path, rule, problem, "write it with workbench.recorders.trace.TraceWriter, or record again"
    )
