"""What several threads cost each allocator: 1, 2, 4 and 8 threads that replay the same traffic.

    python benchmarks/contention.py run.parquet

Each thread replays the same events of the recording, on blocks of its own, so that threads meet in
the allocator and nowhere else. CPU allocators run on the host, where their calls of the system are
real; those of a device on the simulated one, where driver calls take no time. Steady state. The
machine's other work makes passes slower, never faster: times are of the fastest pass of many, waits
of the timed pass with fewest.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from workbench.common.errors import WorkbenchError
from workbench.common.units import format_duration
from workbench.replay import _engine
from workbench.replay.allocators import known_allocators, runs_as
from workbench.replay.cell import AllocatorSpec
from workbench.replay.events import Traffic, load_trace
from workbench.replay.machine import usable_cores

THREADS = (1, 2, 4, 8)
CAPACITY = 80 << 30


def in_threads(traffic: Traffic, events: int, threads: int) -> _engine.Events:
    """The first `events` of `traffic`, once for each of `threads`, with ids of their own."""
    op, size, stream = (column[:events] for column in (traffic.op, traffic.size, traffic.stream))
    thread = np.tile(np.arange(threads, dtype=np.int32), len(op))
    ids = np.repeat(traffic.ids[:events], threads) * threads + thread
    codes = np.repeat(op, threads)
    slot, slots = _engine.assign_slots(codes, ids)
    return _engine.Events(
        codes, slot, np.repeat(size, threads), np.repeat(stream, threads), thread, slots
    )


@dataclass(frozen=True)
class Subject:
    label: str
    allocator: str
    settings: str
    backend: str


def subjects() -> Iterator[Subject]:
    """Everything that can run here by itself and takes calls of several threads."""
    for name, info in known_allocators().items():
        if not info["available"] or info["needs_library"] or not info.get("several_threads", True):
            continue
        backend = "simulated" if info["kind"] == "device" else "host"
        try:
            allocator, settings = runs_as(AllocatorSpec(name))
        except WorkbenchError as error:
            print(f"{name} is left out: {error}")
            continue
        yield Subject(name, allocator, settings, backend)


def measure(subject: Subject, events: _engine.Events, threads: int, passes: int) -> list[str]:
    """Nanoseconds per event of each thread, calls that waited, their time."""
    replay = _engine.Replay(
        events,
        subject.allocator,
        subject.settings,
        backend=subject.backend,
        capacity=CAPACITY,
        order="handoff",
    )
    assert replay.threads == threads
    each = len(events) / threads
    throughput = replay.throughput("steady", passes)
    assert throughput["outcome"] == "ok", subject
    waits = []
    for _ in range(3):
        timed = replay.timed("steady", digest=False)
        waited = timed["cause"] == timed["causes"].index("lock wait")
        waited &= timed["ticks"] > 0
        spent = float(timed["ticks"][waited].sum(dtype=np.float64)) * timed["ns_per_tick"]
        waits.append((np.count_nonzero(waited) / np.count_nonzero(timed["ticks"]), spent))
    share, spent = min(waits)
    return [f"{min(throughput['ns']) / each:.0f}", f"{share:.2%}", format_duration(spent)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n", 1)[0])
    parser.add_argument("trace", type=Path, help="a recording")
    parser.add_argument("--events", type=int, default=2_000, help="of each thread")
    parser.add_argument("--passes", type=int, default=9)
    arguments = parser.parse_args()

    loaded = load_trace(str(arguments.trace))[0]
    by_device = loaded.bytes_by_device
    traffic = loaded.traffic(max(by_device, key=lambda device: by_device[device]))
    events = min(arguments.events, len(traffic.op))
    table = Table(
        title=f"{arguments.trace.name}, {events:,} events a thread, {usable_cores()} cores, steady",
        title_justify="left",
    )
    for column in ("allocator", "backend", "threads"):
        table.add_column(column)
    for column in ("ns per event and thread", "calls that waited", "their time in all"):
        table.add_column(column, justify="right")
    merged = {threads: in_threads(traffic, events, threads) for threads in THREADS}
    for subject in subjects():
        print(f"{subject.label} ...", file=sys.stderr, flush=True)
        for threads in THREADS:
            first = threads == THREADS[0]
            table.add_row(
                *((subject.label, subject.backend) if first else ("", "")),
                str(threads),
                *measure(subject, merged[threads], threads, arguments.passes),
            )
    Console(width=110).print(table)


if __name__ == "__main__":
    main()
