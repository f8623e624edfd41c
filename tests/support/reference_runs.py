"""PyTorch's own allocators and ours on the same events, in this process."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from workbench.replay import _engine
from workbench.replay.allocators import runs_as
from workbench.replay.cell import AllocatorSpec

ALLOC, FREE = (_engine.JOURNAL_ACTIONS[name] for name in ("alloc", "free_requested"))


@dataclass(frozen=True)
class Decisions:
    """What an allocator decided.

    Args:
        totals: by name, after every event.
        address: of the block at every event that allocates or frees one, else 0.
        plan: what it ran, if any.
    """

    totals: dict[str, np.ndarray]
    address: np.ndarray
    plan: _engine.Plan | None


def decisions(
    events: _engine.Events, allocator: str, settings: str = "", *, backend: str = "host"
) -> Decisions:
    """Replay `events` against an allocator of the engine, or a reference."""
    engine_name, engine_settings = runs_as(AllocatorSpec(allocator, settings))
    replay = _engine.Replay(events, engine_name, engine_settings, backend=backend)
    memory = replay.memory(full=True, journal=True)
    assert memory["outcome"] == "ok"
    journal: Any = memory["journal"]
    concerns_block = np.isin(journal["action"], (ALLOC, FREE))
    address = np.zeros(len(events), np.uint64)
    address[journal["event"][concerns_block]] = journal["address"][concerns_block]
    return Decisions(memory["timeline"], address, replay.plan)


def assert_same_totals(ours: Decisions, theirs: Decisions, names: tuple[str, ...]) -> None:
    """Each of `names` is the same after every event."""
    for name in names:
        different = np.flatnonzero(ours.totals[name] != theirs.totals[name])
        assert not different.size, f"{name} differs from event {different[0]} on"
