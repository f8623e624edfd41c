"""Reading of CSV files whose every column is taken as text first: what it means is checked here."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import IO, Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv

from workbench.recorders.importers._source import HEAD_BYTES, Progress, Source

MOST_COLUMNS: Final = 64
_BLOCK: Final = 2**23
_BOM: Final = b"\xef\xbb\xbf"


def header(head: bytes) -> list[str]:
    """The names of the columns, stripped, as written; none where there are too many to be ours."""
    line = head.removeprefix(_BOM).split(b"\n", 1)[0]
    if line.count(b",") >= MOST_COLUMNS or (len(line) == len(head) == HEAD_BYTES):
        return []
    return [name.strip().strip('"') for name in line.decode("utf-8", "replace").split(",")]


class Rows:
    """The rows after the header, in batches of text columns.

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
        self._odd: list[Any] = []
        self.cut_short = False
        self.done = 0

    def __iter__(self) -> Iterator[pa.RecordBatch]:
        """The batches.

        Raises:
            BrokenFileError: a row has another number of columns, or is not text.
        """
        with self._source.open(self._progress) as file:
            try:
                for batch in self._reader(file):
                    self._check(self.done + batch.num_rows)
                    yield batch
                    self.done += batch.num_rows
            except (pa.ArrowException, UnicodeDecodeError) as error:
                if "Empty CSV file" not in str(error):
                    raise self._source.broken(
                        f"is not CSV as expected after row {self.done:,} "
                        f"({str(error).splitlines()[0][:150]})"
                    ) from error
        self.cut_short = bool(self._odd)

    def _reader(self, file: IO[bytes]) -> Any:
        def odd(row: Any) -> str:
            if len(self._odd) < 2:
                self._odd.append(row)
            return "skip"

        return pyarrow.csv.open_csv(
            file,
            pyarrow.csv.ReadOptions(
                use_threads=False,
                block_size=_BLOCK,
                skip_rows=1,
                column_names=self._columns,
                encoding="latin1",  # which any byte is, so that our own checks meet them all
            ),
            pyarrow.csv.ParseOptions(invalid_row_handler=odd),
            pyarrow.csv.ConvertOptions(column_types=dict.fromkeys(self._columns, pa.string())),
        )

    def _check(self, rows: int) -> None:
        """Refuse a row of the wrong width, unless it may be the last and cut short."""
        if not self._odd:
            return
        row = self._odd[0]
        is_last = len(self._odd) == 1 and row.number > rows + 1  # the header, and what was read
        if not is_last or row.actual_columns > row.expected_columns:
            raise self._source.broken(
                f"line {row.number} has {row.actual_columns} columns where the header has "
                f"{row.expected_columns}"
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
