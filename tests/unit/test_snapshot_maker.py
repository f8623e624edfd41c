"""The snapshots that tests are made of agree with themselves, and with what PyTorch's hold."""

from __future__ import annotations

import random
from collections import Counter
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import snapshot_maker
import snapshot_model
from caching_settings import MIB, random_settings
from hypothesis import given, settings
from hypothesis import strategies as st
from random_operations import commands, operations_of, random_operations
from snapshot_maker import Snapshot, cut, make_snapshot, make_source

CAPACITIES = [45 * MIB, 101 * MIB, 250 * MIB, None]
COMPLETIONS = ["recorded", "immediate", "never", "delay:3"]


def test_all_kinds_of_entries_are_made() -> None:
    seen = Counter[str]()
    for seed in range(6):
        operations = random_operations(random.Random(seed), 1000)
        for text in ("", "expandable_segments:True"):
            made = make_snapshot(operations, text, capacity=None if seed % 2 else 500 * MIB)
            check(made)
            seen.update(entry["action"] for entry in made["device_traces"][0])
            seen.update(block["state"] for one in made["segments"] for block in one["blocks"])
    assert seen.keys() == {
        *("alloc", "free_requested", "free_completed", "oom"),
        *("segment_alloc", "segment_free", "segment_map", "segment_unmap"),
        *("active_allocated", "active_pending_free", "inactive"),
    }


@settings(max_examples=60, deadline=None)
@given(
    drawn=commands(10, 80),
    text=st.builds(random_settings, st.randoms(use_true_random=False)),
    capacity=st.sampled_from(CAPACITIES),
    completion=st.sampled_from(COMPLETIONS),
    seed=st.sampled_from([None, 1, 2]),
    rules=st.sampled_from(["2.13", "address-order"]),
)
def test_state_and_entries_of_random_programs_agree(
    drawn: Any, text: str, capacity: int | None, completion: str, seed: int | None, rules: str
) -> None:
    operations = operations_of(drawn)
    if not operations:
        return
    check(
        make_snapshot(
            operations, text, capacity=capacity, completion=completion, seed=seed, rules=rules
        )
    )


@settings(max_examples=60, deadline=None)
@given(
    drawn=commands(10, 120),
    text=st.builds(random_settings, st.randoms(use_true_random=False)),
    capacity=st.sampled_from(CAPACITIES[:3]),
    completion=st.sampled_from(COMPLETIONS),
)
def test_engine_and_model_write_the_same_history(
    drawn: Any, text: str, capacity: int, completion: str
) -> None:
    operations = operations_of(drawn)
    if not operations:
        return
    model = snapshot_model.record(operations, text, capacity, completion=completion)
    by_model, events = model.history("cuda:0", text, "2.13")
    source = make_source(operations, text, capacity=capacity, completion=completion)
    by_engine = source.history
    # The engine gives ranges other addresses than the model: what counts is who shares one.
    names = ("action", "size", "stream")
    for name in names:
        np.testing.assert_array_equal(getattr(by_engine, name), getattr(by_model, name), name)
    assert renamed(by_engine.address) == renamed(by_model.address)
    times = (source.origins.time_us - snapshot_maker.start_us()) // (snapshot_maker.STEP_NS // 1000)
    assert times.tolist() == events
    for name in ("size", "stream", "is_small", "is_expandable"):
        np.testing.assert_array_equal(
            by_engine.after.segments[name], by_model.after.segments[name], name
        )
    for name in ("size", "requested", "state"):
        np.testing.assert_array_equal(
            by_engine.after.blocks[name], by_model.after.blocks[name], name
        )


def renamed(addresses: Any) -> list[int]:
    """Each address as the number of its first appearance."""
    numbers: dict[int, int] = {}
    return [numbers.setdefault(address, len(numbers)) for address in addresses.tolist()]


