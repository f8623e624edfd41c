"""What of a trace reaches the engine: failed requests again, private pools apart."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from trace_maker import write_trace

from workbench.common.errors import BrokenFileError
from workbench.replay import _engine
from workbench.replay.events import Traffic, load_trace
from workbench.replay.lanes import Lanes

MIB = 2**20
NAMES = {code: name for name, code in _engine.OPS.items()}


def traffic_of(path: Path) -> Traffic:
    (loaded,) = load_trace(str(path))
    return loaded.traffic("cuda:0")


def test_a_failed_request_is_asked_for_again_and_freed_unless_it_is_the_last(
    tmp_path: Path,
) -> None:
    events = [
        ("alloc", 0, 8 * MIB),
        ("oom", -1, 90 * MIB),
        ("alloc", 1, MIB),
        ("oom", -1, 80 * MIB),
    ]
    path = write_trace(tmp_path / "run.parquet", events, device=["cuda:0"] * 4)
    traffic = traffic_of(path)
    assert [NAMES[op] for op in traffic.op] == ["alloc", "alloc", "free", "alloc", "alloc"]
    assert traffic.row.tolist() == [0, 1, 1, 2, 3]
    assert traffic.ids[1] == traffic.ids[2]
    assert traffic.ids[1] not in (0, 1)
    assert traffic.ids[4] not in (0, 1, traffic.ids[1])
    assert traffic.peak_live_bytes == 98 * MIB

    def refused_at(capacity: int) -> int | None:
        replay = _engine.Replay(traffic.events(), "direct", backend="simulated", capacity=capacity)
        oom = replay.memory(1)["oom"]
        return None if oom is None else oom["event"]

    assert refused_at(98 * MIB) is None
    assert refused_at(96 * MIB) == 1


def test_a_private_pool_shares_no_memory_with_the_default_one(tmp_path: Path) -> None:
    events = [("alloc", 0, 8 * MIB), ("free", 0, 8 * MIB), ("alloc", 1, 8 * MIB)]
    changed = {"device": ["cuda:0"] * 3, "stream": [1, 1, 1]}
    shared = traffic_of(write_trace(tmp_path / "one.parquet", events, **changed))
    apart = traffic_of(write_trace(tmp_path / "two.parquet", events, pool=[2, 2, 0], **changed))
    segments = [
        _engine.Replay(traffic.events(), "caching", backend="simulated").memory(1)["driver_calls"][
            "alloc"
        ]
        for traffic in (shared, apart)
    ]
    assert segments == [1, 2]
    assert shared.stream.tolist() == [1, 1, 1]
    assert shared.lane_stream is None
    assert [lane_of(apart, event) for event in (0, 2)] == [(1, 2), (1, 0)]
    assert shared.fingerprint != apart.fingerprint


def lane_of(traffic: Traffic, event: int) -> tuple[int, int]:
    """The stream and the pool of an allocation."""
    lane = int(traffic.stream[event])
    assert traffic.lane_stream is not None
    assert traffic.lane_pool is not None
    return int(traffic.lane_stream[lane]), int(traffic.lane_pool[lane])


def test_lanes_are_streams_until_private_pools_begin() -> None:
    streams, pools = np.array([0, 7, 7, 0, 2]), np.array([0, 0, 40_000, 3, 3])
    lanes = Lanes([streams], [pools])
    numbers = lanes.of(streams, pools)
    assert numbers[:2].tolist() == [0, 7]
    assert len(set(numbers.tolist())) == 5
    assert len(lanes.stream) == 8 + 3
    assert lanes.stream[numbers].tolist() == streams.tolist()
    assert lanes.pool[numbers].tolist() == pools.tolist()
    assert len(Lanes([streams], [np.zeros(5, dtype=int)]).stream) == 0


def test_private_pools_begin_and_end_by_their_numbers(tmp_path: Path) -> None:
    events = [
        ("pool_begin", -1, 0),
        ("alloc", 0, MIB),
        ("pool_end", -1, 0),
        ("pool_release", -1, 0),
        ("pool_release", -1, 0),
    ]
    traffic = traffic_of(
        write_trace(
            tmp_path / "one.parquet",
            events,
            device=["cuda:0"] * 5,
            pool=[3, 3, 0, 0, 0],
            value=[None, None, 3, 3, None],
        )
    )
    # The last does not say which pool it means.
    assert [NAMES[code] for code in traffic.op.tolist()] == [name for name, *_ in events[:4]]
    assert traffic.value is not None
    assert traffic.value.tolist() == [3, 0, 3, 3]
    path = write_trace(
        tmp_path / "two.parquet", events[:1], device=["cuda:0"], value=[70_000], pool=[0]
    )
    with pytest.raises(BrokenFileError, match="name private pools 70000 to 70000"):
        traffic_of(path)
    path = write_trace(tmp_path / "three.parquet", events[1:2], device=["cuda:0"], pool=[70_000])
    with pytest.raises(BrokenFileError, match="row 0 has pool 70000"):
        traffic_of(path)


def test_cuda_events_are_numbered_without_gaps_and_those_without_a_number_are_passed_over(
    tmp_path: Path,
) -> None:
    events = [
        ("alloc", 0, MIB),
        ("event_record", -1, 0),
        ("capture_begin", -1, 0),
        ("capture_end", -1, 0),
        ("event_wait", -1, 0),
        ("event_record", -1, 0),
        ("set_fraction", -1, 0),
        ("event_wait", -1, 0),
    ]
    path = write_trace(
        tmp_path / "run.parquet",
        events,
        device=["cuda:0"] * 8,
        stream=[0, 1, 0, 0, 0, 2, -1, 2],
        value=[7, 900, None, None, 900, 5, 250_000, None],
    )
    traffic = traffic_of(path)
    assert [NAMES[op] for op in traffic.op] == [event for event, *_ in events[:-1]]
    assert traffic.value is not None
    assert traffic.value.tolist() == [0, 1, 0, 0, 1, 0, 250_000]
    assert len(traffic.events()) == 7


def test_values_are_no_part_of_traffic_that_has_no_use_for_them(tmp_path: Path) -> None:
    events = [("alloc", 0, MIB), ("free", 0, MIB)]
    columns = {"device": ["cuda:0"] * 2}
    plain = traffic_of(write_trace(tmp_path / "a.parquet", events, **columns))
    valued = traffic_of(write_trace(tmp_path / "b.parquet", events, value=[1, 2], **columns))
    assert valued.value is None
    assert valued.fingerprint == plain.fingerprint
    assert "value" not in valued.engine_columns()


def test_a_fraction_above_the_whole_is_a_broken_trace(tmp_path: Path) -> None:
    path = write_trace(
        tmp_path / "run.parquet", [("set_fraction", -1, 0)], device=["cuda:0"], value=[1_000_001]
    )
    with pytest.raises(BrokenFileError, match="1000001, above 1000000 millionths"):
        traffic_of(path)
