"""What `caching` costs per call, and how that grows with the number of live blocks.

    python benchmarks/caching_speed.py [--passes 15]

Two million-event traces (synthetic_trace.py, seeds 21 and 22) on 80 GiB, in throughput passes from
a fresh allocator, all statistics kept. Beside each time stands what PyTorch's own binary took on
the same trace over a device that costs nothing, measured once on a machine of this kind; goals:
80 ns on random, 60 ns on training. Growth: blocks live, instructions and time per event, and the
time of a random pointer chase over as much memory as their descriptions take.

Builds a driver with the C++ compiler; instructions need valgrind and are left out without it.
"""

from __future__ import annotations

import argparse
import math
import os
import re
import shutil
import statistics
import subprocess
import tempfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from replay_overhead import MILLION, columns
from rich.console import Console
from rich.table import Table
from synthetic_trace import PATTERNS, Operation, Options

ENGINE = Path(__file__).parents[1] / "replay" / "engine"
SETTINGS = {
    "default": "",
    "expandable": "expandable_segments:True",
    "split limit": "max_split_size_mb:128",
    "divisions": "roundup_power2_divisions:4",
}
# Nanoseconds per event of PyTorch's binary (torch 2.13.0).
ORIGINAL = {
    ("random", "default"): 386,
    ("random", "expandable"): 436,
    ("random", "split limit"): 396,
    ("random", "divisions"): 378,
    ("train", "default"): 298,
    ("train", "expandable"): 226,
}
GOAL = {"random": 80, "train": 60}
SEEDS = {"random": 21, "train": 22}


def build(folder: Path) -> Path:
    """The driver, with the engine in it."""
    driver = folder / "caching_driver"
    parts = [folder for folder in ENGINE.iterdir() if folder.is_dir() and folder.name != "cuda"]
    sources = [str(path) for part in parts for path in part.glob("*.cpp")]
    compiler = os.environ.get("CXX", "c++")
    source = str(Path(__file__).with_name("caching_driver.cpp"))
    subprocess.run(
        [compiler, "-std=c++20", "-O3", "-DNDEBUG", f"-I{ENGINE}", source, *sources, "-o", driver],
        check=True,
    )
    return driver


def save(operations: Iterable[Operation], path: Path) -> int:
    """Write a trace as the driver reads it; the number of its events."""
    found, slots = columns(operations)
    events = len(found["op"])
    with path.open("wb") as file:
        for column in (np.array([events, slots]), *found.values()):
            file.write(column.tobytes())
    return events


def numbers(driver: Path, *arguments: object) -> list[float]:
    output = subprocess.run(
        [driver, *map(str, arguments)], check=True, capture_output=True, text=True
    ).stdout
    return [float(word) for word in output.split()]


def instructions(driver: Path, *arguments: object) -> int:
    """Instructions of a whole run, counted by callgrind."""
    with tempfile.TemporaryDirectory() as folder:
        tool = ["valgrind", "--tool=callgrind", f"--callgrind-out-file={folder}/out"]
        done = subprocess.run(
            [*tool, str(driver), *map(str, arguments)],
            check=True,
            capture_output=True,
            text=True,
        )
    found = re.search(r"Collected : (\d+)", done.stderr)
    assert found, done.stderr
    return int(found[1])


def traces_table(driver: Path, folder: Path, passes: int, counts: bool) -> Table:
    table = Table("trace", "settings", title="A million events, 80 GiB", title_justify="left")
    for title in ("ns per event", "spread", "goal", "PyTorch's binary", "times faster"):
        table.add_column(title, justify="right")
    if counts:
        table.add_column("instructions per event", justify="right")
    for name, seed in SEEDS.items():
        path = folder / name
        events = save(PATTERNS[name](Options(ops=MILLION, seed=seed)), path)
        for label, settings in SETTINGS.items():
            times = [ns / events for ns in numbers(driver, "trace", path, settings, passes)]
            median = statistics.median(times)
            original = ORIGINAL.get((name, label))
            row = [name, label, f"{median:.1f}", f"{min(times):.1f} to {max(times):.1f}"]
            row += [str(GOAL[name]), str(original or "-")]
            row += [f"{original / median:.1f}" if original else "-"]
            if counts:
                whole = instructions(driver, "trace", path, settings, 2)
                one = instructions(driver, "trace", path, settings, 1)
                row.append(f"{(whole - one) / events:.0f}")
            table.add_row(*row)
    return table


def growth_table(driver: Path, counts: bool) -> Table:
    table = Table("live blocks", title="Growth with live blocks", title_justify="left")
    for title in ("ns per event", "chase, ns per hop", "hops per event"):
        table.add_column(title, justify="right")
    if counts:
        table.add_column("instructions per event", justify="right")
        table.add_column("per log2(live)", justify="right")
    for live in (1_000, 10_000, 100_000, 1_000_000):
        runs = [numbers(driver, "growth", live, MILLION) for _ in range(5)]
        event = statistics.median(run[0] for run in runs)
        hop = statistics.median(run[1] for run in runs)
        row = [f"{live:,}", f"{event:.1f}", f"{hop:.1f}", f"{event / hop:.1f}"]
        if counts:
            events = 400_000
            with_them = instructions(driver, "growth", live, 2 * events)
            per_event = (with_them - instructions(driver, "growth", live, events)) / events
            row += [f"{per_event:.0f}", f"{per_event / math.log2(live):.1f}"]
        table.add_row(*row)
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n", 1)[0])
    parser.add_argument("--passes", type=int, default=15, help="over each trace")
    arguments = parser.parse_args()
    counts = shutil.which("valgrind") is not None
    console = Console(width=120)
    if not counts:
        console.print("valgrind is not installed: instructions are not counted")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        with console.status("building the driver"):
            driver = build(folder)
        with console.status("two traces under four settings"):
            traces = traces_table(driver, folder, arguments.passes, counts)
        console.print(traces)
        with console.status("growth"):
            growth = growth_table(driver, counts)
        console.print(growth)


if __name__ == "__main__":
    main()
