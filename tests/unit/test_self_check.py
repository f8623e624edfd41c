"""The self-check finds snapshots of our own making exact, whole and cut, whatever wrote them."""

from __future__ import annotations

import copy
import random
from pathlib import Path
from typing import Any

import pytest
from caching_settings import MIB
from hypothesis import given, settings
from hypothesis import strategies as st
from pool_operations import random_pool_operations
from random_operations import random_operations
from snapshot_cases import RULES, SETTINGS, Case, is_exact, random_case, random_cuts, verdicts
from snapshot_maker import (
    Snapshot,
    cut,
    make_snapshot,
    newest_shape,
    old_shape,
    only_alloc_and_free_completed,
    save,
    with_private_pools,
)

from workbench.importing import import_file
from workbench.replay.self_check import Verdict


def made(program: int = 1, count: int = 600, text: str = "", **options: Any) -> Snapshot:
    return make_snapshot(random_operations(random.Random(program), count), text, **options)


def assert_exact(snapshot: Snapshot, cuts: int = 4) -> list[Verdict]:
    """The verdicts on the whole of it; it must be exact from any entry on."""
    for part in random_cuts(random.Random(1), snapshot, cuts):
        for verdict in verdicts(part):
            assert verdict.kind == "exact", verdict
    return verdicts(snapshot)


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 10**9))
def test_random_programs_are_reproduced_from_any_entry_on(seed: int) -> None:
    rng = random.Random(seed)
    case = random_case(rng, 800)
    for snapshot in random_cuts(rng, case.snapshot(), 3):
        for verdict in verdicts(snapshot):
            if snapshot["device_traces"][0]:
                assert verdict.kind == "exact", (case, verdict)


@pytest.mark.parametrize("rules", RULES)
@pytest.mark.parametrize("text", SETTINGS)
def test_every_kind_of_settings_is_reproduced(text: str, rules: str) -> None:
    (verdict,) = assert_exact(made(3, 500, text, rules=rules, seed=3, capacity=900 * MIB))
    assert set(text.split(",")) <= set(verdict.settings.split(",")) or "roundup" in text


def test_the_rules_that_fit_are_named_and_become_a_setting() -> None:
    by_address = Case(random_operations(random.Random(2), 1500), rules="address-order", seed=2)
    (verdict,) = verdicts(by_address.snapshot())
    assert (verdict.rules, verdict.settings) == ("address-order", "rules:address-order")
    assert verdict.facts[0].startswith("rules: address-order (under 2.13 entry ")
    newest = Case(by_address.operations, seed=2)
    (verdict,) = verdicts(newest.snapshot())
    assert (verdict.rules, verdict.settings) == ("2.13", "")
    assert str(verdict).startswith("exact with 1 inferred fact: all ")


def test_old_shapes_are_reproduced_with_the_defaults() -> None:
    snapshot = made(4, rules="address-order", seed=4)
    for kind in ("2.1", "2.0"):
        for part in random_cuts(random.Random(4), snapshot, 4):
            (verdict,) = verdicts(old_shape(part, kind))
            assert verdict.kind == "exact", (kind, verdict)
            assert verdict.facts[0] == "settings: the defaults, since the file has none"


def test_the_newest_shape_is_reproduced() -> None:
    for part in random_cuts(random.Random(5), made(5, 400, "roundup_power2_divisions:8"), 4):
        assert is_exact(newest_shape(part))


def test_a_file_without_entries_of_segments_holds_where_none_came_or_went() -> None:
    operations = [
        one for one in random_operations(random.Random(6), 800) if one[0] != "empty_cache"
    ]
    snapshot = make_snapshot(operations)
    actions = [entry["action"] for entry in snapshot["device_traces"][0]]
    last_made = len(actions) - 1 - actions[::-1].index("segment_alloc")
    assert len(actions) - last_made > 20
    (whole,) = verdicts(only_alloc_and_free_completed(snapshot))
    assert whole.kind != "exact"
    assert "no entries about segments" in whole.problem
    (verdict,) = verdicts(only_alloc_and_free_completed(cut(snapshot, last_made + 1)))
    assert verdict.kind == "exact"


