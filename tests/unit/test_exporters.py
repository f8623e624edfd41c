"""What `wb export` writes, format by format."""

from __future__ import annotations

import csv
import json
import pickle
import pickletools
import random
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import snapshot_maker
from hypothesis import given, settings
from hypothesis import strategies as st
from random_operations import random_operations
from trace_maker import columns, write_trace

from workbench.common.errors import UsageError, WorkbenchError
from workbench.recorders import exporters
from workbench.recorders.exporters import TraceSource, Written, chrome_counters, minimalloc
from workbench.recorders.exporters._torch_settings import allocator_settings, rounded
from workbench.recorders.exporters.torch_snapshot import PROTOCOL, snapshot_of
from workbench.recorders.trace import TraceWriter, open_trace
from workbench.replay.events import load_trace
from workbench.replay.journal import ReplayedHistory, replay_history

MIB = 2**20


def export(
    exporter: Any, trace: Path, device: str | None = None
) -> tuple[str, Written, list[tuple[int, int]]]:
    """The text that a format of traces writes, what it says of it, and its progress."""
    target = trace.with_suffix(exporter.SUFFIX)
    told: list[tuple[int, int]] = []
    (file,) = open_trace(trace).files
    written = exporter.write(
        TraceSource(file, device), target, lambda done, of: told.append((done, of))
    )
    return target.read_text(encoding="utf-8"), written, told


# -- MiniMalloc ------------------------------------------------------------------------------------


def test_lifetimes_are_half_open_and_count_events(tmp_path: Path) -> None:
    trace = write_trace(
        tmp_path / "run.parquet",
        [
            ("live", 0, 64),
            ("mark", -1, 0),
            ("alloc", 1, 100),
            ("free", 0, 64),
            ("alloc", 2, 8),
            ("free", 1, 100),
        ],
    )
    text, written, told = export(minimalloc, trace)
    assert text == "id,lower,upper,size\n0,0,3,64\n1,2,5,100\n2,4,6,8\n"
    assert written.facts == {
        "device": "cpu",
        "allocations": 3,
        "left_out_zero_bytes": 0,
        "peak_live_bytes": 164,
    }
    assert "{path}" in written.next
    assert told == [(6, 6)]


def test_a_free_and_an_allocation_may_share_a_place() -> None:
    table = minimalloc.pa.table({"lower": [0, 5], "upper": [5, 9], "size": [10, 10]})
    assert minimalloc._peak(table) == 10


def test_one_device_only_and_no_zero_bytes(tmp_path: Path) -> None:
    trace = write_trace(
        tmp_path / "run.parquet",
        [("alloc", 0, 1), ("alloc", 1, 50), ("alloc", 2, 0), ("free", 0, 1), ("free", 1, 50)],
        device=["cpu", "cuda:0", "cuda:0", "cpu", "cuda:0"],
    )
    text, written, _ = export(minimalloc, trace)
    assert text == "id,lower,upper,size\n1,1,4,50\n"
    assert written.facts["left_out_zero_bytes"] == 1
    assert "1 of 0 bytes left out" in written.summary
    assert export(minimalloc, trace, "cpu")[0] == "id,lower,upper,size\n0,0,3,1\n"
    with pytest.raises(UsageError, match=r"'cuda:7' is not in .*; it has cpu, cuda:0"):
        export(minimalloc, trace, "cuda:7")


@pytest.mark.parametrize("events", [[], [("mark", -1, 0)]])
def test_a_trace_without_allocations(tmp_path: Path, events: Any) -> None:
    trace = write_trace(tmp_path / "run.parquet", events)
    text, written, _ = export(minimalloc, trace)
    assert text == "id,lower,upper,size\n"
    assert written.facts["peak_live_bytes"] == 0
    document = json.loads(export(chrome_counters, trace)[0])
    assert not [event for event in document["traceEvents"] if event["ph"] == "C"]


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_lifetimes_of_random_traces(seed: int, tmp_path_factory: pytest.TempPathFactory) -> None:
    trace, live = random_trace(tmp_path_factory.mktemp("random") / "run.parquet", seed)
    text, written, _ = export(minimalloc, trace)
    rows = [
        {key: int(value) for key, value in row.items()} for row in csv.DictReader(text.splitlines())
    ]
    for event in range(len(live)):
        alive = sum(row["size"] for row in rows if row["lower"] <= event < row["upper"])
        assert alive == live[event]
    assert written.facts["peak_live_bytes"] == max(live, default=0)


