"""The names and numbers of torch.cuda.memory_stats, and where the reserved bytes are."""

from __future__ import annotations

import itertools
import re
from typing import Any

import numpy as np
import pytest
from caching_settings import MIB, random_settings
from engine_events import Operation, make_events
from hypothesis import given, settings
from hypothesis import strategies as st
from random_operations import commands, operations_of

from workbench.replay import _engine

BACKENDS = [info["name"] for info in _engine.backends() if info["available"]]


def replay(operations: list[Operation], text: str = "", **options: Any) -> _engine.Replay:
    return _engine.Replay(
        make_events(operations),
        "caching",
        text,
        **{"backend": "simulated", "after_oom": "continue", **options},
    )


@pytest.mark.torch
def test_the_names_are_those_that_pytorch_documents() -> None:
    torch = pytest.importorskip("torch")
    documented: set[str] = set()
    for pattern in re.findall(r'``"([a-z][a-z_.{},]+)"``', torch.cuda.memory_stats.__doc__):
        choices = [
            part.strip("{}").split(",") for part in re.findall(r"\{[^}]*\}|[^.{}]+", pattern)
        ]
        documented |= {".".join(parts) for parts in itertools.product(*choices)}
    # The page says allocated.… for what the dictionary and torch.cuda.memory_summary call
    # allocation.…; and this replay has no private pools.
    documented = {re.sub(r"^allocated\.", "allocation.", name) for name in documented}
    documented.remove("reserved_bytes_by_private_pools")
    assert set(replay([("alloc", 0, 1, 0)]).memory()["torch_statistics"]) == documented


def test_a_worked_example() -> None:
    """What each number is; that they are right everywhere is held against the model."""
    found = replay(
        [
            ("alloc", 0, 1000, 0),  # 1024 of a small segment of 2 MiB
            ("alloc", 1, 5 * MIB, 0),  # of a large segment of 20 MiB
            ("alloc", 2, 15 * MIB, 0),  # the rest of it
            ("alloc", 3, 25 * MIB, 0),  # a segment of 26 MiB, oversize
            ("record_stream", 1, 0, 2),
            ("free", 1, 0, 0),  # pending
            ("free", 3, 0, 0),
            ("alloc", 4, 60 * MIB, 0),  # refused; tried again after all cached is released
        ],
        "max_split_size_mb:24",
        capacity=50 * MIB,
    ).memory()["torch_statistics"]
    expected = {
        "allocation.all.current": 2,
        "allocation.all.peak": 4,
        "allocation.all.allocated": 4,
        "allocation.all.freed": 2,
        "allocation.small_pool.current": 1,
        "allocation.large_pool.freed": 2,
        "allocated_bytes.all.current": 15 * MIB + 1024,
        "allocated_bytes.large_pool.peak": 46 * MIB,
        "requested_bytes.small_pool.current": 1000,
        "requested_bytes.all.freed": 30 * MIB,  # waited for
        "active.all.current": 2,
        "active_bytes.large_pool.freed": 31 * MIB,  # all of its segment: it is not split
        "inactive_split.all.current": 2,
        "inactive_split_bytes.small_pool.current": 2 * MIB - 1024,
        "inactive_split_bytes.large_pool.current": 5 * MIB,
        "segment.all.current": 2,
        "segment.all.peak": 3,
        "segment.large_pool.freed": 1,
        "reserved_bytes.all.peak": 48 * MIB,
        "reserved_bytes.large_pool.current": 20 * MIB,
        "oversize_allocations.allocated": 1,
        "oversize_allocations.current": 0,
        "oversize_segments.peak": 1,
        "oversize_segments.freed": 1,
        "max_split_size": 24 * MIB,
        "num_alloc_retries": 1,
        "num_ooms": 1,
        "num_oom_rejections": 0,
        "num_device_alloc": 3,
        "num_device_free": 1,
        "num_sync_all_streams": 1,
    }
    assert {name: found[name] for name in expected} == expected


def test_rejections_are_counted_apart() -> None:
    memory = replay(
        [("alloc", 0, 30 * MIB, 0), ("free", 0, 0, 0), ("alloc", 1, 40 * MIB, 0)],
        "throw_on_cudamalloc_oom:True",
        capacity=64 * MIB,
    ).memory()
    found = memory["torch_statistics"]
    names = ("num_oom_rejections", "num_ooms", "num_alloc_retries", "num_device_free")
    assert [found[name] for name in names] == [1, 0, 0, 0]
    assert memory["outcome"] == "out_of_memory"
    assert found["max_split_size"] == -1


