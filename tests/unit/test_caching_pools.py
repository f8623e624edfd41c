"""`caching` with private pools and captures: what docs/allocators.md says of them, step by step."""

from __future__ import annotations

from typing import Any

from caching_settings import MIB
from engine_events import LANE, Operation, make_events

from workbench.replay import _engine


def run(operations: list[Operation], text: str = "", **options: Any) -> _engine.MemoryResult:
    """Of a replay on a simulated device that goes on after a refused request."""
    options = {"backend": "simulated", "after_oom": "continue", **options}
    return _engine.Replay(make_events(operations), "caching", text, **options).memory(full=True)


def column(operations: list[Operation], name: str, text: str = "", **options: Any) -> list[int]:
    """A column of the timeline, in MiB where it is bytes."""
    values = run(operations, text, **options)["timeline"][name]
    return [int(value) // (1 if name.startswith("n_") else MIB) for value in values]


def test_a_private_pool_has_blocks_of_its_own_and_keeps_its_segments_until_it_is_released() -> None:
    reserved = column(
        [
            ("pool_begin", 1, 0, 0),
            ("alloc", 0, 30 * MIB, LANE),
            ("pool_end", 1, 0, 0),
            ("free", 0, 0, 0),
            ("alloc", 1, 30 * MIB, 0),  # finds nothing free in its own pool
            ("free", 1, 0, 0),
            ("empty_cache", -1, 0, 0),  # what of the default pool is free goes
            ("alloc", 2, 30 * MIB, LANE),  # found
            ("free", 2, 0, 0),
            ("pool_release", 1, 0, 0),  # gives back nothing by itself
            ("empty_cache", -1, 0, 0),
        ],
        "reserved",
    )
    assert reserved == [0, 30, 30, 30, 60, 60, 30, 30, 30, 30, 0]


def test_a_pool_that_several_use_is_given_back_with_the_last() -> None:
    program: list[Operation] = [
        ("pool_begin", 1, 0, 0),
        ("alloc", 0, 30 * MIB, LANE),
        ("pool_end", 1, 0, 0),
        ("pool_begin", 1, 0, 0),
        ("pool_end", 1, 0, 0),
        ("free", 0, 0, 0),
        ("pool_release", 1, 0, 0),
        ("empty_cache", -1, 0, 0),
        ("pool_release", 1, 0, 0),
        ("empty_cache", -1, 0, 0),
    ]
    assert column(program, "reserved")[-3:] == [30, 30, 0]


def test_memory_in_use_outlives_the_pool() -> None:
    reserved = column(
        [
            ("pool_begin", 1, 0, 0),
            ("alloc", 0, 30 * MIB, LANE),
            ("alloc", 1, 500, LANE),
            ("pool_end", 1, 0, 0),
            ("pool_release", 1, 0, 0),
            ("free", 1, 0, 0),
            ("empty_cache", -1, 0, 0),
            ("free", 0, 0, 0),
            ("empty_cache", -1, 0, 0),
        ],
        "reserved",
    )
    assert reserved[-4:] == [32, 30, 30, 0]


def test_a_pool_that_was_there_before_is_somebodys() -> None:
    program: list[Operation] = [
        ("alloc", 0, 30 * MIB, LANE),
        ("free", 0, 0, 0),
        ("empty_cache", -1, 0, 0),
        ("pool_release", 1, 0, 0),
        ("empty_cache", -1, 0, 0),
    ]
    assert column(program, "reserved") == [30, 30, 30, 30, 0]


def test_statistics_count_private_pools_with_the_others_and_apart() -> None:
    found = run(
        [
            ("pool_begin", 7, 0, 0),
            ("alloc", 0, 30 * MIB, 1 + 7 * LANE),
            ("alloc", 1, 500, 7 * LANE),
            ("alloc", 2, 500, 0),
            ("free", 0, 0, 0),
            ("pool_release", 7, 0, 0),
            ("empty_cache", -1, 0, 0),
        ]
    )["torch_statistics"]
    assert found["reserved_bytes.small_pool.current"] == 4 * MIB
    of_pool = "reserved_bytes_by_private_pools.0_7"
    assert found[f"{of_pool}.all.current"] == 2 * MIB
    assert found[f"{of_pool}.all.peak"] == 32 * MIB
    assert found[f"{of_pool}.large_pool.freed"] == 30 * MIB
    assert found[f"{of_pool}.small_pool.allocated"] == 2 * MIB


def test_a_retry_gives_back_released_pools_and_no_others() -> None:
    def refused(released: bool) -> int:
        program: list[Operation] = [
            ("pool_begin", 1, 0, 0),
            ("alloc", 0, 40 * MIB, LANE),
            ("pool_end", 1, 0, 0),
            ("free", 0, 0, 0),
            *([("pool_release", 1, 0, 0)] if released else []),
            ("alloc", 1, 40 * MIB, 0),
        ]
        return run(program, capacity=64 * MIB)["ooms"]

    assert (refused(released=True), refused(released=False)) == (0, 1)


def test_a_free_that_waits_for_streams_waits_for_the_end_of_a_capture_first() -> None:
    program: list[Operation] = [
        ("alloc", 0, 30 * MIB, 0),
        ("record_stream", 0, 0, 1),
        ("capture_begin", -1, 0, 0),
        ("alloc", 1, 40 * MIB, LANE),
        ("record_stream", 1, 0, 1),
        ("free", 0, 0, 0),
        ("free", 1, 0, 0),
        ("synchronize", -1, 0, -1),
        ("alloc", 2, 500, 0),  # looks at nothing during a capture
        ("capture_end", -1, 0, 0),
        # What was only used in the capture is free; a CUDA event for the other.
        ("alloc", 3, 500, 0),
        ("synchronize", -1, 0, 1),
        ("alloc", 4, 500, 0),
    ]
    assert column(program, "n_active") == [1, 1, 1, 2, 2, 2, 2, 2, 3, 3, 3, 3, 3]
    assert column(program, "active")[9:] == [70, 30, 30, 0]


def test_nothing_is_waited_for_and_no_default_memory_given_back_during_a_capture() -> None:
    program: list[Operation] = [
        ("alloc", 0, 40 * MIB, 0),
        ("free", 0, 0, 0),
        ("capture_begin", -1, 0, 0),
        ("alloc", 1, 30 * MIB, LANE),
        ("empty_cache", -1, 0, 0),
        ("capture_end", -1, 0, 0),
        ("alloc", 2, 30 * MIB, LANE),
    ]
    found = run(program, capacity=64 * MIB)
    assert found["timeline"]["ooms"].tolist() == [0, 0, 0, 1, 1, 1, 1]
    assert found["timeline"]["retries"].tolist() == [0, 0, 0, 0, 0, 0, 1]
    assert found["torch_statistics"]["num_sync_all_streams"] == 1


def test_older_releases_took_allocations_in_a_private_pool_for_a_capture() -> None:
    program: list[Operation] = [
        ("alloc", 0, 40 * MIB, 0),
        ("free", 0, 0, 0),
        ("pool_begin", 1, 0, 0),
        ("alloc", 1, 30 * MIB, LANE),
        ("pool_end", 1, 0, 0),
    ]
    refused = [
        run(program, text, capacity=64 * MIB)["ooms"] for text in ("", "rules:address-order")
    ]
    assert refused == [0, 1]


def test_expandable_segments_of_a_pool_are_its_own() -> None:
    reserved = column(
        [
            ("pool_begin", 1, 0, 0),
            ("alloc", 0, 30 * MIB, LANE),
            ("alloc", 1, 30 * MIB, 0),
            ("free", 0, 0, 0),
            ("free", 1, 0, 0),
            ("empty_cache", -1, 0, 0),
            ("alloc", 2, 50 * MIB, LANE),
            ("free", 2, 0, 0),
            ("pool_release", 1, 0, 0),
            ("empty_cache", -1, 0, 0),
        ],
        "reserved",
        "expandable_segments:True",
        capacity=1 << 30,
    )
    assert reserved == [0, 40, 80, 80, 80, 40, 60, 60, 60, 0]


def test_a_program_that_starts_again_finds_its_pools_released() -> None:
    """Cold passes are alike, and so are steady ones."""
    program: list[Operation] = [
        ("capture_begin", -1, 0, 0),
        ("pool_begin", 1, 0, 0),
        ("alloc", 0, 30 * MIB, LANE),
        ("record_stream", 0, 0, 1),
        ("alloc", 1, 30 * MIB, 2 * LANE),
        ("free", 0, 0, 0),
        ("alloc", 2, 30 * MIB, 0),
        ("empty_cache", -1, 0, 0),
    ]
    for state in ("cold", "steady"):
        digests = {
            _engine.Replay(make_events(program), "caching", backend="simulated").timed(state)[
                "digest"
            ]
            for _ in range(2)
        }
        assert len(digests) == 1
