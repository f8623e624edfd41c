"""Reading of CSV files whose every column is taken as text first: what it means is checked here."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from typing import IO, Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from workbench.common.errors import BrokenFileError
from workbench.recorders.importers._source import HEAD_BYTES, Progress, Source

MOST_COLUMNS: Final = 64
_BLOCK: Final = 2**23
_LONGEST: Final = 2**20
_COMMA: Final = ord(",")
_NEWLINE: Final = ord("\n")
_BOM: Final = b"\xef\xbb\xbf"


def header(head: bytes) -> list[str]:
    """The names of the columns, stripped, as written; none where there are too many to be ours."""
    line = head.removeprefix(_BOM).split(b"\n", 1)[0]
    if line.count(b",") >= MOST_COLUMNS or (len(line) == len(head) == HEAD_BYTES):
        return []
    return [name.strip().strip('"') for name in line.decode("utf-8", "replace").split(",")]


class Rows:
    """The rows after the header, in batches of text columns; lines without anything are left out.

    A last row that is cut short is left out, because whoever wrote it was killed.

    Args:
        columns: names of all columns of the file, in order.

    Attributes:
        cut_short: whether the last row was; known at the end.
        done: rows before the batch at hand.
    """

    def __init__(self, source: Source, columns: Sequence[str], progress: Progress | None) -> None:
        self._source = source
        self._columns = list(columns)
        self._progress = progress
        self._lines = 0  # before the block at hand
        self.cut_short = False
        self.done = 0

    def __iter__(self) -> Iterator[pa.RecordBatch]:
        """The batches.

        Raises:
            BrokenFileError: a row has another number of columns or a quote without its end, or a
                line is longer than 1 MB.
        """
        with self._source.open(self._progress) as file:
            blocks = self._blocks(file)
            block = next(blocks, b"")
            while block:
                following = next(blocks, b"")
                batch = self._split(block)
                if batch is None:
                    batch = self._parse(block, is_last=not following)
                if batch.num_rows:
                    yield batch
                self.done += batch.num_rows
                self._lines += block.count(b"\n")
                block = following

    def _blocks(self, file: IO[bytes]) -> Iterator[bytes]:
        """Whole lines, each with its end; all but the header."""
        rest = b""
        lines = 0
        is_header = True
        while True:
            block = file.read(_BLOCK)
            is_last = not block
            if is_last and rest:
                block = b"\n"  # the end that the last line may lack
            end = block.rfind(b"\n") + 1
            whole, rest = (rest + block[:end], block[end:]) if end else (b"", rest + block)
            if is_header and whole:
                is_header = False
                lines = self._lines = 1
                whole = whole[whole.index(b"\n") + 1 :]
            if whole:
                lines += whole.count(b"\n")
                yield whole if whole.isascii() else whole.decode("latin1").encode()
            if len(rest) > _LONGEST:
                raise self._too_long(lines + 1)
            if is_last:
                return

    def _too_long(self, line: int) -> BrokenFileError:
        return self._source.broken(f"line {line:,} is longer than 1 MB, as no row is")

    def _split(self, block: bytes) -> pa.RecordBatch | None:
        """The rows where every comma and every line's end is a column's; None where that is not so.

        Arrow's own reader keeps a thread that may outlive a failed import, and Python with it.
        """
        letters = np.frombuffer(block, np.uint8)
        ends = np.flatnonzero((letters == _COMMA) | (letters == _NEWLINE))
        width = len(self._columns)
        rows, over = divmod(len(ends), width)
        is_newline = (letters[ends] == _NEWLINE).reshape(rows, width) if not over else None
        if (
            is_newline is None
            or b'"' in block
            or not is_newline[:, -1].all()
            or is_newline[:, :-1].any()
            or (width == 1 and (np.diff(ends, prepend=-1) == 1).any())
        ):
            return None
        lines = np.diff(ends[width - 1 :: width], prepend=-1)
        if lines.max() > _LONGEST:
            raise self._too_long(self._lines + 1 + int(np.argmax(lines > _LONGEST)))
        offsets = np.zeros(len(ends) + 1, np.int32)
        offsets[1:] = ends + 1
        values = pa.StringArray.from_buffers(len(ends), pa.py_buffer(offsets), pa.py_buffer(block))
        places = np.arange(0, len(ends), width, dtype=np.int32)
        return pa.RecordBatch.from_arrays(
            [
                # Each value still has the comma or the end after it.
                pc.ascii_rtrim(values.take(pa.array(places + column)), ",\r\n")
                for column in range(width)
            ],
            names=self._columns,
        )

    def _parse(self, block: bytes, *, is_last: bool) -> pa.RecordBatch:
        """Whatever `_split` could not: quotes, empty lines, a row cut short; or the reason why."""
        lines = block.decode().split("\n")[:-1]
        width = len(self._columns)
        rows: list[list[str]] = []
        for place, line in enumerate(lines, self._lines + 1):
            if len(line) > _LONGEST:
                raise self._too_long(place)
            if not line.strip("\r"):
                continue
            try:
                (row,) = csv.reader([line], strict=True)
            except (csv.Error, ValueError) as error:
                raise self._source.broken(
                    f"line {place:,} is not CSV, as where a quote has no end"
                ) from error
            if len(row) == width:
                rows.append(row)
                continue
            if len(row) < width and is_last and not any(lines[place - self._lines :]):
                self.cut_short = True
                break
            raise self._source.broken(
                f"line {place:,} has {len(row)} columns where the header has {width}"
            )
        return pa.RecordBatch.from_arrays(
            [pa.array([row[column] for row in rows], pa.string()) for column in range(width)],
            names=self._columns,
        )

    def names(self, batch: pa.RecordBatch, name: str) -> list[str]:
        """A column as text."""
        return [
            value if value.isascii() else value.encode("latin1").decode("utf-8", "replace")
            for value in batch.column(name).to_pylist()
        ]

    def whole_numbers(self, batch: pa.RecordBatch, name: str) -> npt.NDArray[np.int64]:
        """A column as whole numbers, shape (rows,).

        Raises:
            BrokenFileError: one is none, or is beyond 64 bits.
        """
        column = pc.utf8_trim_whitespace(batch.column(name))
        self.require(batch, name, pc.match_substring_regex(column, r"^-?[0-9]{1,19}$"))
        try:
            return np.asarray(column.cast(pa.int64()))
        except pa.ArrowException as error:
            raise self._source.broken(
                f"column {name} has a number beyond 64 bits after row {self.done:,}"
            ) from error

    def require(self, batch: pa.RecordBatch, name: str, good: Any) -> None:
        """Refuse the file over the first value of a column where `good` does not hold."""
        good = np.asarray(good, bool)
        if not good.all():
            place = int(np.argmin(good))
            value = batch.column(name)[place].as_py()
            raise self._source.broken(
                f"row {self.done + place:,} (counted from 0), column {name}: {value[:60]!r} is not "
                "what belongs there"
            )
