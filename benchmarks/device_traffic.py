"""Made-up traffic of a device's allocator on several streams, for measurements on a GPU."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from workbench.recorders.trace import TraceMetadata, TraceWriter
from workbench.replay import _engine


@dataclass(frozen=True)
class DeviceTraffic:
    """Columns of a trace's events; all have the same length."""

    op: list[str] | npt.NDArray[np.str_]
    id: npt.NDArray[np.int64]
    size: npt.NDArray[np.int64]
    stream: npt.NDArray[np.int32]

    def events(self) -> _engine.Events:
        """What the engine replays."""
        names, places = np.unique(self.op, return_inverse=True)
        op = np.array([_engine.OPS[name] for name in names], dtype=np.uint8)[places]
        slot, slot_count = _engine.assign_slots(op, self.id)
        thread = np.zeros(len(op), dtype=np.int32)
        return _engine.Events(op, slot, self.size, self.stream, thread, slot_count)

    def write(self, path: Path) -> Path:
        """The same as a trace file."""
        count = len(self.op)
        same = {"device": "cuda:0", "thread": 0, "pool": 0, "step": 0, "phase": "forward"}
        with TraceWriter(path, TraceMetadata({"program": ["device_traffic.py"]})) as writer:
            writer.write(
                {
                    "time_ns": np.arange(count, dtype=np.int64) * 1000,
                    "event": list(self.op),
                    "id": self.id,
                    "size": self.size,
                    "stream": self.stream,
                    **{name: [value] * count for name, value in same.items()},
                }
            )
        return path


def make_traffic(
    events: int, *, streams: int = 4, live: int = 2000, seed: int = 5
) -> DeviceTraffic:
    """About `events` events.

    Each block lives for up to 2 x `live` further allocations; every fifth is used by another stream
    before it is freed; the program waits for a stream every 100 allocations. Sizes are 512 bytes to
    1 MiB, one in a hundred up to 16 MiB.

    Args:
        events: how many.
        streams: on which blocks are made.
        live: blocks at once, on average.
        seed: of the random numbers.
    """
    random = np.random.default_rng(seed)
    count = int(events / 2.2)
    number = np.arange(count, dtype=np.int64)
    size = np.exp2(random.uniform(9, 16, count)).astype(np.int64)
    large = random.random(count) < 0.01
    size[large] = np.exp2(random.uniform(16, 24, int(large.sum()))).astype(np.int64)
    stream = random.integers(0, streams, count).astype(np.int32)
    freed = number + random.integers(1, 2 * live, count)
    used = random.random(count) < 0.2
    waits = np.arange(0, count, 100, dtype=np.int64)
    # Places in time; several events that share one keep this order.
    parts = [
        ("alloc", number, number, size, stream),
        ("record_stream", number[used], freed[used], size[used] * 0, (stream[used] + 1) % streams),
        ("free", number, freed, size, stream),
        ("synchronize", waits * 0 - 1, waits, waits * 0, (waits // 100 % streams)),
    ]
    place = np.concatenate([part[2] for part in parts])
    order = np.argsort(place, kind="stable")
    return DeviceTraffic(
        np.concatenate([np.full(len(part[1]), part[0]) for part in parts])[order],
        np.concatenate([part[1] for part in parts])[order],
        np.concatenate([part[3] for part in parts])[order].astype(np.int64),
        np.concatenate([part[4] for part in parts])[order].astype(np.int32),
    )
