"""The result format: what is written is read back, and what is broken is named."""

from __future__ import annotations

import errno
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from workbench.common.errors import BrokenFileError, RunError, UsageError
from workbench.replay import result_writer
from workbench.replay.result_writer import check_free, prepare_output, write_result
from workbench.replay.results import (
    TABLES,
    CellResult,
    device_calls,
    find_results,
    load_results,
)

KEY = {"fingerprint": "f", "device": "cpu"}


def info_of(made: Path, **changed: Any) -> dict[str, Any]:
    return {**json.loads((made / "cell.json").read_text()), "key": KEY, **changed}


@pytest.fixture
def info(make_result: Callable[..., Path], tmp_path: Path) -> dict[str, Any]:
    return info_of(make_result(tmp_path / "made", "caching"))


def test_what_is_written_is_read_back(info: dict[str, Any], tmp_path: Path) -> None:
    folder = tmp_path / "cell"
    columns: dict[str, Any] = {name: [1, 2] for name in TABLES["timeline"]}
    write_result(folder, info, {"timeline": {**columns, "phase": ["a", None]}}, force=False)
    result = CellResult(folder)
    assert result.info == info
    assert result.name == "caching"
    assert result.timeline["event_first"].tolist() == [1, 2]
    assert result.timeline["phase"].tolist()[0] == "a"
    assert len(result.blocks) == len(result.latency) == 0
    assert set(TABLES["blocks"]) == set(result.blocks.columns)
    assert sorted(file.name for file in folder.iterdir()) == [
        "blocks.parquet",
        "cell.json",
        "latency.parquet",
        "timeline.parquet",
    ]


def test_a_result_of_the_same_cell_is_replaced(info: dict[str, Any], tmp_path: Path) -> None:
    write_result(tmp_path / "cell", info, {}, force=False)
    write_result(tmp_path / "cell", {**info, "created": "later"}, {}, force=False)
    assert CellResult(tmp_path / "cell").info["created"] == "later"
    assert [path.name for path in tmp_path.glob(".*")] == []


def test_the_result_of_another_cell_stays_unless_forced(
    info: dict[str, Any], tmp_path: Path
) -> None:
    folder = tmp_path / "cell"
    write_result(folder, info, {}, force=False)
    other = {**info, "key": {**KEY, "fingerprint": "g"}}
    with pytest.raises(
        UsageError, match=r"result of another cell \(another fingerprint\).*--force"
    ):
        write_result(folder, other, {}, force=False)
    assert CellResult(folder).info["key"] == KEY
    write_result(folder, other, {}, force=True)
    assert CellResult(folder).info["key"] == other["key"]


def test_a_folder_of_something_else_stays_unless_forced(
    info: dict[str, Any], tmp_path: Path
) -> None:
    folder = tmp_path / "cell"
    folder.mkdir()
    (folder / "thesis.txt").write_text("years of work")
    with pytest.raises(UsageError, match="not a result of this workbench"):
        write_result(folder, info, {}, force=False)
    assert (folder / "thesis.txt").read_text() == "years of work"
    check_free(folder, KEY, force=True)
    check_free(tmp_path / "absent", KEY, force=False)


