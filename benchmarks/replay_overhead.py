"""What a replay costs apart from the allocator, and what `caching` costs.

    python benchmarks/replay_overhead.py                  # on a synthetic training trace
    python benchmarks/replay_overhead.py run.parquet      # on this recording

Goals: with an allocator that does nothing at most 3 ns per event in a throughput pass, and two
clock reads + 5 ns in a timed pass; `caching` under 390 ns per event on a million events, which is
what PyTorch's own binary takes on them.

The machine's other work makes passes slower, never faster: the fastest pass of many is what the
code costs here, and the median says how noisy the machine was.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table
from synthetic_trace import PATTERNS, Operation, Options

from workbench.replay import _engine

MILLION = 1_000_000
CAPACITY = 80 << 30
NAMES = {"stream_done": "synchronize", "sync": "synchronize"}


def columns(operations: Iterable[Operation]) -> tuple[dict[str, Any], int]:
    """A synthetic trace's op, slot, size and stream as the engine takes them; number of slots."""
    rows = [(_engine.OPS[NAMES.get(op, op)], *rest) for op, *rest in operations]
    op, number, size, stream = np.array(rows, dtype=np.int64).T
    codes = op.astype(np.uint8)
    slot, slots = _engine.assign_slots(codes, np.ascontiguousarray(number))
    size = np.ascontiguousarray(size)
    return {"op": codes, "slot": slot, "size": size, "stream": stream.astype(np.int32)}, slots


def synthetic(operations: Iterable[Operation]) -> _engine.Events:
    """The engine's events of a synthetic trace."""
    found, slots = columns(operations)
    thread = np.zeros(len(found["op"]), dtype=np.int32)
    return _engine.Events(**found, thread=thread, slot_count=slots)


def recorded(path: Path) -> _engine.Events:
    """The engine's events of a recording: of the device with most bytes."""
    from workbench.replay.events import load_trace

    trace = load_trace(str(path))[0]
    by_device = trace.bytes_by_device
    return trace.traffic(max(by_device, key=lambda device: by_device[device])).events()


def replay(events: _engine.Events, allocator: str) -> _engine.Replay:
    return _engine.Replay(
        events, allocator, backend="simulated", capacity=CAPACITY, after_oom="continue"
    )


def cells(per_event: list[float]) -> list[str]:
    return [f"{min(per_event):.2f}", f"{float(np.median(per_event)):.2f}"]


def harness_rows(events: _engine.Events, passes: int) -> Iterable[list[str]]:
    """Rows of the table for the allocator that does nothing."""
    idle = replay(events, "null")
    throughput = idle.throughput("steady", passes)
    yield ["throughput pass", *cells([ns / len(events) for ns in throughput["ns"]]), "3"]
    timed: list[Any] = [idle.timed("cold", digest=False) for _ in range(max(passes // 4, 3))]
    clock = min(one["clock_cost_ns"] for one in timed)
    per_event = [one["pass_ns"] / len(events) for one in timed]
    yield ["timed pass", *cells(per_event), f"{clock + 5:.1f} (clock {clock:.1f} + 5)"]


def caching_rows(events: _engine.Events, name: str) -> Iterable[list[str]]:
    """Rows of the table for `caching`."""
    for state in ("cold", "steady"):
        passes = replay(events, "caching").throughput(state, 7)["ns"]
        yield [f"{name}, {state}", *cells([ns / len(events) for ns in passes]), "390"]


def show(title: str, rows: Iterable[list[str]]) -> None:
    table = Table(title=title, title_justify="left")
    table.add_column("ns per event")
    for column in ("fastest", "median", "goal"):
        table.add_column(column, justify="right")
    for row in rows:
        table.add_row(*row)
    Console().print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n", 1)[0])
    parser.add_argument("trace", nargs="?", type=Path, help="a recording, for the harness's cost")
    arguments = parser.parse_args()

    training = synthetic(PATTERNS["train"](Options(ops=MILLION, seed=22)))
    events = recorded(arguments.trace) if arguments.trace else training
    name = arguments.trace.name if arguments.trace else "synthetic training"
    show(
        f"The harness: {name}, {len(events):,} events, allocator null",
        harness_rows(events, max(10, min(1000, 20 * MILLION // max(len(events), 1)))),
    )
    random = synthetic(PATTERNS["random"](Options(ops=MILLION, seed=21)))
    show(
        "`caching` on a million events, 80 GiB",
        [*caching_rows(random, "random"), *caching_rows(training, "training")],
    )


if __name__ == "__main__":
    main()
