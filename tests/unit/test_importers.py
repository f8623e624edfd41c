"""What importers make of well-formed files, and how they are found."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from workbench.common.errors import BrokenFileError, UsageError, WorkbenchError
from workbench.importing import ImportReport, import_file
from workbench.recorders.importers import Source, discover, importer_for
from workbench.recorders.importers._operators import Operators
from workbench.recorders.importers._pairing import distinct_keys, match, pair_by_address

Import = Callable[..., tuple[ImportReport, dict[str, list[Any]]]]


@pytest.fixture
def imported(tmp_path: Path) -> Import:
    """Writes text to a file, imports it, and gives the report and the columns."""

    def run(text: str | bytes, name: str = "file.csv", **options: Any) -> Any:
        path = tmp_path / name
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        output = tmp_path / "out.parquet"
        report = import_file(path, output, **options)
        return report, pq.read_table(output).to_pydict()

    return run


# --- pairs ---


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 3)), max_size=40))
def test_pairs_are_those_of_a_program_that_keeps_a_dictionary(rows: list[tuple[bool, int]]) -> None:
    live: dict[int, int] = {}
    expected = [-1] * len(rows)
    reused = unmatched = 0
    for place, (is_alloc, address) in enumerate(rows):
        if is_alloc:
            reused += address in live
            live[address] = place
        elif address in live:
            expected[place] = live.pop(address)
            expected[expected[place]] = place
        else:
            unmatched += 1
    allocs = np.array([row[0] for row in rows], bool)
    addresses = np.array([row[1] for row in rows], np.uint64)
    assert pair_by_address(allocs, addresses).tolist() == expected
    matched = match(allocs, addresses)
    assert (matched.reused, matched.unmatched_frees) == (reused, unmatched)
    assert len(matched.rows) == len(rows) - unmatched
    begun = matched.ids[allocs[matched.rows]]
    assert begun.tolist() == list(range(len(begun)))


def test_keys_are_equal_where_all_columns_are() -> None:
    address = np.array([5, 5, 2**64 - 1, 5], np.uint64)
    device = np.array([0, 1, 1, 0])
    key = distinct_keys(address, device)
    assert key[0] == key[3]
    assert len(set(key.tolist())) == 3


def test_the_innermost_operator_is_the_last_that_is_still_open() -> None:
    operators = Operators()
    for thread, begin, end, name in [
        (1, 0, 100, "outer"),
        (1, 10, 20, "inner"),
        (1, 20, 30, "next"),
        (1, 40, 40, "of no time"),
        (2, 0, 5, "other thread"),
    ]:
        operators.add(thread, begin, end, name)
    asked = [(1, 0), (1, 15), (1, 20), (1, 25), (1, 40), (1, 41), (1, 101), (2, 6), (3, 0)]
    found = operators.around(*np.array(asked, np.int64).T)
    names = [*operators.names, None]
    assert [names[code] for code in found] == [
        "outer", "inner", "next", "next", "of no time", "outer", None, None, None,
    ]  # fmt: skip


# --- PyTorch's profiler ---


def memory(ts: float, size: int, address: int, **changed: Any) -> dict[str, Any]:
    arguments = {"Bytes": size, "Addr": address, "Device Type": 0, "Device Id": -1, "Ev Idx": 0}
    arguments |= changed.pop("args", {})
    return {"ph": "i", "cat": "cpu_instant_event", "name": "[memory]", "pid": 7, "tid": 70,
            "ts": ts, "args": arguments, **changed}  # fmt: skip


def operator(name: str, ts: float, dur: float, tid: int = 70) -> dict[str, Any]:
    return {"ph": "X", "cat": "cpu_op", "name": name, "pid": 7, "tid": tid, "ts": ts, "dur": dur}


def profile(*events: Any, **header: Any) -> str:
    return json.dumps({"schemaVersion": 1, **header, "traceEvents": list(events)})


def test_a_profile(imported: Import) -> None:
    on_cuda = {"args": {"Device Type": 1, "Device Id": 2}}
    text = profile(
        operator("aten::linear", 100.0, 50.0),
        operator("aten::addmm", 110.0, 10.0),
        {"ph": "X", "cat": "kernel", "name": "gemm", "ts": 111, "dur": 1, "pid": 0, "tid": 7},
        memory(112.5, 400, 0xA0),
        memory(130.0, 512, 0xA0, **on_cuda),
        memory(131.0, -400, 0xA0),
        memory(90.0, -64, 0xB0),
        memory(160.001, -512, 0xA0, tid=71, **on_cuda),
        baseTimeNanoseconds=1_790_857_026_000_000_000,
    )
    report, rows = imported(text, "trace.json")
    assert report.kind == "torch-profiler"
    assert rows["event"] == ["alloc", "alloc", "free", "free"]
    assert rows["time_ns"] == [22_500, 40_000, 41_000, 70_001]
    assert rows["id"] == [0, 1, 0, 1]
    assert rows["size"] == [400, 512, 400, 512]
    assert rows["device"] == ["cpu", "cuda:2", "cpu", "cuda:2"]
    assert rows["thread"] == [0, 0, 0, 1]
    assert rows["scope"] == ["aten::addmm", "aten::linear", "aten::linear", None]
    about = report.summary.metadata
    assert about["unmatched_frees"] == 1
    assert about["rounded_sizes"] == ["cuda:2"]
    assert any("already rounded up" in note for note in report.notes)
    assert about["threads"] == {"0": 70, "1": 71}
    assert about["start_wall_clock"].startswith("2026-10-01T12:17:06.000090")


def test_what_happened_in_one_moment_is_in_pytorchs_order(imported: Import) -> None:
    text = profile(
        memory(5.0, 100, 1, args={"Ev Idx": 8}),
        memory(5.0, -100, 1, args={"Ev Idx": 9}),
        memory(5.0, 200, 1, args={"Ev Idx": 3}),
        memory(5.0, -200, 1, args={"Ev Idx": 4}),
    )
    _, rows = imported(text, "trace.json")
    assert rows["size"] == [200, 200, 100, 100]
    assert rows["event"] == ["alloc", "free"] * 2


def test_a_packed_profile_is_the_same(imported: Import) -> None:
    text = profile(*(memory(float(n), 8, n) for n in range(3000)))
    plain = imported(text, "trace.json")[1]
    assert imported(gzip.compress(text.encode()), "t.json.gz", force=True)[1] == plain


def test_events_of_other_tools_do_not_matter(imported: Import) -> None:
    text = profile({"name": None, "ts": "soon", "tid": [1]}, memory(1.0, 8, 1), {"args": 5})
    assert imported(text, "trace.json")[1]["size"] == [8]


def test_addresses_of_two_processes_are_two(imported: Import) -> None:
    text = profile(memory(1.0, 8, 1), memory(2.0, 16, 1, pid=9), memory(3.0, -8, 1, pid=7))
    report, rows = imported(text, "trace.json")
    assert rows["id"] == [0, 1, 0]
    assert any("2 processes" in note for note in report.notes)


# --- RMM ---

RMM = "Thread,Time,Action,Pointer,Size,Stream\n"


def test_an_rmm_log(imported: Import) -> None:
    report, rows = imported(
        RMM + "139,23:59:59.999999,allocate,0x7f00000000A0,100,0x0\n"
        "140,00:00:00.000001,allocate,0x7f0000000200,200,0x55ff\n"
        "139,00:00:01.500000,free,0x7f00000000a0,100,0\n"
        "139,00:00:01.400000,allocate,0x7f00000000a0,7,0x1\n"
        "140,00:00:02.000001,allocate failure,(nil),900000,0x55ff\n"
        "140,00:00:02.000001,allocate,(nil),0,0x55ff\n"
        "140,00:00:02.000002,free,0x123,5,0x55ff\n",
        "log.dev3.csv",
    )
    assert report.kind == "rmm"
    assert rows["event"] == ["alloc", "alloc", "free", "alloc", "oom"]
    assert rows["time_ns"] == [0, 2_000, 1_500_001_000, 1_500_001_000, 2_000_002_000]
    assert rows["id"] == [0, 1, 0, 2, -1]
    assert rows["size"] == [100, 200, 100, 7, 900_000]
    assert rows["stream"] == [0, 1, 0, 0, 1]
    assert rows["thread"] == [0, 1, 0, 0, 1]
    assert set(rows["device"]) == {"cuda:3"}
    about = report.summary.metadata
    assert about["streams"] == {"1": {"pointer": "0x55ff"}}
    assert (about["unmatched_frees"], about["zero_byte_allocs"]) == (1, 1)
    notes = " ".join(report.notes)
    for part in ("midnight", "1 row with an earlier time", "1 request of 0 bytes"):
        assert part in notes


def test_rmms_documented_spelling(imported: Import) -> None:
    report, rows = imported(
        RMM + "1,1700000000.25,allocate,0x10,64,0\n1,1700000001,deallocate,0x10,64,0\n", "log.csv"
    )
    assert rows["event"] == ["alloc", "free"]
    assert rows["time_ns"] == [0, 750_000_000]
    assert set(rows["device"]) == {"cuda:0"}
    assert any("taken as cuda:0" in note for note in report.notes)


def test_an_rmm_log_that_ends_in_the_middle_of_a_row(imported: Import) -> None:
    report, rows = imported(RMM + "1,00:00:00.1,allocate,0x10,64,0\n1,00:00:0", "log.dev0.csv")
    assert rows["size"] == [64]
    assert report.summary.metadata["complete"] is False


def test_frees_take_the_size_of_their_allocation(imported: Import) -> None:
    report, rows = imported(
        RMM + "1,1.0,allocate,0x10,64,0\n1,2.0,free,0x10,63,0\n", "log.dev0.csv"
    )
    assert rows["size"] == [64, 64]
    assert any("1 free with another size" in note for note in report.notes)


# --- MiniMalloc ---


def test_a_minimalloc_problem(imported: Import) -> None:
    report, rows = imported("size,id,upper,lower\n10,b1,5,0\n20,b2,7,5\n7,b3,6,3\n")
    assert report.kind == "minimalloc"
    assert rows["time_ns"] == [0, 3, 5, 5, 6, 7]
    assert rows["event"] == ["alloc", "alloc", "free", "alloc", "free", "free"]
    assert rows["label"] == ["b1", "b3", None, "b2", None, None]
    assert rows["size"] == [10, 7, 10, 20, 7, 20]
    assert report.summary.devices[0].peak_bytes == 27


@pytest.mark.parametrize("header", ["buffer_id,start,end,size", "Buffer,Begin,End,Size"])
def test_other_names_of_minimallocs_columns(imported: Import, header: str) -> None:
    _, rows = imported(
        f"{header},alignment,hint,gaps,offset\n1,0,4,10,8,-1,,32\n2,5,5,10,8,-1,1-2,0\n"
    )
    assert rows["time_ns"] == [0, 5, 5, 6]
    assert rows["offset"] == [32, 32, 0, 0]
    assert rows["segment"] == [0] * 4


def test_what_minimalloc_tells_and_a_trace_does_not(imported: Import) -> None:
    report, rows = imported(
        "id,lower,upper,size,alignment,gaps\n1,-5,4,10,8,-4--3\n2,3,3,1,8,\n3,0,9,0,8,\n"
    )
    assert rows["time_ns"] == [0, 9]
    notes = " ".join(report.notes)
    for part in ("1 buffer with gaps", "1 buffer with an empty", "alignment", "Times begin at -5"):
        assert part in notes
    assert report.summary.metadata["zero_byte_allocs"] == 1


# --- the report, and how importers are found ---


def test_the_trace_says_where_it_is_from(imported: Import) -> None:
    report, _ = imported("id,lower,upper,size\n1,0,1,1\n", "plan.csv")
    assert report.summary.metadata["imported"] == {
        "kind": "minimalloc",
        "file": "plan.csv",
        "notes": report.notes,
        "checks": [],
    }
    assert report.to_json()["devices"][0]["peak_bytes"] == 1


def test_stacks_lie_beside_the_trace_and_go_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from workbench.recorders.importers import minimalloc

    (tmp_path / "plan.csv").write_text("id,lower,upper,size\n1,0,1,1\n")
    read = minimalloc.read

    def with_stacks(*arguments: Any) -> Any:
        found = read(*arguments)
        found.stacks = ["main;train"]
        found.columns["stack_id"] = np.zeros(2, np.int32)
        return found

    monkeypatch.setattr(minimalloc, "read", with_stacks)
    report = import_file(tmp_path / "plan.csv", tmp_path / "run.parquet")
    assert report.stacks == tmp_path / "run.stacks.parquet"
    assert pq.read_table(report.stacks).to_pydict() == {"stack_id": [0], "stack": ["main;train"]}
    assert report.summary.metadata["stacks"] is True
    monkeypatch.undo()
    import_file(tmp_path / "plan.csv", tmp_path / "run.parquet", force=True)
    assert not (tmp_path / "run.stacks.parquet").exists()


def test_a_trace_is_replaced_only_by_force(imported: Import, tmp_path: Path) -> None:
    imported("id,lower,upper,size\n1,0,1,1\n")
    with pytest.raises(UsageError, match="--force"):
        imported("id,lower,upper,size\n1,0,1,2\n")
    assert imported("id,lower,upper,size\n1,0,1,2\n", force=True)[1]["size"] == [2, 2]
    with pytest.raises(UsageError, match="is read by this command"):
        import_file(tmp_path / "file.csv", tmp_path / "file.csv", force=True)


PART = "SUMMARY = ''\ndef recognises(head, path): return False\ndef read(source, progress): ...\n"


def test_two_importers_of_one_name_are_an_error_that_names_both(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "made_importers"
    package.mkdir()
    for name in ("__init__", "first", "second", "_shared"):
        (package / f"{name}.py").write_text("NAME = 'same'\n" + PART)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(WorkbenchError, match=r"made_importers\.first and made_importers\.second"):
        discover([str(package)], "made_importers")
    other = package.rename(tmp_path / "other_importers")
    (other / "second.py").write_text("NAME = 'other'\n")
    with pytest.raises(WorkbenchError, match=r"other_importers\.second: an importer needs SUMMARY"):
        discover([str(other)], "other_importers")


def test_importers_of_other_packages_join(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "their_importer.py").write_text(
        "NAME = 'theirs'\n" + PART.replace("return False", "return head == b'theirs'")
    )
    about = tmp_path / "their_package-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: their-package\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text("[workbench.importers]\ntheirs = their_importer\n")
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "file").write_text("theirs")
    assert importer_for(Source(tmp_path / "file")).NAME == "theirs"
    (about / "entry_points.txt").write_text("[workbench.importers]\ntheirs = gone\n")
    with pytest.raises(WorkbenchError, match="gone of another package cannot be loaded"):
        discover()


def test_a_file_of_no_known_kind_is_described(tmp_path: Path) -> None:
    path = tmp_path / "file"
    for content, words in {
        b"": "is empty",
        b"PAR1....": "needs no import",
        b"PK\x03\x04...": "a zip archive",
        b'{"a": 1}': "a JSON object",
        b"\0\1\2": "binary data",
        b"hello\nworld": "begins with 'hello'",
    }.items():
        path.write_bytes(content)
        with pytest.raises(BrokenFileError, match=words):
            importer_for(Source(path))
    with pytest.raises(UsageError, match="the kinds are"):
        importer_for(Source(path), "nothing")
