"""`caching` on the simulated device does what PyTorch's own CUDA binary does there.

The binary runs over the stand-in for the CUDA runtime: it takes a CUDA build of torch and no GPU.
"""

from __future__ import annotations

import json
import os
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from caching_settings import MIB
from cuda_stub_runs import (
    UNAVAILABLE,
    golden_of,
    hold_against_pytorch,
    replayed,
    settings_for_pytorch,
)
from engine_events import make_events, read_golden
from random_operations import random_operations
from trace_maker import write_trace

from workbench.common.errors import UsageError
from workbench.common.torch_build import find_torch
from workbench.common.units import parse_size
from workbench.replay.choice import choose_allocators
from workbench.replay.events import load_trace
from workbench.replay.job import Options
from workbench.replay.runner import replay_traces

pytestmark = [
    pytest.mark.cuda_stub,
    pytest.mark.skipif(bool(UNAVAILABLE), reason=UNAVAILABLE or "it is here"),
]
GOLDEN = Path(__file__).parents[1] / "data" / "caching_golden"
RUNS = json.loads((GOLDEN / "manifest.json").read_text(encoding="utf-8"))
CAPACITIES = [24 * MIB, 45 * MIB, 64 * MIB + 4321, 101 * MIB, 160 * MIB, 250 * MIB, None]
COMPLETIONS = ["recorded", "recorded", "immediate", "never", "delay:3", "delay:40"]
EXAMPLES = sorted(Path(os.environ.get("WORKBENCH_EXAMPLE_TRACES", "/nowhere")).glob("*.parquet"))
# By name: over the stand-in, which other tests have loaded here, there seems to be a GPU.
ON_SIMULATED = Options(repeat=1, backend="simulated")
ON_EXAMPLES = [
    "",
    "expandable_segments:True",
    "max_split_size_mb:32",
    "roundup_power2_divisions:4",
    "large_segment_size_mb:64",
    "garbage_collection_threshold:0.5,per_process_memory_fraction:0.8",
]


@pytest.fixture(autouse=True)
def _rules_are_of_this_release() -> None:
    if not UNAVAILABLE and not find_torch().version.startswith("2.13."):
        pytest.skip("`caching` has the rules of torch 2.13")


@pytest.mark.parametrize("run", RUNS, ids=lambda run: Path(run["file"]).stem)
def test_pytorchs_binary_does_again_what_it_did(run: dict[str, Any]) -> None:
    capacity = parse_size(run["capacity"], "capacity")
    events = read_golden(GOLDEN / "traces" / f"{run['trace']}.csv")
    memory = replayed(events, "torch-caching", run["settings"], capacity)
    for name, expected in golden_of(GOLDEN / run["file"]).items():
        different = np.flatnonzero(expected != memory["timeline"][name].astype(np.int64))
        assert not different.size, f"{name} differs from event {different[0]} on"


@pytest.mark.parametrize("seed", range(100))
def test_random_programs_go_alike_under_random_settings(seed: int) -> None:
    rng = random.Random(seed)
    events = make_events(random_operations(rng, rng.choice([60, 300, 1200])))
    for _ in range(3):
        hold_against_pytorch(
            events, settings_for_pytorch(rng), rng.choice(CAPACITIES), rng.choice(COMPLETIONS)
        )


def test_a_range_too_small_for_its_request_stays_for_others() -> None:
    operations = [
        *(("alloc", 0, 48 * MIB, 1), ("alloc", 1, 11 * MIB, 1), ("alloc", 2, 48 * MIB, 1)),
        *(("free", 1, 0, 1), ("alloc", 3, 12 * MIB, 1), ("alloc", 4, 5 * MIB, 2)),
    ]
    hold_against_pytorch(make_events(operations), "expandable_segments:True", 24 * MIB)


