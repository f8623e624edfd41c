"""How long `wb tune` takes for 200 settings on a million events, everything included.

    python benchmarks/tune_speed.py

Goal: under 60 s on two cores, from the command to the answer. The traces are synthetic
(synthetic_trace.py, seeds 21 and 22), written as recordings of a GPU; the command runs on two cores
of this machine. Prints, for the slower one, how many times faster than the goal it was.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from replay_overhead import MILLION, NAMES
from rich.console import Console
from rich.table import Table
from synthetic_trace import PATTERNS, Operation, Options

from workbench.recorders.trace import TraceMetadata, TraceWriter

GOAL_SECONDS = 60
CORES = 2
SEEDS = {"random": 21, "train": 22}


def write_trace(operations: Iterable[Operation], path: Path) -> int:
    """A recording of `operations` on cuda:0, a microsecond apart; the number of its events.

    Ids are given anew, in order of allocation, as the trace format asks for.
    """
    ids: dict[int, int] = {}
    sizes: dict[int, int] = {}
    rows = []
    for op, number, size, stream in operations:
        if op == "alloc":
            ids[number] = len(ids)
            sizes[number] = size
        shown = sizes[number] if op in ("alloc", "free") else 0
        rows.append((NAMES.get(op, op), ids.get(number, -1), shown, stream))
    events, numbers, bytes_, streams = zip(*rows, strict=True)
    count = len(rows)
    columns: dict[str, Any] = {
        "time_ns": 1000 * np.arange(count),
        "event": list(events),
        "id": np.array(numbers),
        "size": np.array(bytes_),
        "device": ["cuda:0"] * count,
        "stream": np.array(streams, dtype=np.int32),
        "thread": np.zeros(count, np.int32),
        "pool": np.zeros(count, np.int32),
        "step": np.zeros(count, np.int32),
        "phase": ["other"] * count,
    }
    with TraceWriter(path, TraceMetadata({"program": ["synthetic_trace.py"]})) as writer:
        writer.write(columns)
    return count


def run(path: Path, trials: int) -> tuple[float, dict[str, Any]]:
    """Seconds of the command, and what it found."""
    cores = sorted(os.sched_getaffinity(0))[:CORES]
    started = time.monotonic()
    done = subprocess.run(
        [
            sys.executable,
            "-P",
            "-m",
            "workbench",
            "tune",
            str(path),
            "--trials",
            str(trials),
            "--json",
        ],
        check=True,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONSAFEPATH": "1"},
        preexec_fn=lambda: os.sched_setaffinity(0, cores),
    )
    return time.monotonic() - started, json.loads(done.stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n", 1)[0])
    parser.add_argument("--trials", type=int, default=200, help="settings to try")
    arguments = parser.parse_args()
    table = Table("trace", title=f"wb tune on {CORES} cores", title_justify="left")
    for title in ("events", "settings", "seconds", "gain"):
        table.add_column(title, justify="right")
    slowest = 0.0
    with tempfile.TemporaryDirectory() as folder:
        for name, seed in SEEDS.items():
            path = Path(folder) / f"{name}.parquet"
            events = write_trace(PATTERNS[name](Options(ops=MILLION, seed=seed)), path)
            seconds, found = run(path, arguments.trials)
            slowest = max(slowest, seconds)
            row = (name, f"{events:,}", f"{len(found['tried']):,}", f"{seconds:.1f}")
            table.add_row(*row, f"{found['gain'] or 0:.1%}")
    console = Console()
    console.print(table)
    console.print(f"{GOAL_SECONDS / slowest:.1f} times faster than the goal of {GOAL_SECONDS} s")


if __name__ == "__main__":
    main()
