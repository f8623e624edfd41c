"""Subjects of searches made of operations, and a pool that replays in this process."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
from engine_events import Operation

from workbench.replay import _engine
from workbench.replay.cell import Capacity
from workbench.replay.events import Traffic
from workbench.replay.search import Candidate, Outcome
from workbench.replay.search_worker import measure
from workbench.replay.subjects import Subject


def subject_of(operations: Sequence[Operation], device: str = "cuda:0") -> Subject:
    """The traffic of `operations` on `device`, as a trace's whose capacity is not known."""
    rows = [(_engine.OPS[op], *rest) for op, *rest in operations]
    op, number, size, stream = np.array(rows, dtype=np.int64).reshape(-1, 4).T
    codes = op.astype(np.uint8)
    slot, slot_count = _engine.assign_slots(codes, np.ascontiguousarray(number))
    nothing = np.zeros(len(codes), np.int32)
    traffic = Traffic(
        op=codes,
        slot=slot,
        slot_count=slot_count,
        size=np.ascontiguousarray(size),
        stream=stream.astype(np.int32),
        thread=nothing,
        row=np.arange(len(codes)),
        ids=np.ascontiguousarray(number),
        time_ns=np.arange(len(codes)),
        step=nothing,
        phase=nothing - 1,
        scope=nothing - 1,
        phases=[],
        scopes=[],
        fingerprint="made up",
        peak_live_bytes=0,
    )
    unlimited = _engine.Replay(traffic.events(), "direct", backend="simulated").memory(1)
    traffic = replace(traffic, peak_live_bytes=unlimited["peaks"]["live_requested"]["bytes"])
    return Subject("made up", device, "device", traffic, Capacity(80 << 30, "default"), {})


class LocalPool:
    """Replays in this process; has the one method that searches call.

    Args:
        subject: whose traffic every candidate replays.
    """

    def __init__(self, subject: Subject) -> None:
        self._events = subject.traffic.events()
        self.candidates: list[Candidate] = []

    def run(
        self, candidates: Sequence[Candidate], done: Callable[[int], None] = lambda number: None
    ) -> list[Outcome]:
        """An outcome for each."""
        self.candidates += candidates
        return [self.one(candidate) for candidate in candidates]

    def one(self, candidate: Candidate) -> Outcome:
        """What comes of `candidate`."""
        task = candidate.task()
        del task["traffic"]
        return Outcome(**measure(self._events, task))
