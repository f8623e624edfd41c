"""Operations → what the engine replays."""

from __future__ import annotations

import csv
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from workbench.replay import _engine
from workbench.replay.lanes import Lanes

Operation = tuple[str, int, int, int]
"""(op, id, size, stream); the golden traces' names of synchronize are understood too.

The stream of an allocation in private pool n is its stream and n times `LANE`. Operations on
private pools have the pool's number in place of the id, those on CUDA events the event's.
"""

LANE = 1000
NUMBERED = (
    *("pool_begin", "pool_end", "pool_release"),
    *("event_record", "event_wait", "set_fraction"),
)

_GOLDEN_NAMES = {"stream_done": "synchronize", "sync": "synchronize"}


def make_events(operations: Iterable[Operation], thread: int = 0) -> _engine.Events:
    """Events of `operations`, all on one thread."""
    rows = [(_engine.OPS[_GOLDEN_NAMES.get(op, op)], *rest) for op, *rest in operations]
    op, number, size, stream = np.array(rows, dtype=np.int64).reshape(-1, 4).T
    codes = op.astype(np.uint8)
    numbered = np.isin(op, [_engine.OPS[name] for name in NUMBERED])
    lanes = Lanes([stream[stream >= 0] % LANE], [stream[stream >= 0] // LANE])
    made = op == _engine.OPS["alloc"]
    if len(lanes.pool):
        stream = np.where(made, lanes.of(stream % LANE, stream // LANE), stream)
    slot, slot_count = _engine.assign_slots(codes, np.ascontiguousarray(number))
    return _engine.Events(
        codes,
        slot,
        np.ascontiguousarray(size),
        stream.astype(np.int32),
        np.full(len(codes), thread, dtype=np.int32),
        slot_count,
        value=np.where(numbered, number, 0) if numbered.any() else None,
        lane_stream=lanes.stream,
        lane_pool=lanes.pool,
    )


def golden_operation(row: dict[str, str]) -> Operation:
    """A line of a CSV file in tests/data/caching_golden/traces."""
    everywhere = -1 if row["op"] == "sync" else 0
    return (
        row["op"],
        int(row["id"] or -1),
        int(row["size"] or 0),
        int(row["stream"] or everywhere),
    )


def read_golden(path: Path) -> _engine.Events:
    """Events of a CSV file in tests/data/caching_golden/traces."""
    with path.open(encoding="utf-8", newline="") as file:
        return make_events(map(golden_operation, csv.DictReader(file)))
