"""The engine's Python face: passes, results and errors."""

from __future__ import annotations

import signal
import threading
import time
from typing import Any

import numpy as np
import pytest
from engine_events import Operation, make_events

from workbench.replay import _engine

KIB, MIB = 2**10, 2**20
SMALL: list[Operation] = [
    ("alloc", 0, 100 * KIB, 0),
    ("alloc", 1, 300, 0),
    ("free", 0, 0, 0),
    ("alloc", 2, 100 * KIB, 0),
    ("free", 1, 0, 0),
]
# Those that need a library are held to the same by tests/cpp/test_engine_conformance.cpp.
ALLOCATORS = [info["name"] for info in _engine.allocators() if not info["needs_library"]]
BACKENDS = [info["name"] for info in _engine.backends() if info["available"]]


def replay(
    operations: list[Operation] = SMALL, allocator: str = "caching", **options: Any
) -> _engine.Replay:
    return _engine.Replay(make_events(operations), allocator, **{"backend": "simulated", **options})


def test_the_lists_hold_what_the_commands_show() -> None:
    assert {"caching", "cpu-caching", "direct"} <= set(ALLOCATORS)
    assert "null" not in ALLOCATORS
    assert sorted(ALLOCATORS) == ALLOCATORS
    kinds = {info["name"]: info["kind"] for info in _engine.allocators()}
    assert (kinds["caching"], kinds["cpu-caching"]) == ("device", "cpu")
    assert {info["name"]: info["is_model"] for info in _engine.backends()} == {
        "cuda": False,
        "host": False,
        "simulated": True,
    }


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("allocator", ALLOCATORS)
def test_a_replay_ends_where_the_program_did(allocator: str, backend: str) -> None:
    made = replay(allocator=allocator, backend=backend)
    memory = made.memory()
    assert memory["outcome"] == "ok"
    assert memory["oom"] is None
    assert memory["finals"]["live_requested"] == memory["finals"]["requested"] == 100 * KIB
    assert memory["peaks"]["live_requested"] == {"bytes": 100 * KIB + 300, "event": 1}
    assert memory["peaks"]["reserved"]["bytes"] >= 100 * KIB + 300
    assert memory["digest"] == made.timed("cold")["digest"]
    assert made.timed("steady")["digest"] == made.timed("steady")["digest"]


def test_hits_misses_and_held_bytes_of_the_exact_size_cache() -> None:
    memory = replay(allocator="cpu-caching").memory()
    assert (memory["counters"]["hits"], memory["counters"]["misses"]) == (1, 2)
    assert memory["finals"]["reserved"] == 100 * KIB + 300


def test_direct_rounds_to_512_on_a_device_only() -> None:
    assert replay(allocator="direct").memory()["finals"]["reserved"] == 100 * KIB
    assert replay(SMALL[:2], "direct").memory()["finals"]["reserved"] == 100 * KIB + 512
    on_host = replay(SMALL[:2], "direct", backend="host").memory()
    assert on_host["finals"]["reserved"] == 100 * KIB + 300


@pytest.mark.parametrize("buckets", [1, 2, 3, 7, 40, 1000])
def test_buckets_lose_no_extreme(buckets: int) -> None:
    rng = np.random.default_rng(3)
    operations: list[Operation] = []
    for number in range(40):
        operations.append(("alloc", number, int(rng.integers(1, 30 * MIB)), 0))
        if number % 3:
            operations.append(("free", number - 1, 0, 0))
    made = replay(operations)
    rows = made.memory(full=True)["timeline"]
    timeline = made.memory(buckets)["timeline"]
    first, last = timeline["event_first"], timeline["event_last"]
    assert len(first) == min(buckets, len(operations))
    assert first[0] == 0
    assert last[-1] == len(operations) - 1
    assert np.array_equal(first[1:], last[:-1] + 1)
    for name in ("requested", "live_requested", "allocated", "reserved", "segments"):
        assert np.array_equal(timeline[f"{name}_min"], np.minimum.reduceat(rows[name], first))
        assert np.array_equal(timeline[f"{name}_max"], np.maximum.reduceat(rows[name], first))


def test_zero_events_are_no_error() -> None:
    made = replay([])
    assert made.memory()["peaks"]["reserved"] == {"bytes": 0, "event": -1}
    assert len(made.memory()["timeline"]["event_first"]) == 0
    assert len(made.timed()["ticks"]) == 0
    assert made.throughput("steady", 2)["events"] == 0


TOO_MUCH: list[Operation] = [
    ("alloc", 0, 20 * MIB, 0),
    ("alloc", 1, 9 * MIB, 0),
    ("alloc", 2, 30 * MIB, 0),
    ("record_stream", 2, 0, 1),
    ("free", 2, 0, 0),
    ("free", 0, 0, 0),
    ("alloc", 3, 20 * MIB, 0),
]


