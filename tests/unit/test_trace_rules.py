"""Each rule of the format is broken once, and named with file, row and column."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from trace_maker import GOOD, columns, table, write_parquet, write_trace

from workbench.common.errors import BrokenFileError, RunError, TraceError
from workbench.recorders.trace import SCHEMA, TraceMetadata, TraceWriter, open_trace
from workbench.recorders.trace.checks import RowChecks


def read(path: Path) -> int:
    return sum(batch.num_rows for file in open_trace(path).files for batch in file.batches())


def broken(path: Path) -> TraceError:
    with pytest.raises(TraceError) as caught:
        read(path)
    assert str(path) in str(caught.value)
    assert f"[{caught.value.rule}]" in str(caught.value)
    return caught.value


A, F = "alloc", "free"
DEVICES = {"device": ["cpu", "cuda:0"]}
ROW_RULES: list[tuple[str, int, str, list[tuple[str, int, int]], dict[str, Any]]] = [
    ("negative-time", 0, "time_ns", [(A, 0, 1), (F, 0, 1)], {"time_ns": [-1, 3]}),
    ("time-goes-backwards", 1, "time_ns", [(A, 0, 1), (F, 0, 1)], {"time_ns": [5, 4]}),
    ("negative-size", 1, "size", [(A, 0, 1), (A, 1, -1)], {}),
    ("missing-id", 0, "id", [(A, -1, 1)], {}),
    ("missing-id", 1, "id", [(A, 0, 1), (F, -1, 1)], {}),
    ("missing-id", 0, "id", [("mark", -2, 0)], {}),
    ("allocated-twice", 1, "id", [(A, 0, 1), (A, 0, 1)], {}),
    ("allocated-twice", 2, "id", [(A, 0, 1), (F, 0, 1), ("live", 0, 1)], {}),
    ("id-skipped", 1, "id", [(A, 0, 1), (A, 2, 1)], {}),
    ("id-skipped", 0, "id", [(A, 2**63 - 1, 1)], {}),
    ("freed-twice", 2, "id", [(A, 0, 1), (F, 0, 1), (F, 0, 1)], {}),
    ("freed-before-allocated", 0, "id", [(F, 0, 1), (A, 0, 1)], {}),
    ("free-size-differs", 1, "size", [(A, 0, 1), (F, 0, 2)], {}),
    ("free-device-differs", 1, "device", [(A, 0, 1), (F, 0, 1)], DEVICES),
    ("completed-before-freed", 1, "id", [(A, 0, 1), ("free_completed", 0, 1)], {}),
    ("completed-before-freed", 0, "id", [("free_completed", 7, 1)], {}),
    (
        "completed-twice",
        3,
        "id",
        [(A, 0, 1), (F, 0, 1), ("free_completed", 0, 1), ("free_completed", 0, 1)],
        {},
    ),
    ("use-of-unknown-id", 2, "id", [(A, 0, 1), (F, 0, 1), ("record_stream", 0, 1)], {}),
    ("too-many-live-bytes", 1, "size", [(A, 0, 2**62), (A, 1, 2**62)], {}),
    ("value-too-low", 1, "stream", GOOD[:2], {"stream": [-1, -2]}),
    ("value-too-low", 1, "thread", GOOD[:2], {"thread": [0, -1]}),
    ("value-too-low", 0, "pool", GOOD[:2], {"pool": [-1, 0]}),
    ("value-too-low", 0, "step", GOOD[:2], {"step": [-2, 0]}),
    ("value-too-low", 1, "stack_id", GOOD[:2], {"stack_id": [None, -1]}),
    ("value-too-low", 0, "duration_ns", GOOD[:2], {"duration_ns": [-1, 1]}),
]


@pytest.mark.parametrize(("rule", "row", "column", "events", "changed"), ROW_RULES)
def test_rows(
    tmp_path: Path,
    rule: str,
    row: int,
    column: str,
    events: list[tuple[str, int, int]],
    changed: dict[str, Any],
) -> None:
    error = broken(write_trace(tmp_path / "run.parquet", events, **changed))
    assert error.rule == rule
    assert f"row {row}, column {column}:" in str(error)


def test_rows_are_counted_over_all_batches(tmp_path: Path) -> None:
    events = [(A, number, 1) for number in range(100)] + [(A, 7, 1)]
    (file,) = open_trace(write_trace(tmp_path / "run.parquet", events)).files
    with pytest.raises(TraceError, match="row 100, column id: id 7 is allocated a second time"):
        list(file.batches(batch_rows=9))
    assert sum(batch.num_rows for batch in file.batches(batch_rows=9, check=False)) == 101


@pytest.mark.parametrize("column", ["time_ns", "event", "size", "device", "phase", "step"])
def test_no_value(tmp_path: Path, column: str) -> None:
    values = table().column(column).to_pylist()
    values[2] = None
    made = table().set_column(
        table().schema.get_field_index(column),
        column,
        pa.array(values, table().schema.field(column).type),
    )
    error = broken(write_parquet(tmp_path / "run.parquet", made))
    assert (error.rule, f"row 2, column {column}" in str(error)) == ("null-value", True)


def test_text_that_is_not_utf8(tmp_path: Path) -> None:
    # Arrow checks no text while writing, so bytes can be passed off as text.
    raw = pa.array([b"alloc", b"al\xffoc", b"free", b"alloc"])
    fake = pa.StringArray.from_buffers(4, raw.buffers()[1], raw.buffers()[2])
    error = broken(write_parquet(tmp_path / "run.parquet", table().set_column(1, "event", fake)))
    assert error.rule == "bad-text"


def test_a_dictionary_index_outside_its_dictionary() -> None:
    batch = pa.RecordBatch.from_pydict(
        columns(GOOD) | {"event": columns(GOOD)["event"].dictionary_encode()}
    )
    indices = pa.array([0, 0, 9, 1], pa.int32())
    bad = pa.DictionaryArray.from_arrays(indices, ["alloc", "free"], safe=False)
    with pytest.raises(TraceError, match=r"row 2, column event: entry 9.*bad-dictionary-index"):
        RowChecks("run.parquet").check(batch.set_column(1, "event", bad))


@pytest.mark.parametrize("name", [field.name for field in SCHEMA if not field.nullable])
def test_a_missing_column(tmp_path: Path, name: str) -> None:
    error = broken(write_parquet(tmp_path / "run.parquet", table().drop_columns([name])))
    assert (error.rule, name in error.problem) == ("missing-column", True)


@pytest.mark.parametrize(
    ("name", "values"),
    [("id", pa.array([0.0] * 4)), ("event", pa.array([1] * 4)), ("thread", pa.array([0] * 4))],
)
def test_a_column_of_another_type(tmp_path: Path, name: str, values: pa.Array) -> None:
    place = table().schema.get_field_index(name)
    path = write_parquet(tmp_path / "run.parquet", table().set_column(place, name, values))
    assert broken(path).rule == "wrong-column-type"


def test_a_column_that_is_there_twice(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "run.parquet", table().append_column("id", pa.array([0] * 4)))
    assert broken(path).rule == "double-column"


METADATA = [
    ("metadata-not-json", b"{"),
    ("metadata-not-json", b"\xff"),
    ("metadata-not-json", b"[" * 100_000),
    ("metadata-not-an-object", b"[1]"),
    ("metadata-wrong-type", b"{}"),
    ("metadata-wrong-type", b'{"format_version": "1"}'),
    ("metadata-wrong-type", b'{"format_version": true}'),
    ("metadata-wrong-type", b'{"format_version": 0}'),
    ("metadata-wrong-type", b'{"format_version": 1, "events": 4, "complete": "yes"}'),
    ("metadata-wrong-type", b'{"format_version": 1, "events": 4, "lost_events": null}'),
    ("metadata-wrong-type", b'{"format_version": 1, "events": 4, "versions": []}'),
    ("version-not-supported", b'{"format_version": 2}'),
    ("version-not-supported", b'{"format_version": 1' + b"0" * 4000 + b"}"),
    ("row-count-differs", b'{"format_version": 1, "events": 5}'),
]


@pytest.mark.parametrize(("rule", "metadata"), METADATA)
def test_metadata(tmp_path: Path, rule: str, metadata: bytes) -> None:
    assert broken(write_parquet(tmp_path / "run.parquet", table(), metadata)).rule == rule


INSIDE = [
    ("devices.cpu", {"devices": {"cpu": 5}}),
    ("devices.cpu.name", {"devices": {"cpu": {"name": 3}}}),
    ("devices.cpu.capacity", {"devices": {"cpu": {"capacity": "lots"}}}),
    ("devices.cpu.capacity", {"devices": {"cpu": {"capacity": -10}}}),
    ("devices.cpu.capacity", {"devices": {"cpu": {"capacity": 1.5}}}),
    ("devices.cpu.capacity", {"devices": {"cpu": {"capacity": True}}}),
    ("devices.cpu.capacity", {"devices": {"cpu": {"capacity": 2**63}}}),
    ("devices.cpu.held_by_others", {"devices": {"cpu": {"held_by_others": -5}}}),
    ("versions.torch", {"versions": {"torch": 2}}),
    ("host.cpu", {"host": {"cpu": []}}),
    ("host.cores", {"host": {"cores": "many"}}),
    ("program.1", {"program": ["train.py", {"a": 1}]}),
    ("threads.0", {"threads": {"0": "main"}}),
]


@pytest.mark.parametrize(("key", "metadata"), INSIDE)
def test_values_inside_metadata(tmp_path: Path, key: str, metadata: dict[str, Any]) -> None:
    text = TraceMetadata({"events": 4, **metadata}).to_json()
    error = broken(write_parquet(tmp_path / "run.parquet", table(), text))
    assert error.rule == "metadata-wrong-type"
    assert f"metadata key '{key}' is " in str(error)


def test_metadata_may_be_unknown_inside_or_have_more(tmp_path: Path) -> None:
    metadata = {
        "devices": {"cpu": {"name": None, "held_by_others": 0, "mood": []}, "cuda:0": {}},
        "versions": {"cuda": None},
        "host": {"cpu": None, "cores": None, "mood": []},
    }
    text = TraceMetadata({"events": 4, **metadata}).to_json()
    assert read(write_parquet(tmp_path / "run.parquet", table(), text)) == 4


def test_files_of_other_kinds(tmp_path: Path) -> None:
    path = write_trace(tmp_path / "run.parquet")
    whole = path.read_bytes()
    other = tmp_path / "other.parquet"
    pq.write_table(pa.table({"a": [1]}), other)
    assert broken(other).rule == "not-a-trace"
    for content, rule in (
        (b"", "truncated-file"),
        (b"PAR1", "truncated-file"),
        (whole[: len(whole) // 2], "truncated-file"),
        (b"PK\x03\x04 some other file", "not-a-parquet-file"),
        (whole[:8] + whole[-8:], "damaged-file"),
    ):
        path.write_bytes(content)
        assert broken(path).rule == rule


def test_a_file_that_may_not_be_read(tmp_path: Path) -> None:
    path = write_trace(tmp_path / "run.parquet")
    path.unlink()
    path.symlink_to(path)
    with pytest.raises(BrokenFileError):
        open_trace(path)


def test_flipped_bits_and_lost_ends_give_one_sentence(tmp_path: Path) -> None:
    events = [(A, number, number * 8) for number in range(500)]
    events += [(F, number, number * 8) for number in range(500)]
    path = write_trace(tmp_path / "run.parquet", events, scope=["a", "b"] * 500)
    whole = path.read_bytes()
    chance = random.Random(3)
    caught = 0
    for _ in range(800):
        content = bytearray(whole)
        for _ in range(chance.choice([1, 1, 3])):
            content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
        if chance.random() < 0.1:
            content = content[: chance.randrange(len(content))]
        path.write_bytes(content)
        try:
            read(path)
        except BrokenFileError as error:
            assert "\n" not in str(error)  # noqa: PT017 - the flip may also be harmless
            caught += 1
    assert caught > 500


@settings(max_examples=200, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["alloc", "free", "live", "free_completed", "record_stream", "mark"]),
            st.integers(-1, 6),
            st.sampled_from([1, 1, 1, 2]),
        ),
        max_size=25,
    ),
    st.integers(1, 30),
)
def test_the_checker_agrees_with_a_plain_one(
    events: list[tuple[str, int, int]], batch_rows: int
) -> None:
    checks = RowChecks("run.parquet")
    found = None
    try:
        for start in range(0, len(events), batch_rows):
            made = columns(events[start : start + batch_rows])
            for name in ("event", "device", "phase"):
                made[name] = made[name].dictionary_encode()
            checks.check(
                pa.RecordBatch.from_pydict(made | {"time_ns": pa.array([0] * len(made["id"]))})
            )
    except TraceError as error:
        found = int(error.problem.split()[1].rstrip(","))
    assert found == first_wrong(events)


def first_wrong(events: list[tuple[str, int, int]]) -> int | None:
    """The first row that breaks a rule, by sets that remember everything."""
    sizes: dict[int, int] = {}
    live: set[int] = set()
    completed: set[int] = set()
    for row, (event, number, size) in enumerate(events):
        right = True
        if event in ("alloc", "live"):
            right = number == len(sizes)
            sizes[number] = size
            live.add(number)
        elif event == "free":
            right = number in live and sizes[number] == size
            live.discard(number)
        elif event == "free_completed":
            right = number in sizes and number not in live and number not in completed
            completed.add(number)
        elif event == "record_stream":
            right = number in live
        if not right:
            return row
    return None


FULL_DISK = """
import resource, signal, sys
import numpy as np
from pathlib import Path
from workbench.recorders.trace import TraceWriter
sys.path.insert(0, sys.argv[2])
from trace_maker import columns
resource.setrlimit(resource.RLIMIT_FSIZE, (20000, 20000))
with TraceWriter(Path(sys.argv[1]), {}) as writer:
    rows = [("alloc", n, n * 7919 % 100003) for n in range(50000)]
    writer.write(columns(rows))
