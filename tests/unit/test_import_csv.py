"""How CSV files are read: in blocks of whole lines, whatever is in them."""

from __future__ import annotations

import csv
import gzip
import io
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from workbench.common.errors import BrokenFileError
from workbench.importing import import_file
from workbench.recorders.importers import Source, _csv
from workbench.recorders.importers._csv import Rows

RMM = "Thread,Time,Action,Pointer,Size,Stream\n"
ROW = "1,00:00:00.1,allocate,0x10,64,0x0\n"


def rows_of(path: Path, content: bytes, columns: str = "ab") -> tuple[list[list[str]], Rows]:
    path.write_bytes(content)
    rows = Rows(Source(path), list(columns), None)
    found = []
    for batch in rows:
        found += [list(row.values()) for row in batch.to_pylist()]
    return found, rows


def refused(path: Path, content: bytes, words: str, columns: str = "ab") -> None:
    with pytest.raises(BrokenFileError) as caught:
        rows_of(path, content, columns)
    assert words in str(caught.value)
    assert "straddl" not in str(caught.value)


@pytest.fixture(params=[3, 16, 2**23])
def small_blocks(request: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_csv, "_BLOCK", request.param)


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize(
    ("content", "expected", "cut_short"),
    [
        ("x,y\n1,2\n3,4\n", [["1", "2"], ["3", "4"]], False),
        ("x,y\n1,2\n3,4", [["1", "2"], ["3", "4"]], False),
        ("x,y\r\n1,2\r\n\r\n3,4\r\n", [["1", "2"], ["3", "4"]], False),
        ("\ufeffx,y\n,\n \t, \n", [["", ""], [" \t", " "]], False),
        ('x,y\n"1,5",2\n3,"4"\n', [["1,5", "2"], ["3", "4"]], False),
        ("x,y\n1,2\n3", [["1", "2"]], True),
        ("x,y\n1,2\n3\n\n", [["1", "2"]], True),
        ("x,y\n3", [], True),
        ("x,y\n", [], False),
        ("x,y", [], False),
    ],
)
def test_rows(content: str, expected: list[list[str]], cut_short: bool, tmp_path: Path) -> None:
    found, rows = rows_of(tmp_path / "a.csv", content.encode())
    assert found == expected
    assert (rows.cut_short, rows.done) == (cut_short, len(expected))


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("x,y\n1,2\n3,4,5\n6,7\n", "line 3 has 3 columns where the header has 2"),
        ("x,y\n1,2\n\n3\n6,7\n", "line 4 has 1 columns where the header has 2"),
        ("x,y\n1,2\n3,4,5", "line 3 has 3 columns"),
        ("x,y\n1,2\n3\n4\n", "line 3 has 1 columns"),
        ('x,y\n1,"2\n3",4\n', "line 2 is not CSV, as where a quote has no end"),
    ],
)
def test_broken_rows_are_refused_by_their_line(content: str, words: str, tmp_path: Path) -> None:
    refused(tmp_path / "a.csv", content.encode(), words)


@pytest.mark.parametrize("quote", ["", '"'])
def test_a_line_too_long_is_refused_by_its_number(quote: str, tmp_path: Path) -> None:
    long = f"{quote}{'1' * 2_000_000}{quote},2\n"
    refused(tmp_path / "a.csv", f"x,y\n1,2\n{long}3,4\n".encode(), "line 3 is longer than 1 MB")
    many = "1,2\n" * 3_000_000
    refused(tmp_path / "b.csv", f"x,y\n{many}{long}".encode(), "line 3,000,002 is longer")
    endless = gzip.compress(b"x,y\n1,2\n" + b"1" * 100_000_000, 1)
    refused(tmp_path / "c.csv.gz", endless, "line 3 is longer than 1 MB")


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.lists(st.text("ab1 ,\"é\xff'", max_size=5), min_size=3, max_size=3), max_size=8),
    st.integers(1, 40),
    st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]),
)
def test_what_was_written_is_read(
    tmp_path_factory: pytest.TempPathFactory, written: list[list[str]], block: int, quoting: Any
) -> None:
    file = io.StringIO()
    csv.writer(file, quoting=quoting).writerows([["x", "y", "z"], *written])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_csv, "_BLOCK", block)
        path = tmp_path_factory.getbasetemp() / "written.csv"
        found, _ = rows_of(path, file.getvalue().encode("latin1"), "xyz")
    assert found == written


def imported(folder: Path, content: str) -> list[str]:
    (folder / "log.dev0.csv").write_text(content)
    return import_file(folder / "log.dev0.csv", folder / "run.parquet", force=True).notes


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ("", "holds no row;"),
        ("1,00:00", "holds no whole row, and ends in the middle of its first one"),
        ("1,00:00:00.1,allocate,0x10,64,0x0,7,8\n", "line 2 has 8 columns where the header has 6"),
        (ROW.replace("00:00:00", "25:00:00"), "'25:00:00.1' is not what belongs there"),
        (ROW.replace("00:00:00", "00:61:00"), "'00:61:00.1' is not what belongs there"),
    ],
)
def test_logs_of_rmm_that_cannot_be_used(rows: str, words: str, tmp_path: Path) -> None:
    with pytest.raises(BrokenFileError) as caught:
        imported(tmp_path, RMM + rows)
    assert words in str(caught.value)


def test_an_allocation_of_rmm_at_the_null_pointer_is_noted(tmp_path: Path) -> None:
    assert not any("null" in note for note in imported(tmp_path, RMM + ROW))
    notes = imported(tmp_path, RMM + ROW + ROW.replace("0x10", "(nil)"))
    assert any(note.startswith("1 allocation of more than 0 bytes at the null") for note in notes)
