"""`async` against a slow model of its rules, on random programs."""

from __future__ import annotations

import numpy as np
import pytest
from async_model import AsyncModel, Settings
from engine_events import Operation
from hypothesis import given, settings
from hypothesis import strategies as st
from random_operations import operations_of

from workbench.replay import _engine

MIB = 2**20
CAPACITY = 40 * MIB + 512
STREAMS = 3
OPS = {
    "alloc": 12,
    "free": 9,
    "record_stream": 2,
    "synchronize": 1,
    "free_completed": 1,
    "empty_cache": 1,
    "event_record": 2,
    "event_wait": 2,
    "capture_begin": 1,
    "capture_end": 1,
    "set_fraction": 1,
}
SIZES = [0, 1, 512, 513, 100_000, MIB, 2 * MIB, 2 * MIB + 1, 3 * MIB, 5 * MIB, 9 * MIB, 25 * MIB]

PROGRAMS = st.lists(
    st.tuples(
        st.sampled_from([op for op, times in OPS.items() for _ in range(times)]),
        st.sampled_from(SIZES),
        st.integers(0, STREAMS - 1),
        st.integers(0, 10**6),
    ),
    min_size=1,
    max_size=120,
)
SETTINGS = st.builds(
    Settings,
    capacity=st.just(CAPACITY),
    chunk=st.sampled_from([2 * MIB, 4 * MIB]),
    threshold=st.sampled_from([None, 0, 6 * MIB]),
    follow=st.booleans(),
    opportunistic=st.booleans(),
    internal=st.booleans(),
    remap=st.booleans(),
    fraction=st.sampled_from([None, None, 0.5]),
    completion=st.sampled_from(["recorded", "immediate", "never"]),
)


def events_of(operations: list[Operation]) -> _engine.Events:
    """Numbers of CUDA events are below the number of operations once there are three."""
    names = [op for op, *_ in operations]
    number, size, stream = (
        np.array([row[column] for row in operations], dtype=np.int64) for column in (1, 2, 3)
    )
    codes = np.array([_engine.OPS[name] for name in names], dtype=np.uint8)
    valued = np.isin(names, ["event_record", "event_wait", "set_fraction"])
    slot, count = _engine.assign_slots(codes, number)
    return _engine.Events(
        codes,
        slot,
        size,
        stream.astype(np.int32),
        np.zeros(len(codes), np.int32),
        count,
        value=np.where(valued, number, 0),
    )


def text_of(given: Settings) -> str:
    threshold = given.threshold
    parts = [
        f"chunk_mb:{given.chunk // MIB}",
        "" if threshold is None else f"release_threshold_mb:{threshold // MIB}",
        f"reuse_follow_event_dependencies:{given.follow}",
        f"reuse_allow_opportunistic:{given.opportunistic}",
        f"reuse_allow_internal_dependencies:{given.internal}",
        f"remap:{given.remap}",
        "" if given.fraction is None else f"per_process_memory_fraction:{given.fraction}",
    ]
    return ",".join(part for part in parts if part)


@settings(max_examples=400, deadline=None)
@given(PROGRAMS, SETTINGS)
def test_it_does_what_a_slow_model_of_its_rules_does(
    program: list[tuple[str, int, int, int]], chosen: Settings
) -> None:
    padding = [("synchronize", -1, 0, 0)] * 3
    operations: list[Operation] = [*padding, *operations_of(program)]
    model = AsyncModel(chosen)
    expected = []
    for operation in operations:
        model.apply(*operation)
        pool = model.pool
        expected.append((model.used, pool.used, pool.reserved, pool.largest_free, model.ooms))

    replay = _engine.Replay(
        events_of(operations),
        "async",
        text_of(chosen),
        backend="simulated",
        capacity=CAPACITY,
        completion=chosen.completion,
        after_oom="continue",
    )
    found = replay.memory(full=True, blocks_at=len(operations) - 1)
    rows = found["timeline"]
    names = ["requested", "allocated", "reserved", "largest_free", "ooms"]
    assert list(zip(*(rows[name].tolist() for name in names), strict=True)) == expected

    assert found["blocks"] is not None
    blocks = found["blocks"]["blocks"]
    columns = [np.asarray(blocks[name]).tolist() for name in ("segment", "offset", "size")]
    shown = list(zip(*columns, strict=True))
    starts = [start for start, _ in model.pool.ranges]
    ranges = [model.pool.range_of(piece) for piece in model.pool.pieces]
    assert shown == [
        (number, piece.at - starts[number], piece.size)
        for number, piece in zip(ranges, model.pool.pieces, strict=True)
    ]


@pytest.mark.parametrize("completion", ["recorded", "delay:3", "immediate", "never"])
def test_passes_decide_alike(completion: str) -> None:
    rng = np.random.default_rng(5)
    ops = [op for op, times in OPS.items() if op != "set_fraction" for _ in range(times)]
    program = [
        (ops[a], SIZES[b], int(c), int(d))
        for a, b, c, d in zip(
            rng.integers(len(ops), size=3000),
            rng.integers(len(SIZES), size=3000),
            rng.integers(STREAMS, size=3000),
            rng.integers(10**6, size=3000),
            strict=True,
        )
    ]
    events = events_of(operations_of(program))
    replay = _engine.Replay(
        events,
        "async",
        "chunk_mb:2",
        backend="simulated",
        capacity=10 * CAPACITY,
        completion=completion,
        after_oom="continue",
    )
    cold = replay.memory(1)["digest"]
    assert replay.timed("cold")["digest"] == cold
    assert replay.timed("steady")["digest"] == replay.timed("steady")["digest"]
