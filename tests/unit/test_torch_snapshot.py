"""The snapshots that `wb export` writes: their shape, and that they tell what the replay did."""

from __future__ import annotations

import pickle
import pickletools
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import snapshot_maker
from random_operations import random_operations
from trace_maker import columns, write_trace

from workbench.common.errors import BrokenFileError, UsageError
from workbench.recorders import exporters
from workbench.recorders.exporters._torch_settings import allocator_settings, rounded
from workbench.recorders.exporters.torch_snapshot import PROTOCOL, snapshot_of
from workbench.recorders.trace import TraceWriter
from workbench.replay.events import load_trace
from workbench.replay.journal import ReplayedHistory, replay_history

MIB = 2**20
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


def test_numpy_is_left_behind(snapshot: snapshot_maker.Snapshot) -> None:
    assert b"numpy" not in pickle.dumps(snapshot, PROTOCOL)
    assert not any(isinstance(value, np.generic) for value in plain(snapshot))


@pytest.mark.parametrize(
    ("name", "number"), [("cuda:3", 3), ("cpu", 0), ("cuda:", 0), ("cuda:128", 0), ("x:1:2", 0)]
)
def test_the_number_of_the_device(name: str, number: int) -> None:
    loaded = snapshot_maker.loaded_trace([("alloc", 0, 100, 0)], name)
    made = replay_history(loaded, name)
    snapshot = snapshot_of(exporters.ReplaySource(made.history, made.origins))
    assert snapshot["segments"][0]["device"] == number
    assert [len(trace) for trace in snapshot["device_traces"]] == [0] * number + [2]


@pytest.mark.parametrize(
    ("stacks", "names"),
    [
        ([None, ";;", f"/f.py:{'9' * 5000} f"], ["", f"/f.py:{'9' * 5000} f"]),
        (["/f.py:3 two\nlines", "a;b", ""], ["two\nlines", "b", "a"]),
    ],
)
def test_stacks_that_make_no_sense(tmp_path: Path, stacks: list[Any], names: list[str]) -> None:
    trace = snapshot_maker.snapshot_of(exporters.ReplaySource(*with_stacks(tmp_path, stacks)))
    frames = {frame["name"] for entry in trace["device_traces"][0] for frame in entry["frames"]}
    assert frames == set(names)


def test_a_table_of_stacks_that_is_none(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    with_stacks(tmp_path, ["a"])
    for table in (pa.table({"x": [1]}), pa.table({"stack": [[1]]})):
        pq.write_table(table, tmp_path / "run.stacks.parquet")
        with pytest.raises(BrokenFileError, match="not a table of stacks"):
            replayed(tmp_path / "run.parquet")
    (tmp_path / "run.stacks.parquet").write_text("text")
    with pytest.raises(BrokenFileError, match="not a table of stacks"):
        replayed(tmp_path / "run.parquet")


def with_stacks(folder: Path, stacks: list[Any]) -> tuple[Any, Any]:
    """The history and the origins of a trace with an allocation from each of `stacks`."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = [("alloc", number, 100) for number in range(len(stacks))]
    made = columns(rows, device=["cuda:0"] * len(rows)) | {"stack_id": list(range(len(rows)))}
    with TraceWriter(folder / "run.parquet", {"stacks": True}) as writer:
        writer.write(made)
    table = pa.table({"stack": pa.array(stacks, pa.string())})
    pq.write_table(table, folder / "run.stacks.parquet")
    found = replayed(folder / "run.parquet")
    return found.history, found.origins
