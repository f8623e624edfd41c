"""The smallest device: exact, whatever the allocator does with less memory."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from io import StringIO

import pytest
from caching_settings import random_settings
from engine_events import Operation
from hypothesis import given, settings
from hypothesis import strategies as st
from random_operations import commands, operations_of
from rich.console import Console
from searches import LocalPool, subject_of

from workbench.replay import _engine
from workbench.replay.cell import AllocatorSpec
from workbench.replay.fit import BELOW, run_searches, smallest_device
from workbench.replay.fit_summary import html, parts
from workbench.replay.fitting import UNIT, Fit, Fits
from workbench.replay.search import Candidate, Outcome

MIB = 2**20


def fit(operations: Sequence[Operation], allocator: str = "caching", conf: str = "") -> Fit:
    subject = subject_of(operations)
    search = smallest_device(subject, AllocatorSpec(allocator, conf), "recorded")
    (found,) = run_searches([search], LocalPool(subject), lambda what, done, total: None)
    return found


def completes(operations: Sequence[Operation], found: Fit, capacity: int) -> bool:
    """Whether a replay of its own, apart from any search, completes in `capacity` bytes."""
    replay = _engine.Replay(
        subject_of(operations).traffic.events(),
        found.allocator.name,
        found.allocator.settings,
        backend="simulated",
        capacity=capacity,
    )
    return replay.memory(1)["outcome"] == "ok"


@settings(max_examples=120, deadline=None)
@given(
    drawn=commands(1, 60),
    allocator=st.sampled_from(["caching", "caching", "caching", "direct", "cpu-caching"]),
    seed=st.one_of(st.none(), st.integers(0, 2**32)),
)
def test_the_answer_completes_and_one_unit_less_does_not(
    drawn: list[tuple[str, int, int, int]], allocator: str, seed: int | None
) -> None:
    operations = operations_of(drawn)
    if not any(op == "alloc" and size for op, _, size, _ in operations):
        return
    conf = random_settings(random.Random(seed)) if allocator == "caching" and seed else ""
    found = fit(operations, allocator, conf)
    if found.status == "never":
        # With a memory fraction of 0 nothing can be allocated.
        assert "fraction:0" in conf or "throw_on" in conf
        return
    assert found.status == "fits"
    assert found.capacity is not None
    assert found.capacity % UNIT == 0
    assert found.capacity >= found.subject.peak_live
    assert completes(operations, found, found.capacity)
    assert found.capacity == UNIT or not completes(operations, found, found.capacity - UNIT)
    below = range(found.capacity - UNIT, found.capacity - (BELOW + 1) * UNIT, -UNIT)
    assert list(found.also) == [
        size for size in below if size > 0 and completes(operations, found, size)
    ]


@settings(max_examples=60, deadline=None)
@given(drawn=commands(5, 60))
def test_without_a_retry_it_runs_as_on_a_device_without_limit(
    drawn: list[tuple[str, int, int, int]],
) -> None:
    operations = operations_of(drawn)
    if not any(op == "alloc" and size for op, _, size, _ in operations):
        return
    found = fit(operations)
    assert found.unlimited is not None
    assert found.at is not None
    assert found.capacity is not None
    assert found.roomy == found.unlimited.peak_reserved
    assert (found.at.retries == 0) >= (found.capacity == found.roomy)


def test_a_search_asks_for_few_replays_and_never_below_the_peak_of_live_memory() -> None:
    operations = [("alloc", number, 37 * MIB + number, 0) for number in range(400)]
    subject = subject_of(operations)
    pool = LocalPool(subject)
    search = smallest_device(subject, AllocatorSpec("caching"), "recorded")
    run_searches([search], pool, lambda what, done, total: None)
    assert len(pool.candidates) < 40
    assert all(one.capacity is None or one.capacity >= subject.peak_live for one in pool.candidates)


class Erratic:
    """Answers as an allocator that completes in these sizes alone, in units, and in any above.

    Args:
        sizes: units; from the largest on everything completes.
    """

    def __init__(self, *sizes: int) -> None:
        self.sizes = sizes

    def run(self, candidates: Sequence[Candidate], done: object) -> list[Outcome]:
        return [self.one(candidate.capacity) for candidate in candidates]

    def one(self, capacity: int | None) -> Outcome:
        if capacity is None or capacity // UNIT >= max(self.sizes):
            return Outcome("ok", peaks={"reserved": max(self.sizes) * UNIT})
        fits = capacity // UNIT in self.sizes
        return Outcome("ok" if fits else "out_of_memory", retries=1, oom=None)


def test_smaller_sizes_that_complete_too_are_named_and_not_the_answer() -> None:
    subject = subject_of([("alloc", 0, 3 * UNIT, 0)])
    search = smallest_device(subject, AllocatorSpec("caching"), "recorded")
    (found,) = run_searches([search], Erratic(100, 97, 95, 70), lambda *_: None)
    assert found.capacity == 100 * UNIT
    assert found.also == (97 * UNIT, 95 * UNIT)


def test_larger_sizes_are_tried_where_the_peak_alone_is_not_enough() -> None:
    """Requests below 2 MiB share pages: what is reserved may be less than what is taken."""
    found = fit([("alloc", number, 3 * MIB, 0) for number in range(9)], "direct")
    assert found.unlimited is not None
    assert found.unlimited.peak_reserved == 27 * MIB
    assert found.capacity == found.roomy == 36 * MIB


@pytest.mark.parametrize("conf", ["per_process_memory_fraction:0", "nonsense:1"])
def test_what_can_never_hold_it_says_so(conf: str) -> None:
    found = fit([("alloc", 0, MIB, 0)], conf=conf)
    assert found.status in ("never", "refused")
    assert found.capacity is None
    assert found.reason
    assert found.headroom is None
    assert found.document()["capacity_bytes"] is None


def test_a_share_of_the_device_asks_for_a_larger_one() -> None:
    whole = fit([("alloc", 0, 30 * MIB, 0)])
    half = fit([("alloc", 0, 30 * MIB, 0)], conf="per_process_memory_fraction:0.5")
    assert whole.capacity == 30 * MIB
    assert half.capacity == 60 * MIB


def test_several_searches_go_on_in_step_and_end_apart() -> None:
    subject = subject_of([("alloc", number, 11 * MIB, 0) for number in range(30)])
    specs = [AllocatorSpec("caching"), AllocatorSpec("direct"), AllocatorSpec("caching", "no:1")]
    seen: list[tuple[int, int]] = []
    found = run_searches(
        [smallest_device(subject, spec, "recorded") for spec in specs],
        LocalPool(subject),
        lambda _, done, total: seen.append((done, total)),
    )
    assert [one.status for one in found] == ["fits", "fits", "refused"]
    assert [one.allocator for one in found] == specs
    assert all(done <= total for done, total in seen)


RUN_HERE = [info["name"] for info in _engine.allocators() if not info["needs_library"]]


@pytest.mark.parametrize("allocator", RUN_HERE)
def test_every_allocator_has_a_row_whatever_it_does_not_report(allocator: str) -> None:
    found = fit([("alloc", 0, 3 * MIB, 0), ("free", 0, 3 * MIB, 0)], allocator)
    assert found.status == "fits"
    shown = Fits([found])
    assert json.loads(json.dumps(shown.document()))["fits"][0]["label"] == allocator
    console = Console(width=200, file=StringIO(), record=True)
    for part in parts(shown):
        console.print(part)
    row = next(line for line in console.export_text().splitlines() if f"│ {allocator}" in line)
    assert found.at is not None
    assert ("not reported" in row) == (found.at.retries is None)
    assert html(shown)


@pytest.mark.parametrize("name", ["torch-plan", "torch-cpu-caching", "pluggable"])
def test_what_takes_memory_by_itself_is_a_row_that_says_so(name: str) -> None:
    subject = subject_of([("alloc", 0, MIB, 0)])
    specs = [AllocatorSpec(name), AllocatorSpec("direct")]
    found = run_searches(
        [smallest_device(subject, spec, "recorded") for spec in specs],
        LocalPool(subject),
        lambda *_: None,
    )
    assert [one.status for one in found] == ["unavailable", "fits"]
    assert found[0].reason is not None
    assert found[0].reason.startswith("cannot be fitted: it may take its memory from the system")