"""


def test_a_file_that_cannot_grow_leaves_nothing_behind(tmp_path: Path) -> None:
    support = Path(sys.modules["trace_maker"].__file__ or "").parent
    done = subprocess.run(
        [sys.executable, "-P", "-c", FULL_DISK, tmp_path / "run.parquet", support],
        capture_output=True,
        text=True,
        check=False,
    )
    assert "RunError" in done.stderr.splitlines()[-1]
    assert "could not be written (File too large)" in done.stderr
    assert "Exception ignored" not in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_leaves_nothing_behind(tmp_path: Path) -> None:
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", tmp_path],
        capture_output=True,
        check=False,
    )
    if mounted.returncode != 0:
        pytest.skip("mounting a small file system is not permitted here")
    try:
        sizes = np.random.default_rng(0).integers(0, 2**40, 40_000)

        def fill() -> None:
            with TraceWriter(tmp_path / "run.parquet", {}) as writer:
                writer.write(columns([(A, n, int(size)) for n, size in enumerate(sizes)]))

        with pytest.raises(RunError, match="No space left on device"):
            fill()
        assert list(tmp_path.iterdir()) == []
    finally:
        subprocess.run(["umount", tmp_path], check=True)


def test_metadata_goes_round(tmp_path: Path) -> None:
    metadata = TraceMetadata({"program": ["train.py", "é\udcff"], "extra": {"a": [1]}})
    path = write_trace(tmp_path / "run.parquet", metadata=metadata)
    found = open_trace(path).metadata
    assert found["extra"] == {"a": [1]}
    assert found["program"][1].startswith("é")
    assert json.loads(found.to_json())["format_version"] == 1
