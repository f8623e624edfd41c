"""`plan` against the installed torch's `c10::AllocationPlanner` and `CPUProfilingAllocator`.

The real planner crashes where two free ranges have the same size, so it is shown traffic in which
that never happens.
"""

from __future__ import annotations

import ctypes
import random
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("torch", reason="the reference is PyTorch's own allocator")

import greedy_model
from engine_events import Operation, make_events
from greedy_model import STABLE, UNMANAGED, Request, random_requests, surviving_requests
from reference_runs import assert_same_totals, decisions

from workbench.common.torch_build import build
from workbench.replay import _engine

pytestmark = pytest.mark.torch

# Multiples of the alignment, which the original does not know.
SIZES = range(64, 64 * 2**14, 64)


def operations_of(requests: Sequence[Request]) -> list[Operation]:
    """What the thread does; what is freed between two allocations in order of ids."""
    operations: list[Operation] = []
    for time in range(len(requests) + 1):
        operations += [("free", one, 0, 0) for one in range(time) if requests[one][1] == time]
        if time < len(requests):
            operations.append(("alloc", time, requests[time][0], 0))
    return operations


def original_offsets(requests: Sequence[Request]) -> list[int]:
    """Where the original puts each allocation in its arena, -1 for those it does not manage."""
    events = make_events(operations_of(requests))
    theirs = decisions(events, "torch-plan")
    is_alloc = [op == "alloc" for op, *_ in operations_of(requests)]
    addresses = theirs.address[is_alloc].astype(np.int64)
    managed = np.array([end != UNMANAGED for _, end in requests])
    # The first is always at the arena's beginning.
    offsets = addresses - addresses[managed].min(initial=np.iinfo(np.int64).max)
    return np.where(managed, offsets, UNMANAGED).tolist()


def assert_the_same(requests: Sequence[Request]) -> None:
    """Same offsets, same height, the same ids from the arena and from the system, same totals."""
    events = make_events(operations_of(requests))
    ours = decisions(events, "plan", "planner:greedy", backend="simulated")
    theirs = decisions(events, "torch-plan")
    assert_same_totals(ours, theirs, ("hits", "misses", "reserved", "allocated", "requested"))
    assert ours.plan is not None
    offsets = original_offsets(requests)
    assert ours.plan.offset[ours.plan.end >= 0].tolist() == [one for one in offsets if one >= 0]
    assert (ours.plan.end >= 0).tolist() == [one >= 0 for one in offsets]


@settings(max_examples=200, deadline=None)
@given(seed=st.integers(0, 2**32), managed=st.integers(1, STABLE))
def test_few_allocations_get_the_same_plan(seed: int, managed: int) -> None:
    assert_the_same(surviving_requests(random.Random(seed), managed, SIZES))


@pytest.mark.parametrize("seed", range(20))
def test_many_allocations_get_the_same_plan_where_no_free_is_at_the_time_of_one(seed: int) -> None:
    assert_the_same(surviving_requests(random.Random(seed), 300, SIZES, apart=True))


@pytest.fixture(scope="module")
def original() -> ctypes.CDLL:
    source = Path(__file__).with_name("plan_original.cpp")
    return ctypes.CDLL(str(build("plan_original", [source])))


def pointer(array: np.ndarray) -> ctypes.c_void_p:
    return ctypes.c_void_p(array.ctypes.data)


@pytest.mark.parametrize("seed", range(60))
def test_where_plans_differ_it_is_by_the_order_of_events_of_one_time(
    seed: int, original: ctypes.CDLL
) -> None:
    # The original's sort leaves it to chance whether a free comes before an allocation.
    def order(times: list[int]) -> list[int]:
        column = np.array(times, np.int64)
        places = np.zeros_like(column)
        original.sorted_order(ctypes.c_int64(len(times)), pointer(column), pointer(places))
        return places.tolist()

    rng = random.Random(seed)
    requests = surviving_requests(rng, rng.randint(STABLE + 1, 100), SIZES, order=order)
    assert original_offsets(requests) == greedy_model.plan(requests, order)[0]


def test_our_planner_keeps_to_the_rule_where_the_original_crashes() -> None:
    rng = random.Random(1)
    clashes = 0
    for _ in range(200):
        requests = random_requests(rng, 30, [64, 128, 192, 1024], apart=False)
        offsets, clash = greedy_model.plan(requests)
        clashes += clash
        size, end = np.array(requests).T
        plan = _engine.make_plan(size.copy(), end.copy(), "greedy")
        assert np.where(plan.end >= 0, plan.offset, UNMANAGED).tolist() == offsets
    assert clashes > 150


def accepts(
    original: ctypes.CDLL, recorded: Sequence[Request], then: Sequence[Request]
) -> tuple[bool, bool]:
    """Whether ours, and the original's validation, take `then` for what `recorded` was."""
    from workbench.replay.plans import compare

    size, end = (np.array(column, np.int64) for column in zip(*recorded, strict=True))
    size_then, end_then = (np.array(column, np.int64) for column in zip(*then, strict=True))
    theirs = original.original_accepts(
        ctypes.c_int64(len(size)), pointer(size), pointer(end),
        ctypes.c_int64(len(size_then)), pointer(size_then), pointer(end_then),
    )  # fmt: skip
    ours = compare(_engine.make_plan(size, end, "greedy"), Traffic(then))
    return ours.matches, bool(theirs)


class Traffic:
    """As much of a trace's traffic as `compare` looks at."""

    def __init__(self, requests: Sequence[Request]) -> None:
        self._events = make_events(operations_of(requests))

    def events(self) -> _engine.Events:
        return self._events


@pytest.mark.parametrize("seed", range(40))
def test_validation_agrees_but_for_what_the_original_overlooks(
    seed: int, original: ctypes.CDLL
) -> None:
    rng = random.Random(seed)
    recorded = random_requests(rng, 30, SIZES, apart=False)
    assert accepts(original, recorded, recorded) == (True, True)
    one = rng.randrange(len(recorded))
    size, end = recorded[one]
    larger = [*recorded[:one], (size + 64, end), *recorded[one + 1 :]]
    assert accepts(original, recorded, larger) == (False, False)
    assert accepts(original, recorded, [*recorded, (64, UNMANAGED)]) == (False, False)
    freed = [number for number, (_, end) in enumerate(recorded) if end != UNMANAGED]
    one = rng.choice(freed)
    size, end = recorded[one]
    if end - 1 > one:
        earlier = [*recorded[:one], (size, end - 1), *recorded[one + 1 :]]
        assert accepts(original, recorded, earlier) == (False, False)
    # A free that does not come, and a run that ends early, are overlooked.
    lasting = [*recorded[:one], (size, UNMANAGED), *recorded[one + 1 :]]
    assert accepts(original, recorded, lasting) == (False, True)
    shorter = [(size, end if end < len(recorded) else UNMANAGED) for size, end in recorded[:-1]]
    assert accepts(original, recorded, shorter) == (False, True)
