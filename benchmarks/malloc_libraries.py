"""jemalloc, mimalloc, tcmalloc and the C library on the CPU traces of the three examples.

    python benchmarks/malloc_libraries.py [--steps N] [--repeat N] [--traces FOLDER]

Records the examples into FOLDER, unless their traces are there, and replays them against every
library that the system has; prints one table, in Markdown. Blocks are 64-byte aligned, as PyTorch
asks for them. Resident growth is by how much the process grew in a pass that uses every block; the
times are of passes that use none.
"""

from __future__ import annotations

import argparse
import platform
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from workbench.common.units import format_bytes, format_duration
from workbench.replay.job import Options
from workbench.replay.machine import describe_machine
from workbench.replay.processes import worker_environment
from workbench.replay.results import CellResult
from workbench.replay.runner import replay_traces

EXAMPLES = Path(__file__).parents[1] / "examples"
NAMES = ("transformer_lm", "conv_net", "variable_length")
# File, the name people know, and what Debian and Ubuntu call the package.
LIBRARIES = (
    ("libc.so.6", "glibc", "libc6"),
    ("libjemalloc.so.2", "jemalloc", "libjemalloc2"),
    ("libmimalloc.so.2", "mimalloc", "libmimalloc2.0"),
    ("libtcmalloc_minimal.so.4", "tcmalloc", "libtcmalloc-minimal4"),
)


def is_there(library: str) -> bool:
    """Whether the system has it; looked up by a process of its own, for it takes over malloc."""
    code = f"import ctypes; ctypes.CDLL({library!r})"
    done = subprocess.run(
        [sys.executable, "-c", code], env=worker_environment(), capture_output=True, check=False
    )
    return done.returncode == 0


def record(folder: Path, steps: int) -> list[Path]:
    """The traces of the examples in `folder`, recorded where they are missing."""
    folder.mkdir(parents=True, exist_ok=True)
    traces = []
    for name in NAMES:
        trace = folder / f"{name}.parquet"
        if not trace.exists():
            program = [str(EXAMPLES / f"{name}.py"), "--steps", str(steps)]
            command = [
                sys.executable,
                "-P",
                "-m",
                "workbench",
                "record",
                "-o",
                str(trace),
                *program,
            ]
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        traces.append(trace)
    return traces


def versions() -> str:
    """Of the libraries' packages; of the C library alone where the system is not Debian's."""
    packages = [package for _, _, package in LIBRARIES]
    command = ["dpkg-query", "--show", "--showformat=${Package} ${Version}\n", *packages]
    try:
        told = subprocess.run(command, capture_output=True, text=True, check=False).stdout
    except FileNotFoundError:
        told = f"glibc {platform.libc_ver()[1]}"
    return ", ".join(told.strip().split("\n"))


def median(result: CellResult, kind: str, name: str) -> str:
    """Of a steady call's latency."""
    states = (result.info["latency"] or {}).get("states", {})
    interval = states.get("steady", {}).get(kind, {}).get(name)
    return "-" if interval is None else format_duration(interval["median"])


def row(result: CellResult, name: str) -> list[str]:
    info: dict[str, Any] = result.info
    memory = info["memory"] or {}
    grown = memory.get("rss_growth_bytes")
    live = info["trace"]["peak_live_bytes"]
    steady = info["throughput"].get("steady", {}).get("ns_per_event", {})
    spread = (
        f"{steady['median']:.1f} ({steady['low']:.1f}-{steady['high']:.1f})"
        if steady.get("low") is not None
        else "-"
    )
    return [
        Path(info["trace"]["path"]).stem,
        name,
        format_bytes(live),
        "-" if grown is None else f"{format_bytes(grown)} ({grown / live:.2f})",
        spread,
        median(result, "alloc", "p50_ns"),
        median(result, "alloc", "p99_ns"),
        median(result, "free", "p50_ns"),
        info["outcome"]["status"].replace("_", " "),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n", 1)[0])
    parser.add_argument("--steps", type=int, default=20, help="of each example")
    parser.add_argument("--repeat", type=int, default=5, help="timed processes for each cell")
    parser.add_argument("--traces", type=Path, help="where the traces are, or will be")
    arguments = parser.parse_args()
    there = [library for library in LIBRARIES if is_there(library[0])]
    with tempfile.TemporaryDirectory() as scratch:
        folder = arguments.traces or Path(scratch)
        traces = record(folder, arguments.steps)
        session = replay_traces(
            [str(trace) for trace in traces],
            ["direct", "cpu-caching", *(f"pluggable:{file},abi:malloc" for file, _, _ in there)],
            Path(scratch) / "results",
            Options(repeat=arguments.repeat, device="cpu"),
        )
        names = {file: name for file, name, _ in there}
        order = ["direct", "cpu-caching", *names.values()]
        rows = []
        for result in session.results:
            allocator = result.info["allocator"]
            name = names.get(allocator["settings"].get("library"), allocator["name"])
            rows.append(row(result, name))
        rows.sort(key=lambda one: (NAMES.index(one[0]), order.index(one[1])))
        heads = ["trace", "allocator", "peak live", "resident growth (over live)", "ns per event"]
        heads += ["alloc p50", "alloc p99", "free p50", "outcome"]
        for line in (heads, ["---"] * len(heads), *rows):
            print(f"| {' | '.join(line)} |")
        events = {
            Path(result.info["trace"]["path"]).stem: result.info["trace"]["events"]
            for result in session.results
        }
    print(f"\nEvents: {', '.join(f'{name} {count:,}' for name, count in events.items())}.")
    machine = describe_machine()
    print(f"Machine: {machine['cpu']}, {machine['cores']} cores, {machine['kernel']}.")
    print(f"Libraries: {versions()}.")
    for file, name, package in LIBRARIES:
        if (file, name, package) not in there:
            print(f"Not here: {name}; install {package} (apt-get install {package}).")
    for error in session.errors:
        print(error, file=sys.stderr)


if __name__ == "__main__":
    main()