def test_out_of_memory_is_a_result_that_says_what_there_was() -> None:
    memory = replay(TOO_MUCH, capacity=64 * MIB).memory(full=True)
    assert memory["outcome"] == "out_of_memory"
    assert memory["ooms"] == 1
    assert memory["oom"] == {
        "event": 2,
        "requested": 30 * MIB,
        "allocated": 29 * MIB,
        "reserved": 40 * MIB,
        "active": 29 * MIB,
        "live_requested": 29 * MIB,
        "largest_free": 11 * MIB,
        "device_free": 24 * MIB,
        "waterfall": {
            "live_requested": 29 * MIB,
            "rounding": 0,
            "pending": 0,
            "stranded": 11 * MIB,
            "cached": 0,
        },
    }
    assert len(memory["timeline"]["oom"]) == 3
    assert replay(TOO_MUCH, capacity=64 * MIB).timed("steady")["outcome"] == "out_of_memory"
    assert replay(TOO_MUCH, capacity=64 * MIB).throughput("cold")["outcome"] == "out_of_memory"


def test_after_out_of_memory_later_events_of_the_failed_id_are_skipped() -> None:
    made = replay(TOO_MUCH, capacity=64 * MIB, after_oom="continue")
    memory = made.memory(full=True)
    assert memory["outcome"] == "out_of_memory"
    assert memory["timeline"]["oom"].tolist() == [0, 0, 1, 0, 0, 0, 0]
    assert memory["finals"]["live_requested"] == 29 * MIB
    ticks = made.timed()["ticks"]
    assert (ticks > 0).tolist() == [True, True, True, False, False, True, True]


def test_blocks_are_listed_as_they_are_after_an_event() -> None:
    found = replay(
        [
            ("alloc", 5, 1000, 0),
            ("alloc", 6, 2000, 0),
            ("record_stream", 6, 0, 1),
            ("free", 6, 0, 0),
            ("alloc", 7, 5 * MIB, 1),
        ]
    ).memory(blocks_at=3)["blocks"]
    assert found is not None
    segments, blocks = found["segments"], found["blocks"]
    assert segments["size"].tolist() == [2 * MIB]
    assert segments["pool"].tolist() == ["small"]
    assert blocks["state"].tolist() == ["active_allocated", "active_pending_free", "inactive"]
    assert blocks["offset"].tolist() == [0, 1024, 3072]
    assert blocks["requested"].tolist() == [1000, 2000, 0]
    assert blocks["slot_event"].tolist() == [0, 1, -1]
    assert replay().memory()["blocks"] is None