def test_a_driver_lets_the_rules_differ() -> None:
    different = 0
    for seed in range(6):
        sizes = [MIB // 2, 3 * MIB, 12 * MIB]  # few, so that there are ties
        operations = [
            (op, name, sizes[size % 3] if op == "alloc" else size, stream)
            for op, name, size, stream in random_operations(random.Random(seed), 300)
        ]
        by_number, by_address = (
            make_snapshot(operations, rules=rules, seed=seed) for rules in ("2.13", "address-order")
        )
        check(by_number)
        check(by_address)
        different += by_number["device_traces"] != by_address["device_traces"]
        addresses = [entry["addr"] for entry in entries(by_number, "segment_alloc")]
        assert addresses != sorted(addresses)
    assert different > 2


@pytest.mark.parametrize("at", ["peak", 100, 700])
def test_a_moment_in_the_middle(at: str | int) -> None:
    operations = random_operations(random.Random(5), 1000)
    check(make_snapshot(operations, at=at))


def test_another_device() -> None:
    made = make_snapshot(random_operations(random.Random(1), 50), device=2)
    assert made["device_traces"][:2] == [[], []]
    assert {segment["device"] for segment in made["segments"]} == {2}
    check(made)


# -- Variations of shape ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def snapshot() -> Snapshot:
    return make_snapshot(random_operations(random.Random(11), 600), "max_split_size_mb:25")


def test_old_shapes(snapshot: Snapshot) -> None:
    before = repr(snapshot)
    assert snapshot_maker.old_shape(snapshot, "2.1").keys() == {"segments", "device_traces"}
    old = snapshot_maker.old_shape(snapshot)
    assert "time_us" not in old["device_traces"][0][0]
    assert "address" not in old["segments"][0]["blocks"][0]
    allocated = [
        block
        for segment in old["segments"]
        for block in segment["blocks"]
        if block["state"] == "active_allocated"
    ]
    assert all(block["history"][0]["real_size"] <= block["size"] for block in allocated)
    assert isinstance(snapshot_maker.old_shape(snapshot, "bare"), list)
    assert repr(snapshot) == before


def test_the_newest_shape_only_adds(snapshot: Snapshot) -> None:
    newest = snapshot_maker.newest_shape(snapshot)
    assert newest.keys() > snapshot.keys()
    assert newest["device_traces"][0][0].keys() > snapshot["device_traces"][0][0].keys()
    check(newest)


def test_cut_and_only_some_actions(snapshot: Snapshot) -> None:
    trace = snapshot["device_traces"][0]
    assert cut(snapshot, 100)["device_traces"] == [trace[100:]]
    few = snapshot_maker.only_alloc_and_free_completed(snapshot)["device_traces"][0]
    assert {entry["action"] for entry in few} == {"alloc", "free_completed"}
    assert len(trace) == len(snapshot["device_traces"][0])


def test_saved_files_share_frames(snapshot: Snapshot, tmp_path: Path) -> None:
    import pickle

    for protocol in (2, 4, 5):
        path = snapshot_maker.save(snapshot, tmp_path / f"{protocol}.pickle", protocol)
        read = pickle.loads(path.read_bytes())
        assert read == snapshot
        lists = {id(entry["frames"]) for entry in read["device_traces"][0]}
        assert len(lists) <= 10


# -- What must hold --------------------------------------------------------------------------------


def entries(snapshot: Snapshot, *actions: str) -> list[dict[str, Any]]:
    trace = snapshot["device_traces"][snapshot_maker.device_of(snapshot)]
    return [entry for entry in trace if entry["action"] in actions]


def check(snapshot: Snapshot) -> None:
    """Blocks tile their segments, sums add up, and the entries lead from nothing to the state."""
    check_sums(snapshot["segments"])
    live: dict[int, int] = {}
    pending: dict[int, int] = {}
    memory: set[int] = set()
    """All memory there is, in steps of 512 bytes."""
    for entry in snapshot["device_traces"][snapshot_maker.device_of(snapshot)]:
        if entry["action"] in ("alloc", "free_requested", "free_completed"):
            end = entry["addr"] + entry["size"]
            assert memory.issuperset(range(entry["addr"] // 512, -(-end // 512)))
        match entry["action"]:
            case "alloc":
                assert entry["addr"] not in live.keys() | pending.keys()
                live[entry["addr"]] = entry["size"]
            case "free_requested":
                pending[entry["addr"]] = live.pop(entry["addr"])
                assert pending[entry["addr"]] == entry["size"]
            case "free_completed":
                assert pending.pop(entry["addr"]) == entry["size"]
            case "segment_alloc" | "segment_map":
                assert memory.isdisjoint(pages(entry))
                memory.update(pages(entry))
            case "segment_free" | "segment_unmap":
                assert memory.issuperset(pages(entry))
                memory.difference_update(pages(entry))
            case "oom":
                assert entry["device_free"] >= 0
                assert entry["size"] % 512 == 0
                assert "addr" not in entry
    found: dict[str, dict[int, int]] = {"active_allocated": {}, "active_pending_free": {}}
    for segment in snapshot["segments"]:
        for block in segment["blocks"]:
            state = block["state"].replace("awaiting", "pending")
            if state != "inactive":
                found[state][block["address"]] = block["requested_size"]
                assert block["requested_size"] <= block["size"]
    assert found == {"active_allocated": live, "active_pending_free": pending}
    assert sum(segment["total_size"] for segment in snapshot["segments"]) == 512 * len(memory)


def pages(entry: dict[str, Any]) -> range:
    """What an entry of a segment covers, in steps of 512 bytes."""
    assert entry["size"] % 512 == 0
    return range(entry["addr"] // 512, (entry["addr"] + entry["size"]) // 512)


def check_sums(segments: list[dict[str, Any]]) -> None:
    ends = [0, *(segment["address"] + segment["total_size"] for segment in segments)]
    for segment, end in zip(segments, islice(ends, len(segments)), strict=True):
        assert segment["address"] >= end
        at = segment["address"]
        for block in segment["blocks"]:
            assert block["address"] == at
            assert block["size"] > 0
            at += block["size"]
        assert at == segment["address"] + segment["total_size"]
        active = [block for block in segment["blocks"] if block["state"] != "inactive"]
        allocated = [block for block in active if block["state"] == "active_allocated"]
        assert segment["allocated_size"] == sum(block["size"] for block in allocated)
        assert segment["active_size"] == sum(block["size"] for block in active)
        assert segment["requested_size"] == sum(block["requested_size"] for block in active)
        assert segment["segment_type"] in ("small", "large")
