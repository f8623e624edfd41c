"""`cpu-caching` against the real `c10::CPUCachingAllocator` of the installed torch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("torch", reason="the reference is PyTorch's own allocator")

from engine_events import Operation, make_events
from reference_runs import assert_same_totals, decisions

from workbench.replay import _engine
from workbench.replay.events import load_trace

pytestmark = pytest.mark.torch


def assert_the_same(events: _engine.Events, ops: Sequence[str], backend: str) -> None:
    """Hits, misses and held bytes at every event, and which block each allocation gets.

    Args:
        events: what to replay.
        ops: the names of their operations.
        backend: of ours; the original takes its memory from the system.
    """
    ours = decisions(events, "cpu-caching", backend=backend)
    theirs = decisions(events, "torch-cpu-caching")
    assert_same_totals(ours, theirs, ("hits", "misses", "reserved", "allocated", "largest_free"))
    # Blocks of both that are one, while they are held; an address that was given back may come
    # again as another's.
    mine_of: dict[int, int] = {}
    theirs_of: dict[int, int] = {}
    live: set[int] = set()
    for event, op in enumerate(ops):
        mine, other = int(ours.address[event]), int(theirs.address[event])
        if op == "alloc" and mine:
            assert mine_of.setdefault(other, mine) == mine, f"another block at event {event}"
            assert theirs_of.setdefault(mine, other) == other, f"another block at event {event}"
            live.add(other)
        elif op == "free":
            live.discard(other)
        elif op == "empty_cache":
            mine_of = {other: mine for other, mine in mine_of.items() if other in live}
            theirs_of = {mine: other for other, mine in mine_of.items()}


def test_the_examples_get_the_same_blocks(example_trace: Path) -> None:
    traffic = load_trace(str(example_trace))[0].traffic("cpu")
    assert len(traffic.op) > 1000
    names = {code: name for name, code in _engine.OPS.items()}
    assert_the_same(traffic.events(), [names[code] for code in traffic.op.tolist()], "simulated")


commands = st.lists(
    st.tuples(
        st.sampled_from(["alloc"] * 10 + ["free"] * 9 + ["empty_cache"]),
        # Few different sizes, so that the cache is hit; around the edge between the C library and
        # a mapping of its own too.
        st.sampled_from([1, 63, 64, 65, 1000, 4096, 65535, 65536, 65537, 300_000]),
        st.integers(0, 10**6),
    ),
    max_size=200,
)


@pytest.mark.parametrize("backend", ["host", "simulated"])
@settings(max_examples=150, deadline=None)
@given(drawn=commands)
def test_random_traces_get_the_same_blocks(backend: str, drawn: list[tuple[str, int, int]]) -> None:
    operations: list[Operation] = []
    live: list[int] = []
    for number, (op, size, choice) in enumerate(drawn):
        if op == "alloc":
            operations.append((op, number, size, 0))
            live.append(number)
        elif op == "empty_cache":
            operations.append((op, -1, 0, 0))
        elif live:
            operations.append((op, live.pop(choice % len(live)), 0, 0))
    assert_the_same(make_events(operations), [op for op, *_ in operations], backend)