def test_a_full_disk_leaves_the_old_result_and_nothing_half_written(
    info: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_result(tmp_path / "cell", info, {}, force=False)

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(result_writer, "_write", full)
    with pytest.raises(RunError, match=r"No space left on device.*nothing half-written"):
        write_result(tmp_path / "cell", {**info, "created": "later"}, {}, force=False)
    assert CellResult(tmp_path / "cell").info == info
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_an_output_that_cannot_be_made_is_refused_before_anything_runs(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match=r"cannot write results into .*name another folder"):
        prepare_output(tmp_path / "file" / "results")
    prepare_output(tmp_path / "a" / "b")
    assert list((tmp_path / "a" / "b").iterdir()) == []


def test_results_are_found_in_folders_and_by_name(synthetic_results: Path) -> None:
    found = find_results([synthetic_results])
    assert len(found) == 4
    assert [path.name for path in found] == sorted(path.name for path in found)
    assert find_results([found[0], synthetic_results]) == found
    assert [cell.folder for cell in load_results([synthetic_results])] == found


def test_a_result_that_is_being_written_is_passed_over(synthetic_results: Path) -> None:
    (synthetic_results / "direct").rename(synthetic_results / ".direct.1.part")
    assert len(find_results([synthetic_results])) == 3


@pytest.mark.parametrize("name", ["absent", "file", "empty"])
def test_where_there_is_no_result_that_is_said(name: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "empty").mkdir()
    with pytest.raises(BrokenFileError, match="name a folder that wb replay wrote"):
        load_results([tmp_path / name])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format_version": 2}, "version 2, and this workbench reads version 1"),
        ({"format_version": None}, "version null"),
        ({"format_version": [1]}, "version a list"),
        (
            {"outcome": {"status": "fine", "reason": None, "oom": None}},
            'unknown outcome status "fine"',
        ),
        ({"outcome": {"status": "ok"}}, "field outcome.reason is missing"),
        ({"outcome": {"status": [], "reason": None, "oom": None}}, "outcome.status is a list"),
        ({"memory": 3}, "field memory is 3, not an object"),
        ({"memory": {}}, "field memory.peaks is missing"),
        ({"memory": {"peaks": 5}}, "field memory.peaks is 5, not an object"),
        ({"trace": []}, "field trace is a list, not an object"),
        ({"latency": {"source": "ours"}}, "field latency.states is missing"),
        ({"throughput": {"cold": 5}}, "field throughput.cold is 5, not an object"),
        ({"machine": {}}, "field machine is empty"),
        ({"machine": {"cores": {}}}, "field machine.cores is an object"),
        ({"versions": {"numpy": []}}, "field versions.numpy is a list"),
        ({"warnings": [5]}, r"field warnings\[0\] is 5, not text"),
        ({"processes": True}, "field processes is true, not a whole number"),
        ({"processes": 10**400}, "field processes is 10+…, which is out of range"),
        ({"harness": {"clock_cost_ns": float("nan"), "ns_per_event": 1}}, "NaN, which is out of"),
        ({"digests": {"a\n" * 50: 5}}, r"field digests\.a\\na"),
    ],
)
def test_a_wrong_field_is_named(
    change: dict[str, Any], message: str, make_result: Callable[..., Path], tmp_path: Path
) -> None:
    folder = make_result(tmp_path, "caching")
    (folder / "cell.json").write_text(json.dumps(info_of(folder, **change)))
    with pytest.raises(BrokenFileError, match=message):
        CellResult(folder)


@pytest.mark.parametrize(
    ("names", "value"),
    [
        (("memory", "peaks"), 5),
        (("memory", "peaks", "reserved"), None),
        (("memory", "peaks", "reserved", "bytes"), "1"),
        (("memory", "finals", "reserved"), 1.5),
        (("memory", "driver_calls", "alloc"), "1"),
        (("memory", "counters", "hits"), {}),
        (("latency", "states", "cold"), []),
        (("latency", "states", "cold", "alloc"), 1),
        (("latency", "states", "steady", "alloc", "p50_ns"), None),
        (("latency", "states", "steady", "alloc", "p50_ns", "samples"), [None]),
        (("latency", "states", "cold", "causes"), 2),
        (("latency", "slowest"), 3),
        (("throughput", "cold", "events_per_s", "median"), None),
        (("trace", "peak_live_bytes"), "many"),
        (("allocator", "settings"), []),
    ],
)
def test_a_wrong_field_deep_inside_is_named(
    names: tuple[str, ...], value: Any, make_result: Callable[..., Path], tmp_path: Path
) -> None:
    folder = make_result(tmp_path, "caching")
    info = json.loads((folder / "cell.json").read_text())
    part = info
    for name in names[:-1]:
        part = part[name]
    part[names[-1]] = value
    (folder / "cell.json").write_text(json.dumps(info))
    with pytest.raises(BrokenFileError, match=rf"cell\.json: field {re.escape('.'.join(names))}"):
        CellResult(folder)


def test_unknown_fields_are_kept(make_result: Callable[..., Path], tmp_path: Path) -> None:
    folder = make_result(tmp_path, "caching")
    info = json.loads((folder / "cell.json").read_text())
    info["memory"]["mood"] = info["mood"] = {"good": [1]}
    (folder / "cell.json").write_text(json.dumps(info))
    assert CellResult(folder).info == info


