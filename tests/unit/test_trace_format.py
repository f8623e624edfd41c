"""Traces that are right: what is written is read, wherever it lies."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from trace_maker import GOOD, columns, table, write_parquet, write_trace

from workbench.common.errors import BrokenFileError, UsageError
from workbench.recorders.trace import SCHEMA, TraceFile, TraceMetadata, TraceWriter, open_trace


def rows_of(file: TraceFile, **options: Any) -> list[dict[str, Any]]:
    return [row for batch in file.batches(**options) for row in batch.to_pylist()]


def test_what_is_written_is_read(tmp_path: Path) -> None:
    path = write_trace(tmp_path / "run.parquet", scope=["a", None, "b", "a"])
    trace = open_trace(path)
    (file,) = trace.files
    rows = rows_of(file)
    assert [(row["event"], row["id"], row["size"]) for row in rows] == GOOD
    assert [row["scope"] for row in rows] == ["a", None, "b", "a"]
    assert rows[0]["stack_id"] is None
    assert (trace.rows, trace.metadata["events"], file.path) == (4, 4, str(path))
    assert next(file.batches()).schema.names == SCHEMA.names


def test_columns_come_in_the_order_asked_for(tmp_path: Path) -> None:
    (file,) = open_trace(write_trace(tmp_path / "run.parquet")).files
    for check in (True, False):
        batch = next(file.batches(["size", "label", "event"], check=check))
        assert batch.schema.names == ["size", "label", "event"]
        assert batch.to_pylist()[0] == {"size": 100, "label": None, "event": "alloc"}
    with pytest.raises(KeyError):
        next(file.batches(["no_such_column"]))


def test_encodings_are_those_of_the_format(tmp_path: Path) -> None:
    group = pq.ParquetFile(write_trace(tmp_path / "run.parquet")).metadata.row_group(0)
    encodings = {
        group.column(n).path_in_schema: group.column(n).encodings for n in range(group.num_columns)
    }
    for name in ("time_ns", "id"):
        assert "DELTA_BINARY_PACKED" in encodings[name]
    for name in ("event", "device", "phase", "scope"):
        assert "RLE_DICTIONARY" in encodings[name]
    assert {group.column(n).compression for n in range(group.num_columns)} == {"ZSTD"}


def test_many_writes_with_their_own_dictionaries_make_few_row_groups(tmp_path: Path) -> None:
    rows = 300_000
    with TraceWriter(tmp_path / "run.parquet", {}) as writer:
        for part in range(5):
            ids = np.arange(rows) + part * rows
            texts = pa.DictionaryArray.from_arrays(np.zeros(rows, np.int32), [f"scope {part}"])
            writer.write(
                {
                    "time_ns": ids,
                    "event": pa.array(["alloc"]).take(np.zeros(rows, np.int64)),
                    "id": ids,
                    "size": ids % 1000,
                    "device": pa.array(["cpu"]).take(np.zeros(rows, np.int64)),
                    "scope": texts,
                    "phase": pa.array(["other"]).take(np.zeros(rows, np.int64)),
                    **{
                        name: np.zeros(rows, np.int32)
                        for name in ("stream", "thread", "pool", "step")
                    },
                }
            )
    footer = pq.ParquetFile(tmp_path / "run.parquet").metadata
    assert [footer.row_group(n).num_rows for n in range(footer.num_row_groups)] == [
        1_200_000,
        300_000,
    ]
    (file,) = open_trace(tmp_path / "run.parquet").files
    seen = [batch.column("scope")[0].as_py() for batch in file.batches(batch_rows=rows)]
    assert (seen[0], seen[-1]) == ("scope 0", "scope 4")
    assert next(file.read_rows(1_250_000, 1_250_001)).to_pylist()[0]["id"] == 1_250_000


def test_rows_are_read_from_the_middle(tmp_path: Path) -> None:
    (file,) = open_trace(write_trace(tmp_path / "run.parquet")).files
    found = [row["id"] for batch in file.read_rows(1, 3) for row in batch.to_pylist()]
    assert found == [1, 0]
    assert list(file.read_rows(2, 2)) == []


def test_unknown_columns_events_and_keys_are_kept(tmp_path: Path) -> None:
    events = [*GOOD, ("teleport", -1, 0)]
    odd = table(events).append_column("colour", pa.array([1, 2, 3, 4, 5], pa.int16()))
    metadata = TraceMetadata({"events": 5, "mood": "good"}).to_json()
    (file,) = open_trace(write_parquet(tmp_path / "run.parquet", odd, metadata)).files
    rows = rows_of(file)
    assert (rows[-1]["event"], rows[-1]["colour"]) == ("teleport", 5)
    assert file.metadata["mood"] == "good"
    assert next(file.batches(["colour"])).column(0).type == pa.int16()


def test_a_file_of_another_writer_may_lack_columns_and_dictionaries(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "run.parquet", table(), use_dictionary=False)
    (file,) = open_trace(path).files
    assert next(file.batches()).column("event").type == SCHEMA.field("event").type
    assert rows_of(file)[1]["scope"] is None


def test_zero_events(tmp_path: Path) -> None:
    with TraceWriter(tmp_path / "run.parquet", {}):
        pass
    assert rows_of(open_trace(tmp_path / "run.parquet").files[0]) == []


def test_every_memory_event_of_a_full_life(tmp_path: Path) -> None:
    events = [
        ("live", 0, 8),
        ("record_stream", 0, 0),
        ("free", 0, 8),
        ("free_completed", 0, 0),
        ("alloc", 1, 0),
        ("oom", -1, 2**40),
    ]
    (file,) = open_trace(write_trace(tmp_path / "run.parquet", events)).files
    assert len(rows_of(file)) == 6


def test_a_folder_is_one_trace_in_order_of_rank(tmp_path: Path) -> None:
    for rank in (10, 9, 0):
        write_trace(tmp_path / f"rank={rank}.parquet", metadata={"rank": rank})
    write_parquet(tmp_path / "rank=0.stacks.parquet", pa.table({"stack": ["a"]}))
    (tmp_path / ".rank=1.parquet.77.part").write_text("left over")
    (tmp_path / "notes.txt").write_text("not a trace")
    trace = open_trace(tmp_path)
    assert [file.metadata["rank"] for file in trace.files] == [0, 9, 10]
    assert trace.metadata["rank"] == 0
    assert trace.rows == 12


def test_an_empty_folder_and_a_missing_file_are_errors(tmp_path: Path) -> None:
    with pytest.raises(BrokenFileError, match=r"without any \.parquet trace"):
        open_trace(tmp_path)
    with pytest.raises(BrokenFileError, match="no such file"):
        open_trace(tmp_path / "run.parquet")


@pytest.mark.parametrize("kind", ["file", "memory"])
def test_urls(tmp_path: Path, kind: str) -> None:
    fsspec = pytest.importorskip("fsspec")
    path = write_trace(tmp_path / "run.parquet")
    if kind == "file":
        folder = path.parent.as_uri()
    else:
        folder = "memory://traces"
        with fsspec.open(f"{folder}/run.parquet", "wb") as file:
            file.write(path.read_bytes())
    assert len(rows_of(open_trace(f"{folder}/run.parquet").files[0])) == 4
    assert open_trace(folder).files[0].path == f"{folder}/run.parquet"
    with pytest.raises(BrokenFileError):
        open_trace(f"{folder}/other.parquet")


def test_a_url_of_no_known_kind_is_an_error() -> None:
    pytest.importorskip("fsspec")
    with pytest.raises(BrokenFileError, match="URL"):
        open_trace("gopher://somewhere/run.parquet")


def test_an_error_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = write_trace(tmp_path / "run.parquet")
    before = path.read_bytes()

    def fail() -> None:
        with TraceWriter(path, {}) as writer:
            writer.write(columns(GOOD[:1]))
            raise RuntimeError("the program's own")

    with pytest.raises(RuntimeError, match="own"):
        fail()
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["run.parquet"]


def test_wrong_places_to_write(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is a folder"), TraceWriter(tmp_path, {}):
        pass
    missing = tmp_path / "no" / "run.parquet"
    with pytest.raises(UsageError, match="cannot be created"), TraceWriter(missing, {}):
        pass


def test_wrong_columns_are_the_callers_mistake(tmp_path: Path) -> None:
    good = columns(GOOD)
    wrong = [
        {name: good[name] for name in good if name != "id"},
        good | {"colour": [1, 2, 3, 4]},
        good | {"size": [1]},
    ]
    for given in wrong:
        with (
            pytest.raises(ValueError, match=r"column"),
            TraceWriter(tmp_path / "run.parquet", {}) as writer,
        ):
            writer.write(given)
    assert list(tmp_path.iterdir()) == []
