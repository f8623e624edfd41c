"""A PyTorch memory snapshot of any size, from a recorded or a synthetic trace.

    python benchmarks/make_snapshot.py --entries 1000000 -o million.pickle
    python benchmarks/make_snapshot.py run.parquet -o run.pickle

A replay against `caching` writes it. A trace that is too short for the entries wanted is repeated,
each time with new allocations; what was live at the end of a round is freed before the next.
"""

from __future__ import annotations

import argparse
import pickle
import time
from pathlib import Path
from typing import Any

import numpy as np
from synthetic_trace import PATTERNS, Options

from workbench.recorders.exporters import ReplaySource
from workbench.recorders.exporters.torch_snapshot import PROTOCOL, snapshot_of
from workbench.replay import _engine
from workbench.replay.events import LoadedTrace, load_trace
from workbench.replay.journal import replay_history

NAMES = {"stream_done": "synchronize", "sync": "synchronize"}
START = "2026-01-02T03:04:05+00:00"


def synthetic(count: int, pattern: str, seed: int) -> LoadedTrace:
    """About `count` operations of benchmarks/synthetic_trace.py as a trace."""
    operations = list(PATTERNS[pattern](Options(ops=count, seed=seed)))
    rows = len(operations)
    number = np.arange(rows)
    return LoadedTrace(
        path="synthetic.parquet",
        metadata={"start_wall_clock": START},
        columns={
            "time_ns": number * 10_000,
            "id": np.array([one.id for one in operations]),
            "size": np.array([one.size for one in operations]),
            "stream": np.array([one.stream for one in operations], dtype=np.int32),
            "pool": np.zeros(rows, dtype=np.int32),
            "thread": np.zeros(rows, dtype=np.int32),
            "step": (number // 10_000).astype(np.int32),
            "event": np.array(
                [_engine.OPS[NAMES.get(one.op, one.op)] for one in operations], dtype=np.uint8
            ),
            "device": np.zeros(rows, dtype=np.int32),
            "phase": (number // 3000 % 3).astype(np.int32),
            "scope": (np.array([one.id for one in operations]) % 200).astype(np.int32),
        },
        texts={
            "event": [],
            "device": ["cuda:0"],
            "phase": ["forward", "backward", "other"],
            "scope": [f"model.py:{number} layer_{number}" for number in range(200)],
        },
        rows=rows,
    )


def repeated(trace: LoadedTrace, rounds: int) -> LoadedTrace:
    """`trace` several times over, on its busiest device."""
    by_device = trace.bytes_by_device
    device = trace.texts["device"].index(max(by_device, key=lambda name: by_device[name]))
    part = {
        name: column[trace.columns["device"] == device] for name, column in trace.columns.items()
    }
    made = np.isin(part["event"], [_engine.OPS["alloc"], _engine.OPS["live"]])
    freed = part["event"] == _engine.OPS["free"]
    left = np.flatnonzero(made & ~np.isin(part["id"], part["id"][freed]))
    rest = {name: column[left] for name, column in part.items()}
    rest["event"] = np.full(len(left), _engine.OPS["free"], dtype=np.uint8)
    rest["time_ns"] = np.full(len(left), part["time_ns"][-1])
    whole = {name: np.concatenate([part[name], rest[name]]) for name in part}
    length = len(whole["id"])
    columns = {name: np.tile(column, rounds) for name, column in whole.items()}
    number = np.repeat(np.arange(rounds), length)
    columns["id"] = np.where(
        columns["id"] < 0, -1, columns["id"] + number * (int(whole["id"].max()) + 1)
    )
    columns["time_ns"] = columns["time_ns"] + number * (int(whole["time_ns"][-1]) + 1000)
    return LoadedTrace("repeated.parquet", trace.metadata, columns, trace.texts, rounds * length)


def snapshot_of_trace(trace: LoadedTrace, settings: str, capacity: int | None) -> dict[str, Any]:
    """The snapshot after the trace's last event."""
    by_device = trace.bytes_by_device
    device = max(by_device, key=lambda name: by_device[name])
    made = replay_history(trace, device, settings, capacity=capacity)
    return snapshot_of(ReplaySource(made.history, made.origins))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("trace", nargs="?", type=Path, help="a recorded trace")
    parser.add_argument("--entries", type=int, help="as many at least (default: the trace once)")
    parser.add_argument("--pattern", choices=sorted(PATTERNS), default="train")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--settings", default="", help="as in PYTORCH_ALLOC_CONF")
    parser.add_argument("--gib", type=float, help="memory of the device (default: unlimited)")
    parser.add_argument("--protocol", type=int, default=PROTOCOL, help="of the pickle")
    parser.add_argument("-o", "--output", type=Path, required=True)
    given = parser.parse_args()
    began = time.perf_counter()
    if given.trace is None:
        # An allocation makes one entry, a free two, and few operations make none.
        trace = synthetic((given.entries or 1_000_000) * 3 // 4, given.pattern, given.seed)
    else:
        (trace,) = load_trace(str(given.trace))
        if given.entries:
            # An allocation makes one entry at least, and its free two.
            allocations = int((trace.columns["event"] == _engine.OPS["alloc"]).sum())
            trace = repeated(trace, -(-given.entries // max(3 * allocations, 1)))
    capacity = None if given.gib is None else int(given.gib * 2**30)
    snapshot = snapshot_of_trace(trace, given.settings, capacity)
    with given.output.open("wb") as file:
        pickle.dump(snapshot, file, protocol=given.protocol)
    entries = max(map(len, snapshot["device_traces"]))
    reserved = sum(segment["total_size"] for segment in snapshot["segments"])
    print(
        f"{given.output}: {entries:,} entries, {len(snapshot['segments']):,} segments, "
        f"{reserved / 2**30:.1f} GiB reserved, {given.output.stat().st_size / 1e6:.0f} MB, "
        f"in {time.perf_counter() - began:.1f} s"
    )


if __name__ == "__main__":
    main()