def test_refusing_at_once_is_for_the_whole_device() -> None:
    operations = [("alloc", 0, 30 * MIB, 0), ("free", 0, 0, 0), ("alloc", 1, 60 * MIB, 0)]
    for fraction in ("1", "0.9", "0.99"):
        settings = f"throw_on_cudamalloc_oom:True,per_process_memory_fraction:{fraction}"
        hold_against_pytorch(make_events(operations), settings, 64 * MIB)


@pytest.mark.skipif(not EXAMPLES, reason="WORKBENCH_EXAMPLE_TRACES names no folder of traces")
@pytest.mark.parametrize("settings", ON_EXAMPLES)
@pytest.mark.parametrize("trace", EXAMPLES, ids=lambda path: path.stem)
def test_recorded_programs_go_alike(trace: Path, settings: str) -> None:
    traffic = load_trace(str(trace))[0].traffic("cpu")
    events = traffic.events()
    assert hold_against_pytorch(events, settings, None) > 1000
    peak = replayed(events, "caching", settings, None)["peaks"]["reserved"]["bytes"]
    assert peak
    hold_against_pytorch(events, settings, peak * 3 // 4 // MIB * MIB)


def test_each_begins_afresh_whatever_was_before() -> None:
    events = make_events(random_operations(random.Random(7), 300))
    first = replayed(events, "torch-caching", "", 101 * MIB)["timeline"]
    for settings in (
        "max_split_size_mb:20,large_segment_size_mb:12,roundup_power2_divisions:8",
        "expandable_segments:True,throw_on_cudamalloc_oom:True",
        "garbage_collection_threshold:0.3,per_process_memory_fraction:0.5",
        "garbage_collection_threshold:0.3",
    ):
        hold_against_pytorch(events, settings, 64 * MIB)
        again = replayed(events, "torch-caching", "", 101 * MIB)["timeline"]
        for name, column in first.items():
            assert (column == again[name]).all(), name


def test_it_is_replayed_and_compared_by_name(tmp_path: Path) -> None:
    rows = [("alloc", number, 3 * MIB) for number in range(40)]
    rows += [("free", number, 3 * MIB) for number in range(40)]
    trace = write_trace(tmp_path / "run.parquet", rows, device=["cuda:0"] * len(rows))
    session = replay_traces(
        [str(trace)], ["caching", "torch-caching"], tmp_path / "out", ON_SIMULATED
    )
    ours, theirs = (result.info for result in session.results)
    assert ours["outcome"] == theirs["outcome"]
    assert theirs["allocator"]["latency_source"] == "reference"
    for name in ("allocated", "reserved", "active"):
        assert ours["memory"]["peaks"][name] == theirs["memory"]["peaks"][name]
    assert theirs["memory"]["driver_calls"]["alloc"] == ours["memory"]["driver_calls"]["alloc"]


def test_the_other_allocator_of_the_binary_asks_its_pool_for_the_same(tmp_path: Path) -> None:
    rng = random.Random(3)
    rows: list[tuple[str, int, int]] = []
    live: dict[int, int] = {}
    for number in range(400):
        live[number] = rng.randrange(1, 9 * MIB)
        rows.append(("alloc", number, live[number]))
        if len(live) > 20:
            freed = rng.choice(list(live))
            rows.append(("free", freed, live.pop(freed)))
    trace = write_trace(tmp_path / "run.parquet", rows, device=["cuda:0"] * len(rows))
    session = replay_traces([str(trace)], ["async", "torch-async"], tmp_path / "out", ON_SIMULATED)
    ours, theirs = (result.info for result in session.results)
    assert ours["outcome"] == theirs["outcome"]
    for name in ("allocated", "active"):
        assert ours["memory"]["peaks"][name] == theirs["memory"]["peaks"][name]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ("max_split_size_mb:1", "max_split_size_mb"),
        ("expandable_segments:yes", "expandable_segments"),
        ("foo:1", "unknown setting 'foo'"),
    ],
)
def test_wrong_settings_are_said_before_anything_runs(settings: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        choose_allocators([f"torch-caching:{settings}"])
