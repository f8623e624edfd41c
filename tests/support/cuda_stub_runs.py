"""`caching` and PyTorch's own CUDA allocator on the same simulated device, event by event."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
from caching_settings import MIB, Conf, random_settings

from workbench.replay import _engine
from workbench.replay.allocators import runs_as
from workbench.replay.cell import AllocatorSpec
from workbench.replay.references import references

REFERENCE = references()["torch-caching"]
UNAVAILABLE = REFERENCE.unavailable()
"""Why PyTorch's own cannot run here; empty where it can."""
# Both count these; device_used is what the device has given out.
COLUMNS = (
    *("allocated", "reserved", "active", "requested", "inactive_split", "stranded"),
    *("n_alloc", "n_segment", "n_active", "n_inactive_split", "largest_free"),
    *("retries", "ooms", "oom", "device_allocs", "device_frees", "device_used"),
)
ALLOC = _engine.JOURNAL_ACTIONS["alloc"]


def settings_for_pytorch(rng: random.Random) -> str:
    """Random settings, without those whose expandable segments no driver maps."""
    while True:
        drawn = random_settings(rng)
        conf = Conf.read(drawn)
        if not conf.expandable or conf.large_segment % (2 * MIB) == 0:
            return drawn


class Difference(AssertionError):
    """Where two replays part; the message names the column and the event."""


def replayed(
    events: _engine.Events,
    allocator: str,
    settings: str,
    capacity: int | None,
    completion: str = "recorded",
) -> _engine.MemoryResult:
    """Every column after every event, and the address of each block; out of memory it goes on."""
    name, its_settings = allocator, settings
    if allocator == REFERENCE.name:
        name, its_settings = runs_as(AllocatorSpec(allocator, settings))
    replay = _engine.Replay(
        events,
        name,
        its_settings,
        backend="simulated",
        capacity=capacity,
        completion=completion,
        after_oom="continue",
    )
    return replay.memory(full=True, journal=True)


def addresses(memory: _engine.MemoryResult, count: int) -> np.ndarray:
    """Of the block at each of `count` events that allocates one, else 0.

    The device gives out its addresses in order, so two allocators that take the same segments in
    the same order have the same.
    """
    journal: Any = memory["journal"]
    of_alloc = journal["action"] == ALLOC
    address = np.zeros(count, np.uint64)
    address[journal["event"][of_alloc]] = journal["address"][of_alloc]
    return address


def hold_against_pytorch(
    events: _engine.Events, settings: str, capacity: int | None, completion: str = "recorded"
) -> int:
    """Replays both and compares every column of every event, and every address.

    Returns:
        The number of events.

    Raises:
        Difference: the first event at which they differ.
    """
    ours = replayed(events, "caching", settings, capacity, completion)
    theirs = replayed(events, REFERENCE.name, settings, capacity, completion)
    count = len(events)
    pairs = {name: (ours["timeline"][name], theirs["timeline"][name]) for name in COLUMNS}
    pairs["address"] = (addresses(ours, count), addresses(theirs, count))
    first = {
        name: int(different[0])
        for name, (mine, other) in pairs.items()
        if (different := np.flatnonzero(mine != other)).size
    }
    if first:
        event = min(first.values())
        told = ", ".join(
            f"{name} {pairs[name][0][event]} and in PyTorch {pairs[name][1][event]}"
            for name, at in first.items()
            if at == event
        )
        raise Difference(f"from event {event} of {count} on: {told} ({settings!r}, {capacity})")
    return count


def golden_of(path: Path) -> dict[str, np.ndarray]:
    """The columns of a file in tests/data/caching_golden."""
    import pyarrow.parquet as pq

    table = pq.read_table(path)
    return {
        name: table.column(name).to_numpy().astype(np.int64)
        for name in table.column_names
        if name != "event"
    }
