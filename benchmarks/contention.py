"""What several threads cost each allocator: 1, 2, 4 and 8 threads that replay the same traffic.

    python benchmarks/contention.py run.parquet

Each thread replays the same events of the recording, on blocks of its own, so that threads meet in
the allocator and nowhere else. CPU allocators run on the host, where their calls of the system are
real; those of a device on the simulated one, where driver calls take no time. Steady state. The
machine's other work makes passes slower, never faster: times are of the fastest pass of many and of
the median one; waits are of the median of three timed passes.
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
from workbench.replay.events import Array, Traffic, load_trace
from workbench.replay.machine import usable_cores

THREADS = (1, 2, 4, 8)
CAPACITY = 80 << 30
PASS_NS = 2e7  # shorter, and one thread has ended before the next begins
MOST_TIMES = 100


@dataclass(frozen=True)
class Program:
    """What each thread does, over and over: events whose blocks are all freed at the end."""

    op: Array
    ids: Array
    size: Array
    stream: Array

    @staticmethod
    def of(traffic: Traffic, events: int) -> Program:
        """The first `events` of `traffic`, and the frees that are missing."""
        op, ids = traffic.op[:events], traffic.ids[:events]
        made = np.isin(op, [_engine.OPS["alloc"], _engine.OPS["live"]])
        left = np.setdiff1d(ids[made], ids[op == _engine.OPS["free"]])

        def and_frees(column: Array, value: object) -> Array:
            return np.concatenate([column[:events], np.full(len(left), value, column.dtype)])

        return Program(
            and_frees(op, _engine.OPS["free"]),
            np.concatenate([ids, left]),
            and_frees(traffic.size, 0),
            and_frees(traffic.stream, 0),
        )

    def in_threads(self, threads: int, times: int) -> _engine.Events:
        """The same `times` times over in each of `threads`, with ids of their own."""
        turns = np.repeat(np.arange(times, dtype=np.int64), len(self.op))
        ids = np.tile(self.ids, times) + turns * (int(self.ids.max()) + 1)
        thread = np.tile(np.arange(threads, dtype=np.int32), len(ids))

        def all_of(column: Array) -> Array:
            return np.repeat(np.tile(column, times), threads)

        codes = all_of(self.op)
        slot, slots = _engine.assign_slots(codes, np.repeat(ids, threads) * threads + thread)
        return _engine.Events(codes, slot, all_of(self.size), all_of(self.stream), thread, slots)


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


def replay_of(subject: Subject, events: _engine.Events) -> _engine.Replay:
    return _engine.Replay(
        events,
        subject.allocator,
        subject.settings,
        backend=subject.backend,
        capacity=CAPACITY,
        order="handoff",
    )


def times_of(subject: Subject, program: Program) -> int:
    """How often one thread repeats `program` in a pass of about `PASS_NS`."""
    once = min(replay_of(subject, program.in_threads(1, 1)).throughput("steady", 3)["ns"])
    return max(1, min(MOST_TIMES, round(PASS_NS / once)))


def measure(subject: Subject, events: _engine.Events, threads: int, passes: int) -> list[str]:
    """Nanoseconds per event of each thread, calls that waited, their time in all and each."""
    replay = replay_of(subject, events)
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
        waits.append((np.count_nonzero(waited), spent, np.count_nonzero(timed["ticks"])))
    count, spent, calls = sorted(waits)[1]
    return [
        f"{min(throughput['ns']) / each:,.0f}",
        f"{float(np.median(throughput['ns'])) / each:,.0f}",
        f"{count / calls:.3%}",
        format_duration(spent),
        format_duration(spent / count) if count else "-",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n", 1)[0])
    parser.add_argument("trace", type=Path, help="a recording")
    parser.add_argument("--events", type=int, default=1_000, help="of each thread")
    parser.add_argument("--passes", type=int, default=5)
    parser.add_argument("--only", nargs="*", help="names of allocators; all where left out")
    arguments = parser.parse_args()

    loaded = load_trace(str(arguments.trace))[0]
    by_device = loaded.bytes_by_device
    traffic = loaded.traffic(max(by_device, key=lambda device: by_device[device]))
    events = min(arguments.events, len(traffic.op))
    table = Table(
        title=f"{arguments.trace.name}, the first {events:,} events, {usable_cores()} cores",
        title_justify="left",
    )
    for column in ("allocator", "backend"):
        table.add_column(column)
    for column in ("threads", "ns per event and thread", "median", "waited", "in all", "each"):
        table.add_column(column, justify="right")
    program = Program.of(traffic, events)
    for subject in subjects():
        if arguments.only is not None and subject.label not in arguments.only:
            continue
        print(f"{subject.label} ...", file=sys.stderr, flush=True)
        times = times_of(subject, program)
        for threads in THREADS:
            first = threads == THREADS[0]
            table.add_row(
                *((subject.label, subject.backend) if first else ("", "")),
                str(threads),
                *measure(subject, program.in_threads(threads, times), threads, arguments.passes),
            )
    Console(width=110).print(table)


if __name__ == "__main__":
    main()