texts = st.builds(random_settings, st.randoms(use_true_random=False))


def parts_of(state: dict[str, dict[str, np.ndarray]]) -> dict[str, int]:
    """Where the bytes are, summed over the blocks."""
    segments, blocks = state["segments"], state["blocks"]
    expandable = dict(
        zip(segments["number"].tolist(), segments["expandable"].tolist(), strict=True)
    )
    size = dict(zip(segments["number"].tolist(), segments["size"].tolist(), strict=True))
    parts = dict.fromkeys(("live_requested", "rounding", "pending", "stranded", "cached"), 0)
    names = ("segment", "size", "requested", "state")
    for segment, bytes_, requested, kind in zip(
        *(blocks[name].tolist() for name in names), strict=True
    ):
        if kind == "active_allocated":
            parts["live_requested"] += requested
            parts["rounding"] += bytes_ - requested
        elif kind == "active_pending_free":
            parts["pending"] += bytes_
        elif expandable[segment] or bytes_ < size[segment]:
            parts["stranded"] += bytes_
        else:
            parts["cached"] += bytes_
    assert sum(parts.values()) == sum(size.values())
    return parts


@settings(max_examples=150, deadline=None)
@given(
    drawn=commands(25, 60),
    text=texts,
    capacity=st.sampled_from([45 * MIB, 101 * MIB, 300 * MIB, None]),
    completion=st.sampled_from(["recorded", "never", "delay:4"]),
)
def test_the_waterfall_adds_up_at_every_event(
    drawn: list[tuple[str, int, int, int]], text: str, capacity: int | None, completion: str
) -> None:
    operations = operations_of(drawn)
    made = replay(operations, text, capacity=capacity, completion=completion)
    for event in range(len(operations)):
        memory = made.memory(full=True, blocks_at=event)
        now = {name: int(column[event]) for name, column in memory["timeline"].items()}
        parts = parts_of(memory["blocks"])
        assert parts == {
            "live_requested": now["live_requested"],
            "rounding": now["allocated"] - now["live_requested"],
            "pending": now["active"] - now["allocated"],
            "stranded": now["stranded"],
            "cached": now["reserved"] - now["active"] - now["stranded"],
        }
        assert sum(parts.values()) == now["reserved"]
        assert min(parts.values()) >= 0
        if memory["peaks"]["reserved"]["event"] == event:
            assert memory["waterfall"] == parts
        if memory["oom"] is not None and memory["oom"]["event"] == event:
            assert memory["oom"]["waterfall"] == parts


@pytest.mark.parametrize("backend", BACKENDS)
@settings(max_examples=20, deadline=None)
@given(drawn=commands(25, 60), text=texts)
def test_what_holds_for_every_allocator_holds_under_all_settings(
    backend: str, drawn: list[tuple[str, int, int, int]], text: str
) -> None:
    operations = operations_of(drawn)
    freed = {name for op, name, _, _ in operations if op == "free"}
    operations += [
        ("free", name, 0, 0) for op, name, _, _ in operations if op == "alloc" and name not in freed
    ]
    operations.append(("empty_cache", -1, 0, 0))
    made = replay(operations, text, backend=backend, capacity=48 * MIB)
    memory = made.memory(full=True, verify=backend == "host")
    rows = memory["timeline"]
    for lower, higher in (
        ("requested", "active"),
        ("live_requested", "allocated"),
        ("allocated", "active"),
        ("active", "reserved"),
        ("reserved", "device_used"),
        ("inactive_split", "stranded"),
    ):
        assert (rows[lower] <= rows[higher]).all(), (lower, higher)
    free = rows["reserved"] - rows["active"]
    assert (rows["stranded"] <= free).all()
    assert (rows["largest_free"] <= free).all()
    assert (rows["device_used"] <= 48 * MIB).all()
    for name in ("requested", "allocated", "active", "reserved", "segments", "device_used"):
        assert rows[name][-1] == 0
    assert memory["digest"] == made.timed("cold")["digest"]
    assert made.timed("steady")["digest"] == made.timed("steady")["digest"]