def pending(completion: str) -> list[int]:
    """Active bytes after each event of a block that stream 1 still uses when it is freed."""
    operations: list[Operation] = [
        ("alloc", 0, 512, 0),
        ("record_stream", 0, 0, 1),
        ("free", 0, 0, 0),
        ("alloc", 1, 512, 0),
        ("free_completed", 0, 0, 0),
        ("alloc", 2, 512, 0),
        ("synchronize", -1, 0, -1),
        ("alloc", 3, 512, 0),
    ]
    made = replay(operations, completion=completion)
    return [int(value) // 512 for value in made.memory(full=True)["timeline"]["active"]]


def test_work_completes_as_completion_says() -> None:
    assert pending("recorded") == [1, 1, 1, 2, 2, 2, 2, 3]
    assert pending("immediate") == [1, 1, 1, 1, 1, 2, 2, 3]
    assert pending("never") == [1, 1, 1, 2, 2, 3, 3, 4]
    assert pending("delay:4") == [1, 1, 1, 2, 2, 3, 3, 3]
    assert pending("delay:1") == pending("immediate")


@pytest.mark.parametrize("allocator", ALLOCATORS)
def test_real_memory_is_touched_reported_and_verified(allocator: str) -> None:
    operations: list[Operation] = [("alloc", n, 32 * MIB, 0) for n in range(4)]
    operations += [("free", n, 0, 0) for n in range(4)]
    memory = replay(operations, allocator, backend="host").memory(verify=True)
    assert memory["rss_growth_bytes"] > 100 * MIB
    # A system may back a mapping with huge pages of 2 MiB.
    assert memory["minor_faults"] + memory["major_faults"] >= 4 * 32 // 2
    assert "rss_growth_bytes" not in replay(operations, allocator).memory()


def test_capacity_holds_on_the_host_too() -> None:
    found = replay(TOO_MUCH, "direct", backend="host", capacity=40 * MIB).memory()
    assert found["oom"] is not None
    assert found["oom"]["device_free"] == 11 * MIB


def test_the_cause_of_a_call_is_named() -> None:
    timed = replay().timed()
    names = [timed["causes"][code] for code in timed["cause"]]
    assert names == ["driver call", "split", *["served from cache"] * 3]
    assert timed["ns_per_tick"] > 0
    assert timed["clock_cost_ns"] > 0
    assert timed["pass_ns"] > 0
    steady = replay().timed("steady")
    assert steady["causes"][steady["cause"][0]] == "split"


def test_throughput_times_every_pass() -> None:
    for state in ("cold", "steady"):
        found = replay().throughput(state, 3)
        assert len(found["ns"]) == 3
        assert found["events"] == len(SMALL)
        assert all(ns > 0 for ns in found["ns"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"allocator": "cachin"}, "unknown allocator 'cachin'; there are async, caching"),
        ({"backend": "rocm"}, "unknown backend 'rocm'; there are cuda, host, simulated"),
        ({"settings": "speed:9"}, "unknown setting 'speed' of caching"),
        ({"settings": "speed"}, "has no colon"),
        ({"capacity": 0}, "capacity must be above 0"),
        ({"completion": "soon"}, "completion 'soon' is unknown"),
        ({"after_oom": "retry"}, "after_oom 'retry' is unknown"),
    ],
)
def test_wrong_use_is_one_sentence(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replay(**options)


def test_wrong_passes_are_one_sentence() -> None:
    with pytest.raises(ValueError, match="no bytes to verify"):
        replay().memory(verify=True)
    with pytest.raises(ValueError, match="state 'warm' is unknown"):
        replay().timed("warm")


of_pool = np.array([_engine.OPS["pool_begin"]], np.uint8)


def lanes(streams: list[int], pools: list[int]) -> dict[str, Any]:
    return {"lane_stream": np.array(streams, np.int32), "lane_pool": np.array(pools, np.int32)}


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"op": np.array([200], np.uint8)}, "event 0 has op 200"),
        ({"slot": np.array([1], np.int32)}, "event 0 has slot 1"),
        ({"slot": np.array([-1], np.int32)}, "event 0 has slot -1"),
        ({"size": np.array([-1], np.int64)}, "event 0 has a size below 0"),
        ({"stream": np.array([-1], np.int32)}, "event 0 has stream -1"),
        ({"stream": np.array([2**20], np.int32)}, "event 0 has stream 1048576"),
        ({"thread": np.zeros(2, np.int32)}, "differ in length"),
        ({"slot_count": -1}, "slot_count is negative"),
        (lanes([0], []), "lane_stream and lane_pool differ in length"),
        (lanes([-1], [0]), "lane 0 is of stream -1 and pool 0"),
        (lanes([0, 0], [0, 2**20]), "lane 1 is of stream 0 and pool 1048576"),
        ({"stream": np.array([1], np.int32), **lanes([0], [1])}, "event 0 has lane 1"),
        ({"op": of_pool, "value": np.array([0])}, "event 0 names private pool 0"),
        ({"op": of_pool, "value": np.array([2**20])}, "event 0 names private pool 1048576"),
    ],
)
def test_events_that_would_break_the_loop_are_refused(
    changed: dict[str, Any], message: str
) -> None:
    columns: dict[str, Any] = {
        "op": np.array([0], np.uint8),
        "slot": np.array([0], np.int32),
        "size": np.array([8], np.int64),
        "stream": np.array([0], np.int32),
        "thread": np.array([0], np.int32),
        "slot_count": 1,
    }
    assert len(_engine.Events(**columns)) == 1
    with pytest.raises(ValueError, match=message):
        _engine.Events(**{**columns, **changed})


def test_ids_that_contradict_themselves_are_named() -> None:
    with pytest.raises(ValueError, match="event 1: id 7 is freed but was never allocated"):
        make_events([("alloc", 1, 8, 0), ("free", 7, 0, 0)])


def test_progress_is_reported_and_ctrl_c_ends_a_pass() -> None:
    pairs = 3_000_000
    op = np.tile(np.array([_engine.OPS["alloc"], _engine.OPS["free"]], np.uint8), pairs)
    zeros = np.zeros(2 * pairs, np.int32)
    events = _engine.Events(op, zeros, np.full(2 * pairs, 64), zeros, zeros, 1)
    made = _engine.Replay(events, "caching", backend="simulated")
    seen: list[tuple[int, int]] = []
    made.memory(10, progress=lambda done, total: seen.append((done, total)))
    assert seen[-1] == (2 * pairs, 2 * pairs)
    assert [done for done, _ in seen] == sorted({done for done, _ in seen})

    def interrupt() -> None:
        time.sleep(0.02)
        signal.raise_signal(signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        made.throughput("cold", 1000)
    thread.join()