@pytest.mark.parametrize("field", ["format_version", "key", "outcome", "latency", "warnings"])
def test_a_missing_field_is_named(
    field: str, make_result: Callable[..., Path], tmp_path: Path
) -> None:
    folder = make_result(tmp_path, "caching")
    info = json.loads((folder / "cell.json").read_text())
    del info[field]
    (folder / "cell.json").write_text(json.dumps(info))
    with pytest.raises(BrokenFileError, match=f"{field}.*missing"):
        CellResult(folder)


@pytest.mark.parametrize(
    "content",
    [
        *(b"", b'{"format_version": 1, "na', b"\xff\xfe", b"[]", b"3"),
        pytest.param(b"[" * 200_000, id="deep"),
        pytest.param(b"1" * 10_000, id="long"),
    ],
)
def test_a_cut_or_foreign_cell_json_is_a_broken_file(
    content: bytes, make_result: Callable[..., Path], tmp_path: Path
) -> None:
    folder = make_result(tmp_path, "caching")
    (folder / "cell.json").write_bytes(content)
    with pytest.raises(BrokenFileError, match=r"cell\.json"):
        CellResult(folder)
    with pytest.raises(UsageError, match="not a result of this workbench"):
        check_free(folder, KEY, force=False)


@pytest.mark.parametrize("table", sorted(TABLES))
def test_a_missing_or_cut_table_is_a_broken_file(
    table: str, make_result: Callable[..., Path], tmp_path: Path
) -> None:
    folder = make_result(tmp_path, "caching")
    path = folder / f"{table}.parquet"
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(BrokenFileError, match=f"{table}.parquet: not Parquet, or cut short"):
        getattr(CellResult(folder), table)
    path.unlink()
    with pytest.raises(BrokenFileError, match=f"{table}.parquet: this part of the result is miss"):
        CellResult(folder)


def test_a_table_without_a_column_is_a_broken_file(
    make_result: Callable[..., Path], tmp_path: Path
) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    folder = make_result(tmp_path, "caching")
    pq.write_table(pa.table({"state": ["cold"]}), folder / "latency.parquet")
    with pytest.raises(BrokenFileError, match="column 'kind' is missing"):
        _ = CellResult(folder).latency


@pytest.mark.parametrize(
    ("column", "values"),
    [
        ("count", ["a"]),
        ("count", [None]),
        ("count", [1.5]),
        ("bucket_low_ns", [None]),
        ("bucket_low_ns", [[1.0]]),
        ("state", [1]),
    ],
)
def test_a_column_of_another_type_is_a_broken_file(
    column: str, values: list[Any], make_result: Callable[..., Path], tmp_path: Path
) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    folder = make_result(tmp_path, "caching")
    row = {"state": ["cold"], "kind": ["alloc"], "cause": ["c"], "count": [1]}
    row |= {"bucket_low_ns": [0.0], "bucket_high_ns": [1.0]}  # type: ignore[dict-item]
    pq.write_table(pa.table({**row, column: values}), folder / "latency.parquet")
    with pytest.raises(BrokenFileError, match=f"latency.parquet: column '{column}' holds"):
        _ = CellResult(folder).latency


def test_text_that_is_not_utf8_is_a_broken_file(
    make_result: Callable[..., Path], tmp_path: Path
) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    folder = make_result(tmp_path, "caching")
    table = pq.read_table(folder / "latency.parquet").slice(0, 1)
    wrong = pa.array([b"\xff"], pa.binary()).view(pa.string())
    table = table.set_column(table.column_names.index("kind"), "kind", wrong)
    pq.write_table(table, folder / "latency.parquet")
    with pytest.raises(BrokenFileError, match=r"latency\.parquet"):
        _ = CellResult(folder).latency


def test_device_calls_count_every_call_that_was_served() -> None:
    assert device_calls({"alloc": 2, "free": 1, "refused": 5, "pool_alloc": 7}) == 10
    assert device_calls({"alloc": 0, "free": 0, "event_record": 3, "stream_wait": 4}) == 7
    assert device_calls(dict.fromkeys(("alloc", "free", "pool_alloc"))) is None
    assert device_calls({}) is None