def random_trace(path: Path, seed: int) -> tuple[Path, list[int]]:
    """A trace on one device and, event by event, its live bytes."""
    rng = random.Random(seed)
    events: list[tuple[str, int, int]] = []
    sizes: dict[int, int] = {}
    live: list[int] = []
    for _ in range(rng.randrange(60)):
        if sizes and rng.random() < 0.4:
            number = rng.choice(list(sizes))
            events.append(("free", number, sizes.pop(number)))
        elif rng.random() < 0.1:
            events.append(("mark", -1, 0))
        else:
            number = sum(event == "alloc" for event, _, _ in events)
            sizes[number] = rng.randrange(0, 1000)
            events.append(("alloc", number, sizes[number]))
        live.append(sum(sizes.values()))
    return write_trace(path, events), live


# -- Counters --------------------------------------------------------------------------------------


def test_counters_steps_phases_and_marks(tmp_path: Path) -> None:
    trace = write_trace(
        tmp_path / 'a "quoted" name.parquet',
        [
            *(("alloc", 0, 100), ("alloc", 1, 50), ("alloc", 2, 8)),
            *(("free", 0, 100), ("mark", -1, 0), ("oom", -1, 99)),
        ],
        time_ns=[5, 1000, 1000, 2001, 2500, 10**15 + 1],
        device=["cpu", "cuda:0", "cuda:0", "cpu", "cpu", "cuda:0"],
        step=[-1, 0, 0, 1, 1, 1],
        phase=["forward", "forward", "backward", "other", "other", "forward"],
        label=[None, None, None, None, 'a "label"\n', None],
    )
    text, written, _ = export(chrome_counters, trace)
    events = json.loads(text)["traceEvents"]
    assert [
        (event["name"], event["ts"], event["args"]["requested"])
        for event in events
        if event["ph"] == "C"
    ] == [
        ("live bytes, cpu", 0.005, 100),
        ("live bytes, cpu", 2.001, 0),
        ("live bytes, cuda:0", 1.0, 58),
    ]
    last = 10**12 + 0.001
    assert [
        (event["tid"], event["name"], event["ts"], event["dur"])
        for event in events
        if event["ph"] == "X"
    ] == [
        (1, "step 0", 1.0, 1.001),
        (2, "forward", 0.005, 0.995),
        (2, "backward", 1.0, 1.001),
        (1, "step 1", 2.001, 10**12 - 2),
        (2, "forward", last, 0),
    ]
    marks = [(event["name"], event["ts"]) for event in events if event["ph"] == "i"]
    assert marks == [('a "label"\n', 2.5), ("oom", last)]
    assert 'a \\"quoted\\" name' in text
    assert written.facts == {"devices": ["cpu", "cuda:0"], "values": 3}
    only = json.loads(export(chrome_counters, trace, "cuda:0")[0])["traceEvents"]
    assert {event["name"] for event in only if event["ph"] == "C"} == {"live bytes, cuda:0"}
    with pytest.raises(UsageError, match="it has cpu, cuda:0"):
        export(chrome_counters, trace, "cuda:1")


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_counters_of_random_traces(seed: int, tmp_path_factory: pytest.TempPathFactory) -> None:
    trace, live = random_trace(tmp_path_factory.mktemp("random") / "run.parquet", seed)
    events = json.loads(export(chrome_counters, trace)[0])["traceEvents"]
    values = {
        round(event["ts"] * 1000): event["args"]["requested"]
        for event in events
        if event["ph"] == "C"
    }
    for place, value in enumerate(live):
        known = [time for time in values if time <= 10 * place]
        assert (values[max(known)] if known else 0) == value


def test_batches_follow_one_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trace, _ = random_trace(tmp_path / "run.parquet", 3)
    whole = [export(exporter, trace)[0] for exporter in (minimalloc, chrome_counters)]
    (file,) = open_trace(trace).files
    read = type(file).batches
    monkeypatch.setattr(type(file), "batches", lambda self, names: read(self, names, batch_rows=3))
    assert [export(exporter, trace)[0] for exporter in (minimalloc, chrome_counters)] == whole


