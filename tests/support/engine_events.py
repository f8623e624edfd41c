"""Operations → what the engine replays."""

from __future__ import annotations

import csv
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from workbench.replay import _engine

Operation = tuple[str, int, int, int]
"""(op, id, size, stream); the golden traces' names of synchronize are understood too."""

_GOLDEN_NAMES = {"stream_done": "synchronize", "sync": "synchronize"}


def make_events(operations: Iterable[Operation], thread: int = 0) -> _engine.Events:
    """Events of `operations`, all on one thread."""
    rows = [(_engine.OPS[_GOLDEN_NAMES.get(op, op)], *rest) for op, *rest in operations]
    op, number, size, stream = np.array(rows, dtype=np.int64).reshape(-1, 4).T
    codes = op.astype(np.uint8)
    slot, slot_count = _engine.assign_slots(codes, np.ascontiguousarray(number))
    return _engine.Events(
        codes,
        slot,
        np.ascontiguousarray(size),
        stream.astype(np.int32),
        np.full(len(codes), thread, dtype=np.int32),
        slot_count,
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
