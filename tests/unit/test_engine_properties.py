"""What holds for every allocator on any stream of events."""

from __future__ import annotations

import numpy as np
import pytest
from engine_events import Operation, make_events
from hypothesis import given, settings
from hypothesis import strategies as st

from workbench.replay import _engine

# Those that need a library are held to the same by tests/cpp/test_engine_conformance.cpp.
ALLOCATORS = [info["name"] for info in _engine.allocators() if not info["needs_library"]]
BACKENDS = [info["name"] for info in _engine.backends() if info["available"]]
STREAMS = 3
MIB = 2**20

sizes = st.one_of(
    st.integers(1, 4096),
    st.integers(1, 24 * MIB),
    st.sampled_from([512, 513, MIB, MIB + 1, 10 * MIB - 1, 10 * MIB, 20 * MIB]),
)
commands = st.lists(
    st.tuples(
        st.sampled_from(
            ["alloc"] * 5 + ["free"] * 4 + ["record_stream", "synchronize", "empty_cache"]
        ),
        sizes,
        st.integers(0, STREAMS - 1),
        st.integers(0, 10**6),
    ),
    max_size=60,
)


def operations_of(drawn: list[tuple[str, int, int, int]]) -> list[Operation]:
    """Operations that make sense: only what lives is used or freed, and all is freed at the end."""
    operations: list[Operation] = []
    live: list[int] = []
    for number, (op, size, stream, choice) in enumerate(drawn):
        if op == "alloc":
            operations.append((op, number, size, stream))
            live.append(number)
        elif op == "free" and live:
            operations.append((op, live.pop(choice % len(live)), 0, 0))
        elif op == "record_stream" and live:
            operations.append((op, live[choice % len(live)], 0, stream))
        elif op in ("synchronize", "empty_cache"):
            operations.append((op, -1, 0, stream))
    operations += [("free", number, 0, 0) for number in live]
    # Not every allocator waits for streams when its cache is emptied.
    return [*operations, ("synchronize", -1, 0, -1), ("empty_cache", -1, 0, 0)]


def remembered(made: _engine.Replay, *, verify: bool = False) -> _engine.MemoryResult:
    """The memory pass; where the system lets us pin too little memory, the test is skipped."""
    try:
        return made.memory(full=True, verify=verify)
    except _engine.UnavailableError as error:
        pytest.skip(str(error))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("allocator", ALLOCATORS)
@settings(max_examples=40, deadline=None)
@given(drawn=commands, capacity=st.sampled_from([None, 48 * MIB]))
def test_statistics_hold_at_every_event(
    allocator: str,
    backend: str,
    drawn: list[tuple[str, int, int, int]],
    capacity: int | None,
) -> None:
    operations = operations_of(drawn)
    made = _engine.Replay(
        make_events(operations),
        allocator,
        backend=backend,
        capacity=capacity,
        after_oom="continue",
    )
    memory = remembered(made, verify=backend == "host")
    rows = memory["timeline"]
    assert (rows["requested"] <= rows["active"]).all()
    assert (rows["allocated"] <= rows["active"]).all()
    assert (rows["active"] <= rows["reserved"]).all()
    assert (rows["live_requested"] <= rows["allocated"]).all()
    assert (rows["largest_free"] <= rows["reserved"] - rows["active"]).all()
    assert (rows["inactive_split"] <= rows["reserved"] - rows["active"]).all()
    assert (rows["reserved"] <= rows["device_used"]).all()
    if capacity is not None:
        assert (rows["device_used"] <= capacity).all()
    else:
        assert memory["outcome"] == "ok"
    for name in ("requested", "allocated", "active"):
        assert rows[name][-1] == 0
    # A plan's arena stays for the next time; nothing else does.
    arena = memory["plan"]["arena_bytes"] if memory["plan"] else 0
    assert (rows["reserved"][-1], rows["segments"][-1]) == (arena, int(arena > 0))
    assert (rows["device_used"][-1] == 0) == (arena == 0)
    assert memory["digest"] == made.timed("cold")["digest"]


@pytest.mark.parametrize("allocator", ALLOCATORS)
@settings(max_examples=25, deadline=None)
@given(drawn=commands)
def test_decisions_do_not_depend_on_addresses(
    allocator: str, drawn: list[tuple[str, int, int, int]]
) -> None:
    events = make_events(operations_of(drawn))
    found = [
        remembered(_engine.Replay(events, allocator, backend=backend))
        for backend in ("host", "simulated")
    ]
    assert found[0]["digest"] == found[1]["digest"]
    if allocator != "direct":  # which rounds on a device only
        for name, column in found[0]["timeline"].items():
            if name != "device_used":
                assert np.array_equal(column, found[1]["timeline"][name])