def test_a_list_of_segments_is_a_state_without_a_history() -> None:
    for snapshot in (old_shape(made(7, 200), "bare"), cut(made(7, 200), 10**6)):
        (verdict,) = verdicts(snapshot)
        assert verdict.kind == "not_reconstructible"
        assert "_record_memory_history()" in verdict.problem


def test_each_device_has_a_verdict() -> None:
    snapshot, other = made(8, 300, device=2), made(9, 300)
    snapshot["device_traces"][0] = other["device_traces"][0]
    snapshot["segments"] += other["segments"]
    found = assert_exact(snapshot)
    assert [verdict.device for verdict in found] == ["cuda:0", "cuda:2"]
    entry = next(one for one in snapshot["device_traces"][2] if one["action"] == "alloc")
    entry["addr"] += 512
    assert verdicts(snapshot)[0].kind == "exact"
    assert not is_exact(snapshot)


def test_a_program_that_goes_on_after_running_out_of_memory() -> None:
    for text in ("", "max_split_size_mb:64", "expandable_segments:True"):
        snapshot = made(10, 1500, text, capacity=260 * MIB, seed=10, goes_on=True)
        failed = [one for one in snapshot["device_traces"][0] if one["action"] == "oom"]
        assert len(failed) > 3
        assert_exact(snapshot, 12)


def test_retries_that_release_cached_segments_in_mid_history() -> None:
    for text in ("", "max_split_size_mb:20,max_non_split_rounding_mb:40"):
        for completion in ("delay:7", "never"):
            snapshot = made(11, 1500, text, capacity=500 * MIB, seed=11, completion=completion)
            actions = [entry["action"] for entry in snapshot["device_traces"][0]]
            assert actions.count("segment_free") > 10
            assert_exact(snapshot, 12)


@pytest.mark.parametrize("seed", range(4))
def test_segments_that_garbage_collection_released(seed: int) -> None:
    text = "garbage_collection_threshold:0.3,per_process_memory_fraction:0.9"
    operations = random_operations(random.Random(seed), 1500)
    operations = [one for one in operations if one[0] != "empty_cache"]
    snapshot = make_snapshot(operations, text, capacity=700 * MIB, seed=seed)
    (verdict,) = assert_exact(snapshot)
    assert any(fact.startswith("garbage collection: ") for fact in verdict.facts)


@pytest.mark.parametrize("told", [True, False])
def test_segments_of_private_pools_stay_when_cached_ones_are_released(told: bool) -> None:
    operations = [
        (op, name, size, stream + 3 * (name % 2) if op == "alloc" else stream)
        for op, name, size, stream in random_operations(random.Random(12), 1500)
    ]
    snapshot = make_snapshot(operations, seed=12, first_private=3)
    flushes = [one for one in snapshot["device_traces"][0] if one["action"] == "segment_free"]
    assert flushes
    assert_exact(with_private_pools(snapshot, 3, told))


@pytest.mark.parametrize("text", ["", "expandable_segments:True", "max_split_size_mb:20"])
def test_private_pools_that_begin_and_end(text: str) -> None:
    operations = [
        one for one in random_pool_operations(random.Random(3), 900) if "capture" not in one[0]
    ]
    snapshot = make_snapshot(operations, text)
    entries, segments = snapshot["device_traces"][0], snapshot["segments"]
    assert {entry["pool_id"] for entry in entries} > {(0, 0), (0, 1)}
    assert {segment["segment_pool_id"] for segment in segments} > {(0, 0)}
    (verdict,) = assert_exact(snapshot)
    assert any(fact.startswith("private pools: ") for fact in verdict.facts)


