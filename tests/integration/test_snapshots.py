"""From a replay to its snapshots, waterfalls and statistics, through real processes."""

from __future__ import annotations

import gc
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import workbench
from workbench.common.errors import BrokenFileError, RunError, UsageError
from workbench.recorders.trace import TraceWriter
from workbench.replay.result_fields import WATERFALL
from workbench.replay.results import CellResult, load_results
from workbench.replay.summary import Result
from workbench.replay.summary_rows import rows

MakeTrace = Callable[..., Path]
MIB = 2**20
DEVICE = "cuda:0"
VARIABLES = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")


def steps(count: int = 40) -> list[tuple[str, int, int]]:
    """Allocations of 3 MiB of which every fourth stays."""
    made: list[tuple[str, int, int]] = []
    for number in range(count):
        made.append(("alloc", number, 3 * MIB))
        if number >= 8 and number % 4:
            made.append(("free", number - 8, 3 * MIB))
    return made


def replay(trace: Path, allocator: Any = "caching", **options: Any) -> Result:
    return workbench.replay(trace, allocator, **{"repeat": 1, "capacity": "1GiB", **options})


def wb(folder: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    kept = {name: text for name, text in os.environ.items() if name not in VARIABLES}
    return subprocess.run(
        [sys.executable, "-m", "workbench", *arguments],
        capture_output=True,
        text=True,
        cwd=folder,
        env={**kept, "PYTHONSAFEPATH": "1", "NO_COLOR": "1", **variables},
        timeout=120,
        check=False,
    )


@pytest.fixture
def no_settings(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """An environment without settings for PyTorch's allocator."""
    for variable in VARIABLES:
        monkeypatch.delenv(variable, raising=False)
    return monkeypatch


def test_the_peak_of_every_allocator_has_a_waterfall_that_adds_up(make_trace: MakeTrace) -> None:
    trace = make_trace(steps(), device=DEVICE)
    result = replay(trace, ["all", "caching:expandable_segments:True"])
    for cell in result:
        if cell.info["allocator"]["latency_source"] == "reference":
            continue  # a library need not tell what its memory is made of
        memory = cell.info["memory"]
        parts = {name: memory["waterfall"][name] for name in WATERFALL}
        assert sum(parts.values()) == memory["peaks"]["reserved"]["bytes"]
        assert memory["waterfall"]["event"] == memory["peaks"]["reserved"]["event"]
        snapshot = cell.snapshot_at("peak")
        assert snapshot.event == memory["waterfall"]["event"]
        assert snapshot.waterfall == parts
        assert snapshot.label == cell.info["label"]
        at_peak = cell.blocks[cell.blocks["moment"] == "peak"]
        for name in ("segment", "offset", "size", "requested", "state", "id"):
            assert snapshot.blocks[name].tolist() == at_peak[name].tolist()
    frame = result.to_pandas()
    frame = frame[frame["latency_source"] != "reference"]
    parts_of = frame[[f"waterfall_{name}_bytes" for name in WATERFALL]]
    assert (parts_of.sum(axis=1) == frame["peak_reserved_bytes"]).all()
    expandable = result[-1].info["memory"]["driver_calls"]
    assert expandable["map"] > 0
    assert expandable["alloc"] == 0
    assert frame["device_calls"].tolist()[-1] == expandable["map"] + expandable["unmap"]


def test_a_cell_outlives_the_result_it_came_from(make_trace: MakeTrace) -> None:
    cell = replay(make_trace(steps(), device=DEVICE))[0]
    gc.collect()
    assert len(cell.timeline)
    folder = cell.folder
    del cell
    gc.collect()
    assert not folder.exists()


def test_the_result_of_one_cell_has_its_snapshots(make_trace: MakeTrace) -> None:
    trace = make_trace(steps(), device=DEVICE)
    result = replay(trace)
    assert result.snapshot_at("peak").waterfall == result[0].snapshot_at("peak").waterfall
    with pytest.raises(UsageError, match=r"2 cells; say which one's snapshot"):
        replay(trace, ["caching", "direct"]).snapshot_at("peak")


def test_out_of_memory_has_a_snapshot_and_what_comes_after_has_none(make_trace: MakeTrace) -> None:
    trace = make_trace(steps(), device=DEVICE)
    (cell,) = replay(trace, capacity="40MiB")
    oom = cell.info["outcome"]["oom"]
    snapshot = cell.snapshot_at("oom")
    assert snapshot.event == oom["event"]
    assert snapshot.waterfall == oom["waterfall"]
    assert snapshot.reserved == oom["reserved"]
    assert snapshot.largest_free == oom["largest_free"]
    with pytest.raises(UsageError, match=f"not reached: .* at event {oom['event']}"):
        cell.snapshot_at(oom["event"] + 1)
    (on,) = replay(trace, capacity="40MiB", after_oom="continue")
    assert on.snapshot_at("oom").waterfall == oom["waterfall"]
    assert on.snapshot_at(oom["event"] + 1).event == oom["event"] + 1


def test_events_are_rows_of_the_trace(make_trace: MakeTrace) -> None:
    both = [("alloc", 0, MIB), ("alloc", 1, 7), ("alloc", 2, MIB), ("free", 1, 7), ("free", 0, MIB)]
    devices = ["cpu" if row[1] == 1 else DEVICE for row in both]
    trace = make_trace([("mark", -1, 0), *both], device=[DEVICE, *devices])
    (cell,) = replay(trace)
    assert cell.snapshot_at(1).waterfall["live_requested"] == MIB
    # Rows of other devices change nothing: the last event before them counts.
    second, between, last = (cell.snapshot_at(event) for event in (np.int64(3), 4, 5))
    assert (second.event, between.event, last.event) == (3, 3, 5)
    assert second.blocks["alloc_event"].max() == 3
    assert second.blocks["age"].tolist()[:2] == [2, 0]
    pd.testing.assert_frame_equal(second.blocks, between.blocks)
    for outside in (-1, 0, 6):
        with pytest.raises(UsageError, match=rf"event {outside} is outside .* 1 to 5"):
            cell.snapshot_at(outside)


@pytest.mark.parametrize("what", [True, "latest", 1.5, None])
def test_what_is_no_event_is_wrong_use(what: Any, make_trace: MakeTrace) -> None:
    (cell,) = replay(make_trace(steps(4), device=DEVICE))
    with pytest.raises(UsageError, match="give 'peak', 'oom' or the number of an event"):
        cell.snapshot_at(what)


def test_moments_that_never_came_are_wrong_use(make_trace: MakeTrace) -> None:
    (cell,) = replay(make_trace(steps(4), device=DEVICE))
    with pytest.raises(UsageError, match="did not run out of memory"):
        cell.snapshot_at("oom")
    (empty,) = replay(make_trace([], name="empty"))
    with pytest.raises(UsageError, match="has no peak"):
        empty.snapshot_at("peak")
    with pytest.raises(UsageError, match=r"outside .* none"):
        empty.snapshot_at(0)
    (late,) = replay(make_trace(steps(4), name="late", device=DEVICE), timeout=0.001)
    with pytest.raises(UsageError, match="ended as timed out"):
        late.snapshot_at("peak")


def test_the_trace_must_still_be_there_and_the_same(make_trace: MakeTrace, tmp_path: Path) -> None:
    trace = make_trace(steps(), device=DEVICE)
    replay(trace, output=tmp_path / "kept")
    (kept,) = load_results([tmp_path / "kept"])
    before = kept.snapshot_at("peak").waterfall
    make_trace(steps(12), device=DEVICE)
    # What was read once needs no file any more.
    assert kept.snapshot_at("peak").waterfall == before
    (kept,) = load_results([tmp_path / "kept"])
    with pytest.raises(BrokenFileError, match=r"run\.parquet: .* is not that of run\.cuda"):
        kept.snapshot_at("peak")
    trace.unlink()
    with pytest.raises(BrokenFileError, match=r"run\.parquet: .*no such file.*; put the trace"):
        kept.snapshot_at("peak")


def test_a_workbench_that_decides_otherwise_says_so(make_trace: MakeTrace, tmp_path: Path) -> None:
    replay(make_trace(steps(), device=DEVICE), output=tmp_path / "kept")
    (cell,) = load_results([tmp_path / "kept"])
    cell.info["digests"]["cold"] = "of an older version"
    with pytest.raises(RunError, match=r"decides otherwise here .* replay the trace again"):
        cell.snapshot_at("peak")


def test_stacks_are_named_where_the_trace_has_them(tmp_path: Path) -> None:
    trace = tmp_path / "run.parquet"
    sizes = [40 * MIB, 40 * MIB, 3 * MIB]
    ids = [0, 0, 1]
    with TraceWriter(trace, {"stacks": True}) as writer:
        writer.write(
            {
                "time_ns": [0, 1, 2],
                "event": ["alloc", "free", "alloc"],
                "id": ids,
                "size": sizes,
                "device": [DEVICE] * 3,
                **{name: [0] * 3 for name in ("stream", "thread", "pool", "step")},
                "phase": ["forward"] * 3,
                "stack_id": pa.array([0, None, 1], pa.int32()),
            }
        )
    stacks = {"stack_id": [0, 1], "stack": ["main;first", "main;train.py:9 keep"]}
    pq.write_table(pa.table(stacks), tmp_path / "run.stacks.parquet")
    (cell,) = replay(trace)
    snapshot = cell.snapshot_at(2)
    assert snapshot.blocks["stack"].tolist() == ["main;train.py:9 keep", None]
    assert snapshot.pinned_by()["stack"].tolist() == ["main;train.py:9 keep"]
    assert "train.py:9 keep" in snapshot._repr_html_()
    (tmp_path / "run.stacks.parquet").write_text("not Parquet")
    with pytest.raises(BrokenFileError, match=r"run\.stacks\.parquet: not a table of stacks"):
        cell.snapshot_at(2)
    (tmp_path / "run.stacks.parquet").unlink()
    assert cell.snapshot_at(2).blocks["stack"].tolist() == [None, None]


def test_torch_statistics_are_the_flat_dictionary(make_trace: MakeTrace) -> None:
    caching, direct = replay(make_trace(steps(), device=DEVICE), ["caching", "direct"])
    found = caching.torch_statistics
    memory = caching.info["memory"]
    assert found["reserved_bytes.all.peak"] == memory["peaks"]["reserved"]["bytes"]
    assert found["allocated_bytes.all.current"] == memory["finals"]["allocated"]
    assert found["num_device_alloc"] == memory["counters"]["device_allocs"]
    assert found["requested_bytes.large_pool.allocated"] == 40 * 3 * MIB
    assert direct.torch_statistics == {}


def test_statistics_are_printed_on_request(make_trace: MakeTrace, tmp_path: Path) -> None:
    make_trace(steps(), device=DEVICE)
    command = ("replay", "run.parquet", "-a", "caching", "-a", "direct", "--repeat", "1")
    done = wb(tmp_path, *command, "--stats", "torch")
    assert done.returncode == 0, done.stderr
    assert "Peak of reserved, part by part" in done.stdout
    assert "torch.cuda.memory_stats of direct: not reported." in done.stdout
    (line,) = (one for one in done.stdout.splitlines() if "allocated_bytes.all.peak" in one)
    peak = load_results([tmp_path / "results"])[0].torch_statistics["allocated_bytes.all.peak"]
    assert f"{peak:,}" in line
    assert "MiB" in line
    names = [one.split()[1] for one in done.stdout.splitlines() if ".all." in one]
    assert names == sorted(names)
    assert "memory_stats" not in wb(tmp_path, *command).stdout
    document = json.loads(wb(tmp_path, *command, "--json").stdout)
    assert document["cells"][0]["memory"]["torch_statistics"]["num_ooms"] == 0
    assert document["cells"][1]["memory"]["torch_statistics"] == {}
    wrong = wb(tmp_path, *command, "--stats", "tensorflow")
    assert wrong.returncode == 2
    assert "write --stats torch" in wrong.stderr


def test_settings_come_from_the_environment(
    make_trace: MakeTrace, no_settings: pytest.MonkeyPatch
) -> None:
    trace = make_trace(steps(), device=DEVICE)
    with pytest.raises(UsageError, match="neither PYTORCH_ALLOC_CONF nor PYTORCH_CUDA_ALLOC_CONF"):
        replay(trace, "caching:env")
    no_settings.setenv("PYTORCH_CUDA_ALLOC_CONF", "max_split_size_mb:64")
    no_settings.setenv("PYTORCH_ALLOC_CONF", " expandable_segments: True, ")
    (cell,) = replay(trace, "caching:env")
    assert cell.info["label"] == "caching (expandable_segments:True)"
    assert cell.info["allocator"]["settings"] == {"expandable_segments": "True"}
    assert cell.name == "run.cuda-0.caching-expandable_segments-True.simulated.1GiB"
    with pytest.raises(UsageError, match="'env' of caching has no colon"):
        replay(trace, "caching:env,max_split_size_mb:64")
    no_settings.setenv("PYTORCH_ALLOC_CONF", "max_split_size:64")
    with pytest.raises(UsageError, match="--allocator caching:env: unknown setting"):
        replay(trace, "caching:env")


def test_settings_come_from_the_environment_on_the_command_line(
    make_trace: MakeTrace, tmp_path: Path
) -> None:
    make_trace(steps(), device=DEVICE)
    command = ("replay", "run.parquet", "-a", "caching:env", "--repeat", "1")
    absent = wb(tmp_path, *command)
    assert absent.returncode == 2
    assert absent.stderr.count("\n") == 1
    assert "write the settings after the colon" in absent.stderr
    found = wb(tmp_path, *command, PYTORCH_CUDA_ALLOC_CONF="garbage_collection_threshold:0.5")
    assert found.returncode == 0, found.stderr
    assert "caching (garbage_collection_threshold:0.5)" in found.stdout
    # What the engine has to say about them is said.
    assert "does nothing without per_process_memory_fraction below 1" in found.stdout


def test_warnings_about_settings_are_in_the_result(make_trace: MakeTrace) -> None:
    hurting = "caching:expandable_segments:True,max_split_size_mb:64"
    (cell,) = replay(make_trace(steps(), device=DEVICE), hurting)
    (said,) = (text for text in cell.info["warnings"] if "max_split_size_mb with" in text)
    assert said.startswith("caching (expandable_segments:True,max_split_size_mb:64): ")
    assert said.endswith(".")


def test_results_without_the_newer_fields_are_shown(
    make_result: Callable[..., Path], tmp_path: Path
) -> None:
    cell = CellResult(make_result(tmp_path, "caching"))
    assert cell.torch_statistics == {}
    (row,) = rows([cell])
    assert row["waterfall_cached_bytes"] is None
    assert row["device_calls"] == 15


def test_the_example_in_the_documentation_runs(
    make_trace: MakeTrace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_trace(steps(), device=DEVICE, scope="layer/aten::mm")
    page = (Path(__file__).parents[2] / "docs" / "method.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"```python\n(.*?)```", page, re.S)
    monkeypatch.chdir(tmp_path)
    exec(compile(example, "docs/method.md", "exec"), {})
