"""The self-check can fail: snapshots that were changed are not found exact."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
from caching_settings import MIB
from random_operations import random_operations
from snapshot_cases import is_exact, verdicts
from snapshot_maker import Snapshot, make_snapshot

from workbench.replay.self_check import Verdict

Entry = dict[str, Any]
Change = Callable[[random.Random, Snapshot], bool]
"""Changes a snapshot; False where there was nothing to change."""


@pytest.fixture(scope="module", params=["", "max_split_size_mb:32", "expandable_segments:True"])
def good(request: pytest.FixtureRequest) -> Snapshot:
    operations = random_operations(random.Random(21), 1500)
    snapshot = make_snapshot(operations, request.param, seed=21, completion="delay:5")
    assert is_exact(snapshot)
    return snapshot


def trace_of(snapshot: Snapshot) -> list[Entry]:
    trace: list[Entry] = snapshot["device_traces"][0]
    return trace


def of_kind(snapshot: Snapshot, *kinds: str) -> list[int]:
    return [at for at, entry in enumerate(trace_of(snapshot)) if entry["action"] in kinds]


def blocks_of(snapshot: Snapshot, state: str) -> list[dict[str, Any]]:
    return [
        block
        for segment in snapshot["segments"]
        for block in segment["blocks"]
        if block["state"] == state
    ]


def life_of(snapshot: Snapshot, at: int) -> list[Entry]:
    """The allocation at an entry and its frees."""
    trace = trace_of(snapshot)
    found = [trace[at]]
    for entry in trace[at + 1 :]:
        if entry.get("addr") != trace[at]["addr"]:
            continue
        if entry["action"] not in ("free_requested", "free_completed"):
            break
        found.append(entry)
    return found


def whole_life(rng: random.Random, snapshot: Snapshot) -> list[Entry]:
    """An allocation that is freed during the history, with its frees."""
    places = of_kind(snapshot, "alloc")
    while True:
        life = life_of(snapshot, rng.choice(places))
        if len(life) == 3:
            return life


def address_of_an_allocation(rng: random.Random, snapshot: Snapshot) -> bool:
    life = whole_life(rng, snapshot)
    taken = {entry.get("addr") for entry in trace_of(snapshot)}
    other = life[0]["addr"] + 512 * rng.choice([-1, 1])
    if other in taken:
        return False
    for entry in life:
        entry["addr"] = other
    return True


def address_of_a_segment(rng: random.Random, snapshot: Snapshot) -> bool:
    trace_of(snapshot)[rng.choice(of_kind(snapshot, "segment_alloc", "segment_map"))]["addr"] += MIB
    return True


def size_of_an_allocation(rng: random.Random, snapshot: Snapshot) -> bool:
    """Larger by more than any rounding or rest hides."""
    for entry in whole_life(rng, snapshot):
        entry["size"] += 40 * MIB
    return True


def size_of_a_segment(rng: random.Random, snapshot: Snapshot) -> bool:
    at = rng.choice(of_kind(snapshot, "segment_alloc", "segment_map"))
    trace_of(snapshot)[at]["size"] += 2 * MIB
    return True


def order_of_two_allocations(rng: random.Random, snapshot: Snapshot) -> bool:
    """Of one pool and stream, from blocks that were not both there for either."""
    trace = trace_of(snapshot)
    for at in rng.sample(range(len(trace) - 1), len(trace) - 1):
        first, second = trace[at : at + 2]
        is_pair = {first["action"], second["action"]} == {"alloc"}
        behind = first.get("addr", 0) + -(-first["size"] // 512) * 512
        if is_pair and first["stream"] == second["stream"] and second["addr"] == behind:
            trace[at : at + 2] = [second, first]
            return True
    return False


def segment_that_was_not_made(rng: random.Random, snapshot: Snapshot) -> bool:
    del trace_of(snapshot)[rng.choice(of_kind(snapshot, "segment_alloc", "segment_map")[1:])]
    return True


def segment_that_was_not_released(rng: random.Random, snapshot: Snapshot) -> bool:
    places = of_kind(snapshot, "segment_free", "segment_unmap")
    if not places:
        return False
    del trace_of(snapshot)[rng.choice(places)]
    return True


def allocation_that_never_was(rng: random.Random, snapshot: Snapshot) -> bool:
    del trace_of(snapshot)[rng.choice(of_kind(snapshot, "alloc"))]
    return True


def state_of_a_block_at_the_end(rng: random.Random, snapshot: Snapshot) -> bool:
    rng.choice(blocks_of(snapshot, "active_allocated"))["state"] = rng.choice(
        ["inactive", "active_pending_free"]
    )
    return True


def free_block_at_the_end_in_use(rng: random.Random, snapshot: Snapshot) -> bool:
    rng.choice(blocks_of(snapshot, "inactive"))["state"] = "active_allocated"
    return True


def size_of_a_block_at_the_end(rng: random.Random, snapshot: Snapshot) -> bool:
    rng.choice(blocks_of(snapshot, "active_allocated"))["size"] += 512
    return True


def border_of_two_blocks_at_the_end(rng: random.Random, snapshot: Snapshot) -> bool:
    """The block takes 512 bytes of what is free behind it."""
    for segment in rng.sample(snapshot["segments"], len(snapshot["segments"])):
        for block, behind in zip(segment["blocks"], segment["blocks"][1:], strict=False):
            if block["state"] == "active_allocated" and behind["state"] == "inactive":
                block["size"] += 512
                behind["address"] += 512
                behind["size"] -= 512
                return True
    return False


def requested_size_of_a_block_at_the_end(rng: random.Random, snapshot: Snapshot) -> bool:
    rng.choice(blocks_of(snapshot, "active_allocated"))["requested_size"] += 1
    return True


def stream_of_an_allocation(rng: random.Random, snapshot: Snapshot) -> bool:
    for entry in whole_life(rng, snapshot):
        entry["stream"] = (entry["stream"] + 1) % 3
    return True


def segment_of_another_stream_at_the_end(rng: random.Random, snapshot: Snapshot) -> bool:
    segment = rng.choice(snapshot["segments"])
    segment["stream"] = (segment["stream"] + 1) % 3
    return True


def segment_that_is_not_there_at_the_end(rng: random.Random, snapshot: Snapshot) -> bool:
    del snapshot["segments"][rng.randrange(len(snapshot["segments"]))]
    return True


CHANGES = (
    address_of_an_allocation,
    address_of_a_segment,
    size_of_an_allocation,
    size_of_a_segment,
    order_of_two_allocations,
    segment_that_was_not_made,
    segment_that_was_not_released,
    allocation_that_never_was,
    state_of_a_block_at_the_end,
    free_block_at_the_end_in_use,
    size_of_a_block_at_the_end,
    border_of_two_blocks_at_the_end,
    requested_size_of_a_block_at_the_end,
    stream_of_an_allocation,
    segment_of_another_stream_at_the_end,
    segment_that_is_not_there_at_the_end,
)


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_a_changed_snapshot_is_not_exact(change: Change, good: Snapshot) -> None:
    rng = random.Random(5)
    changed = 0
    for _ in range(12):
        snapshot = copy.deepcopy(good)
        if change(rng, snapshot):
            changed += 1
            found = verdicts(snapshot)
            assert any(verdict.kind != "exact" for verdict in found), change.__name__
            assert all(verdict.problem for verdict in found if verdict.kind != "exact")
    assert changed > 2


@pytest.mark.parametrize(
    "wrong",
    [
        {"expandable_segments": True},
        {"max_split_size": 20 * MIB},
        {"roundup_power2_divisions": {str(1 << slot): 2 for slot in range(16)}},
        {"PYTORCH_CUDA_ALLOC_CONF": "large_segment_size_mb:44"},
    ],
    ids=lambda wrong: next(iter(wrong)),
)
def test_other_settings_than_those_in_force_are_found_out(wrong: dict[str, Any]) -> None:
    operations = random_operations(random.Random(22), 1500)
    for rules in ("2.13", "address-order"):
        snapshot = make_snapshot(operations, seed=22, rules=rules)
        snapshot["allocator_settings"] |= wrong
        (verdict,) = verdicts(snapshot)
        assert verdict.kind == "differs"
        assert verdict.problem.startswith("entry ")


@pytest.mark.parametrize("missing", ["expandable_segments:True", "roundup_power2_divisions:4"])
def test_settings_that_the_file_does_not_tell_are_found_out(missing: str) -> None:
    snapshot = make_snapshot(random_operations(random.Random(23), 900), missing, seed=23)
    snapshot["allocator_settings"] = {}
    assert not is_exact(snapshot)


def test_neither_rule_set_explains_two_lives_that_changed_places() -> None:
    snapshot = make_snapshot(random_operations(random.Random(24), 1200), seed=24)
    lives = [life_of(snapshot, at) for at in of_kind(snapshot, "alloc")[:200]]
    checked = 0
    for one, other in pairwise(life for life in lives if len(life) == 3):
        if one[0]["size"] == other[0]["size"] and one[0]["stream"] == other[0]["stream"]:
            continue
        changed = copy.deepcopy((one, other))
        for life, address in zip((one, other), (other[0]["addr"], one[0]["addr"]), strict=True):
            for entry in life:
                entry["addr"] = address
        assert not is_exact(snapshot)
        for life, good in zip((one, other), changed, strict=True):
            for entry, told in zip(life, good, strict=True):
                entry["addr"] = told["addr"]
        checked += 1
        if checked == 20:
            break
    assert is_exact(snapshot)
    assert checked == 20


def test_what_means_the_same_stays_exact(good: Snapshot) -> None:
    """Another request that rounds to the same block, other times, other stacks."""
    snapshot = copy.deepcopy(good)
    rng = random.Random(6)
    for _ in range(20):
        life = whole_life(rng, snapshot)
        if life[0]["size"] % 512 == 0 and "roundup" not in str(snapshot["allocator_settings"]):
            for entry in life:
                entry["size"] -= 1
    for entry in trace_of(snapshot):
        entry["time_us"] = 5
        entry["frames"] = []
    assert is_exact(snapshot)


def odd_one(change: Callable[[Snapshot], None]) -> Verdict:
    """The verdict of a small good snapshot after `change`."""
    snapshot = make_snapshot(
        [*(("alloc", n, 3 * MIB, 0) for n in range(9)), *(("free", n, 0, 0) for n in range(4)),
         ("alloc", 20, 100, 0), ("free", 20, 0, 0)]
    )  # fmt: skip
    change(snapshot)
    (verdict,) = verdicts(snapshot)
    return verdict


def entries_of(snapshot: Snapshot, *actions: str) -> list[dict[str, Any]]:
    return [entry for entry in snapshot["device_traces"][0] if entry["action"] in actions]


def set_all(*actions: str, **values: Any) -> Callable[[Snapshot], None]:
    def change(snapshot: Snapshot) -> None:
        for entry in entries_of(snapshot, *actions):
            entry.update(values)

    return change


def cut_free_block(snapshot: Snapshot) -> None:
    for segment in snapshot["segments"]:
        for place, block in enumerate(segment["blocks"]):
            if block["state"] == "inactive":
                half = {**block, "size": block["size"] // 2}
                rest = {**half, "address": block["address"] + half["size"]}
                segment["blocks"][place : place + 1] = [half, rest]
                return


def lie_of_total(snapshot: Snapshot) -> None:
    snapshot["segments"][0]["allocated_size"] += 512


def small_request_in_a_large_block(snapshot: Snapshot) -> None:
    snapshot["device_traces"][0].clear()
    for segment in snapshot["segments"]:
        for block in segment["blocks"]:
            if block["state"] == "active_allocated":
                block["requested_size"] = 1


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (set_all("free_requested", "free_completed", size=1), "frees another size"),
        (set_all("free_requested", "free_completed", stream=7), "another stream"),
        (set_all("segment_alloc", stream=3), "for another stream"),
        (cut_free_block, "free neighbours are always merged"),
        (lie_of_total, "of its bytes are allocated"),
        (small_request_in_a_large_block, "wrong pool"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_what_no_allocator_writes_is_found(change: Callable[[Snapshot], None], words: str) -> None:
    assert odd_one(lambda snapshot: None).kind == "exact"
    verdict = odd_one(change)
    assert verdict.kind != "exact"
    assert words in verdict.problem