def test_a_private_pool_that_was_given_back() -> None:
    snapshot = made(13, 400)
    trace, segments = snapshot["device_traces"][0], snapshot["segments"]
    about = {"size": 20 * MIB, "stream": 0, "time_us": trace[-1]["time_us"], "frames": []}
    address = max(one["address"] + one["total_size"] for one in segments) + 1000 * MIB
    private = {**about, "addr": address, "pool_id": (0, 7)}
    trace += [
        {**private, "action": "segment_alloc"},
        {**private, "action": "alloc", "size": 5 * MIB},
        {**private, "action": "free_requested", "size": 5 * MIB},
        {**private, "action": "free_completed", "size": 5 * MIB},
        {**private, "action": "segment_free"},
    ]
    (verdict,) = assert_exact(snapshot)
    assert verdict.facts == ["private pools: 1 segments were given back with their pool"]


def test_frees_that_never_complete_are_pending_at_the_end() -> None:
    snapshot = made(14, 900, completion="never")
    states = [block["state"] for one in snapshot["segments"] for block in one["blocks"]]
    assert states.count("active_pending_free") > 0
    assert_exact(snapshot, 8)


@pytest.mark.parametrize("text", ["", "expandable_segments:True", "max_split_size_mb:32"])
def test_histories_cut_right_inside_a_request(text: str) -> None:
    snapshot = made(15, 700, text, seed=15, capacity=400 * MIB, goes_on=True, completion="delay:7")
    trace = snapshot["device_traces"][0]
    inside = {"segment_alloc", "segment_free", "segment_map", "segment_unmap", "free_completed"}
    places = [at for at, entry in enumerate(trace) if entry["action"] in inside]
    for at in places[:: len(places) // 60]:
        for verdict in verdicts(cut(snapshot, at + 1)):
            assert verdict.kind == "exact", (at, verdict)


def test_entries_of_other_kinds_and_odd_times_change_nothing() -> None:
    snapshot = made(16, 400)
    plain = verdicts(snapshot)
    changed = copy.deepcopy(snapshot)
    trace = changed["device_traces"][0]
    for number, kind in enumerate(["snapshot", "annotate", "not_yet_invented"] * 5):
        entry = {"action": kind, "addr": 1, "size": 3, "stream": 9, "frames": [], "time_us": 10}
        trace.insert(7 * number, entry)
    for number, entry in enumerate(trace):
        entry["time_us"] += -5 if number % 3 else 5
    assert verdicts(changed) == plain
    assert_exact(changed)


@pytest.mark.parametrize(
    "dictionary",
    [
        {},
        {"max_split_size": -1, "roundup_power2_divisions": None, "expandable_segments": None},
        {"max_split_size": "20", "garbage_collection_threshold": "high"},
        {"roundup_power2_divisions": {"1": 3, "2": "x"}, "PYTORCH_CUDA_ALLOC_CONF": 17},
        {"PYTORCH_CUDA_ALLOC_CONF": "backend:native,,no_such:1,:,[", "pinned_use": {1: 2}},
        {"PYTORCH_CUDA_ALLOC_CONF": "x" * 10**6, "max_split_size": 1 << 70},
        {"max_split_size": 2**61, "trace_alloc_overflowed": "much"},
    ],
)
def test_odd_settings_are_left_out(dictionary: dict[str, Any]) -> None:
    snapshot = made(17, 300)
    snapshot["allocator_settings"] = dictionary
    assert_exact(snapshot)


def test_settings_that_are_none_are_named() -> None:
    snapshot = made(18, 300)
    snapshot["allocator_settings"] |= {"max_split_size": 3 * MIB}
    (verdict,) = verdicts(snapshot)
    assert verdict.kind == "not_reconstructible"
    assert "max_split_size_mb" in verdict.problem


def test_what_is_not_understood_is_named(tmp_path: Path) -> None:
    snapshot = make_snapshot(random_operations(random.Random(3), 200))
    snapshot["allocator_settings"]["max_split_size"] = "x"
    snapshot["device_traces"][0].insert(5, {"action": "bogus", "addr": 0, "size": 0, "stream": 0})
    report = import_file(save(snapshot, tmp_path / "s.pickle"), tmp_path / "s.parquet")
    (check,) = report.checks
    assert check["verdict"].startswith("exact with 2 inferred facts")
    assert "max_split_size is 'x'" in check["facts"][0]
    assert "bogus" in check["facts"][1]