# -- PyTorch's snapshot ----------------------------------------------------------------------------

ENTRY = {"action", "addr", "size", "stream", "time_us", "frames"}
SEGMENT = {
    *("device", "address", "total_size", "allocated_size", "active_size", "requested_size"),
    *("stream", "segment_type", "segment_pool_id", "is_expandable", "frames", "blocks"),
}
BLOCK = {"address", "size", "requested_size", "state", "frames"}
# What memory_viz's own reader of pickles knows.
VIZ_OPCODES = {
    *(
        "PROTO",
        "FRAME",
        "MEMOIZE",
        "BINPUT",
        "LONG_BINPUT",
        "BINGET",
        "LONG_BINGET",
        "MARK",
        "STOP",
    ),
    *("EMPTY_DICT", "EMPTY_LIST", "EMPTY_TUPLE", "SETITEM", "SETITEMS", "APPEND", "APPENDS"),
    *("TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "LIST", "DICT", "NONE", "NEWTRUE", "NEWFALSE"),
    *("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "SHORT_BINUNICODE", "BINUNICODE"),
}


@pytest.fixture(scope="module")
def snapshot() -> snapshot_maker.Snapshot:
    operations = random_operations(random.Random(8), 800)
    return snapshot_maker.make_snapshot(operations, capacity=300 * MIB, device=1)


def test_the_shape_is_that_of_pytorch(snapshot: snapshot_maker.Snapshot) -> None:
    assert list(snapshot) == [
        *("segments", "device_traces", "allocator_settings", "external_annotations")
    ]
    for entry in snapshot["device_traces"][1]:
        failed = entry["action"] == "oom"
        assert entry.keys() == (ENTRY - {"addr"} | {"device_free"} if failed else ENTRY)
    for segment in snapshot["segments"]:
        assert segment.keys() == SEGMENT
        assert segment["segment_pool_id"] == (0, 0)
        for block in segment["blocks"]:
            assert block.keys() == BLOCK
    last = snapshot["external_annotations"][-1]
    assert last.keys() == {"stage", "name", "device", "time_us"}
    assert {type(value) for value in plain(snapshot)} == {int, str, bool, float}


def plain(value: Any) -> Any:
    """All that is in containers, which must be Python's own."""
    if type(value) is dict:
        for key, inside in value.items():
            assert type(key) is str
            yield from plain(inside)
    elif type(value) in (list, tuple):
        for inside in value:
            yield from plain(inside)
    else:
        yield value


@pytest.mark.torch
def test_pytorchs_own_tools_read_it(snapshot: snapshot_maker.Snapshot) -> None:
    viz = pytest.importorskip("torch.cuda._memory_viz")
    summary = viz.segsum(snapshot)
    reserved = sum(segment["total_size"] for segment in snapshot["segments"])
    assert f"segments: {len(snapshot['segments'])}\n" in summary
    assert f"total_reserved: {reserved / MIB:.1f}MiB\n" in summary
    told = viz.trace(snapshot)
    count = len(snapshot["device_traces"][1])
    assert f"Device 1 ----------------\n{count} entries\n" in told
    assert "cudaMalloc(" in told
    assert "cudaFree(" in told
    assert "raise OutOfMemoryError" in told
    frames = viz.memory(snapshot, format_flamegraph=lambda lines: lines)
    assert "train.py:1:<module>;train.py:7:step;model.py:1" in frames
    assert viz.segments(snapshot, format_flamegraph=lambda lines: lines).count("seg_") > 10
    for page in (viz.trace_plot(snapshot), viz.segment_plot(snapshot)):
        assert "snapshot.pickle" in page
    left = viz.filter_alloc_free_pairs({"device_traces": list(snapshot["device_traces"])})
    assert len(left["device_traces"][1]) < count


def test_the_pickle_has_what_memory_viz_reads(snapshot: snapshot_maker.Snapshot) -> None:
    written = pickle.dumps(snapshot, PROTOCOL)
    assert {opcode.name for opcode, _, _ in pickletools.genops(written)} <= VIZ_OPCODES
    numbers = [value for value in plain(snapshot) if type(value) is int]
    assert max(numbers) < 2**53  # JavaScript's numbers are no larger


def replayed(path: Path, text: str = "", **options: Any) -> ReplayedHistory:
    (loaded,) = load_trace(str(path))
    return replay_history(loaded, "cuda:0", text, **options)


def test_stacks_and_scopes_become_frames(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = tmp_path / "run.parquet"
    rows = [("alloc", 0, 100), ("alloc", 1, 100), ("alloc", 2, 100), ("alloc", 3, 100)]
    made = columns(rows, device=["cuda:0"] * 4)
    made |= {"stack_id": [0, 0, None, None], "scope": [None, "a/aten::mm", "a;b", None]}
    with TraceWriter(path, {"stacks": True, "start_wall_clock": "2026-01-01T00:00:00+00:00"}) as w:
        w.write(made)
    stack = "/a dir/train.py:12 <module>;plain_name;/b:3.py:7 f"
    pq.write_table(
        pa.table({"stack_id": pa.array([0], pa.int32()), "stack": [stack]}),
        tmp_path / "run.stacks.parquet",
    )
    source = exporters.ReplaySource(*(lambda r: (r.history, r.origins))(replayed(path)))
    trace = snapshot_of(source)["device_traces"][0]
    outer = [
        {"name": "f", "filename": "/b:3.py", "line": 7},
        {"name": "plain_name", "filename": "??", "line": 0},
        {"name": "<module>", "filename": "/a dir/train.py", "line": 12},
    ]
    op = {"name": "a/aten::mm", "filename": "??", "line": 0}
    frames = [entry["frames"] for entry in trace if entry["action"] == "alloc"]
    assert frames == [outer, [op, *outer], [{"name": "a:b", "filename": "??", "line": 0}], []]
    assert frames[0][0] is frames[1][1]
    assert trace[0]["action"] == "segment_alloc"
    assert trace[0]["frames"] is frames[0]
    first = 1_767_225_600_000_000
    assert [entry["time_us"] - first for entry in trace] == [0] * 5
    blocks = snapshot_of(source)["segments"][0]["blocks"]
    assert [block["frames"] for block in blocks] == [*frames, []]


@pytest.mark.parametrize("clock", [None, "", "yesterday", "2026-01-01T00:00:00", 5])
def test_a_start_that_is_not_told_is_zero(tmp_path: Path, clock: Any) -> None:
    operations = [("alloc", 0, 100, 0)]
    loaded = snapshot_maker.loaded_trace(operations)
    loaded.metadata["start_wall_clock"] = clock
    made = replay_history(loaded, "cuda:0")
    assert made.origins.time_us.tolist() == [0, 0]


def test_the_moment_is_chosen(tmp_path: Path) -> None:
    sizes = [10, 30, 20]
    rows = [("alloc", number, size * MIB) for number, size in enumerate(sizes)]
    rows += [("free", 1, 30 * MIB), ("empty_cache", -1, 0), ("alloc", 3, 40 * MIB)]
    path = write_trace(tmp_path / "run.parquet", rows, device=["cuda:0"] * len(rows))
    assert replayed(path).event == 5
    assert replayed(path, at="peak").event == 5
    peak = replayed(path, at=2)
    assert (peak.event, peak.unread, peak.history.after.reserved) == (2, 3, 60 * MIB)
    assert len(peak.history.action) == 6
    short = replayed(path, capacity=65 * MIB)
    assert (short.event, short.out_of_memory, short.unread) == (5, True, 0)
    assert short.history.action[-1] == 7
    assert replayed(path, capacity=65 * MIB, at="oom").event == 5
    assert replayed(path, capacity=65 * MIB, at="peak").event == 2
    with pytest.raises(UsageError, match="does not run out of memory"):
        replayed(path, at="oom")
    with pytest.raises(UsageError, match=r"outside the replay; its events are .* 0 to 5"):
        replayed(path, at=6)
    with pytest.raises(UsageError, match=r"ran out of memory at event 1;.*--at oom"):
        replayed(path, capacity=25 * MIB, at=4)
    (loaded,) = load_trace(str(path))
    with pytest.raises(UsageError, match="no event of 'cuda:1'"):
        replay_history(loaded, "cuda:1")
    with pytest.raises(UsageError, match="max_split"):
        replayed(path, "max_split_size_mb:1")


@pytest.mark.parametrize(
    ("text", "changed"),
    [
        ("", {}),
        ("max_split_size_mb:64", {"max_split_size": 64 * MIB}),
        ("expandable_segments:True", {"expandable_segments": True}),
        ("garbage_collection_threshold:0.8", {"garbage_collection_threshold": 0.8}),
        ("pinned_num_register_threads:4", {"pinned_num_register_threads": 4}),
        (
            "pinned_use_cuda_host_register:True,release_lock_on_cudamalloc:True",
            {"pinned_use_cuda_host_register": True, "release_lock_on_cudamalloc": True},
        ),
    ],
)
def test_settings(text: str, changed: dict[str, Any]) -> None:
    assert allocator_settings(text) == {
        "PYTORCH_CUDA_ALLOC_CONF": text,
        "max_split_size": -1,
        "garbage_collection_threshold": 0.0,
        "expandable_segments": False,
        "pinned_num_register_threads": 1,
        "release_lock_on_cudamalloc": False,
        "pinned_use_cuda_host_register": False,
        "roundup_power2_divisions": {str(2**power): 0 for power in range(16)},
        **changed,
    }


@pytest.mark.parametrize(
    "text", ["0", "8", "[1:2,64:8,256:4,>:2]", "[2:4,8:1,>:0]", "[>:4]", "[4:16]", "[65536:2]"]
)
def test_divisions_and_rounding_are_those_of_the_rules(text: str) -> None:
    from caching_model import Model
    from caching_settings import Conf

    setting = f"roundup_power2_divisions:{text},max_split_size_mb:100"
    found = allocator_settings(setting)
    conf = Conf.read(setting)
    assert list(found["roundup_power2_divisions"].values()) == conf.divisions
    assert found["max_split_size"] == 100 * MIB
    model = Model(conf, 1 << 40)
    rng = random.Random(text)
    for size in [1, 511, 512, 513, MIB, *(int(2 ** rng.uniform(0, 38)) for _ in range(300))]:
        assert rounded(size, found) == model.round(size), size


# -- Formats are found -----------------------------------------------------------------------------


def test_the_formats() -> None:
    found = exporters.discover()
    assert list(found) == ["chrome-counters", "minimalloc", "torch-snapshot"]
    suffixes = [exporter.SUFFIX for exporter in found.values()]
    assert len(set(suffixes)) == len(suffixes)


class Point:
    """An entry point of another package."""

    def __init__(self, load: Callable[[], Any]) -> None:
        self.name, self.value, self.load = "other", "other.module", load


def others(**parts: Any) -> Callable[..., list[Point]]:
    module = ModuleType("other.module")
    module.__dict__.update(
        {"NAME": "other", "SUMMARY": "s", "SUFFIX": ".o", "NEEDS": "trace", "write": print} | parts
    )
    return lambda group: [Point(lambda: module)] if group == "workbench.exporters" else []


def test_formats_of_other_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exporters, "entry_points", others())
    assert exporters.discover()["other"].SUFFIX == ".o"
    monkeypatch.setattr(exporters, "entry_points", others(NAME="minimalloc"))
    with pytest.raises(WorkbenchError, match="both named 'minimalloc'"):
        exporters.discover()

    def broken() -> Any:
        raise ImportError("no module named x")

    monkeypatch.setattr(exporters, "entry_points", lambda group: [Point(broken)])
    with pytest.raises(WorkbenchError, match=r"'other' \(other.module\) cannot be loaded \(no mod"):
        exporters.discover()


def test_a_format_that_lacks_a_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "half_a_format").mkdir()
    (tmp_path / "half_a_format" / "__init__.py").touch()
    (tmp_path / "half_a_format" / "one.py").write_text("NAME = 'one'\n")
    (tmp_path / "half_a_format" / "_no_format.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(WorkbenchError, match=r"half_a_format\.one: an export format needs SUMMARY"):
        exporters.discover([str(tmp_path / "half_a_format")], "half_a_format")
    for name in [name for name in sys.modules if name.startswith("half_a_format")]:
        monkeypatch.delitem(sys.modules, name)


def test_numpy_is_left_behind(snapshot: snapshot_maker.Snapshot) -> None:
    assert b"numpy" not in pickle.dumps(snapshot, PROTOCOL)
    assert not any(isinstance(value, np.generic) for value in plain(snapshot))
