"""How low planners come, how long a million allocations take, and what departing from a plan costs.

    python benchmarks/plans.py [--quick]

Three tables: ratios of height to lower bound on the instances in tests/data/plans; seconds for a
million allocations (synthetic_trace.py, seeds 21 and 22; the training steps of an instance one
after another); and plans made of the first steps of two examples, replayed on the later ones with
``rearm:step``. The examples need torch, and are recorded.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from replay_overhead import MILLION
from rich.console import Console
from rich.table import Table
from synthetic_trace import PATTERNS, Options

from workbench.common.units import format_bytes
from workbench.replay import _engine
from workbench.replay.events import LANE_COLUMNS, Traffic, load_trace

ROOT = Path(__file__).parents[1]
DATA = ROOT / "tests" / "data" / "plans"
PLANNERS = ("greedy", "first-fit-by-size", "skyline", "squeaky-wheel", "best")
SEEDS = {"random": 21, "train": 22}
EXAMPLES = ("variable_length", "transformer_lm")
# Plans of these steps, counted on those that are in none of them.
STEPS = ("1:2", "3:4", "1:4")
FIRST_COUNTED = 4
LAST = 20
Buffers = tuple[np.ndarray, np.ndarray, np.ndarray]  # lower, upper, size; (n,) int64


def read(path: Path) -> Buffers:
    """An instance; recorded sizes rounded up to 64."""
    table = np.genfromtxt(path, delimiter=",", names=True, dtype=None, encoding="utf-8")
    lower, upper, size = (table[name].astype(np.int64) for name in ("lower", "upper", "size"))
    return lower, upper, (size + 63) // 64 * 64


def peak(buffers: Buffers) -> int:
    """Bytes alive at once at most."""
    lower, upper, size = buffers
    change = np.concatenate([size, -size])
    order = np.lexsort([change, np.concatenate([lower, upper])])
    return int(np.cumsum(change[order]).max(initial=0))


def planned(planner: str, buffers: Buffers) -> tuple[int, float]:
    """Height in bytes and seconds."""
    started = time.perf_counter()
    offsets = _engine.plan_buffers(*buffers, planner, 120.0)
    seconds = time.perf_counter() - started
    assert offsets is not None
    return int((offsets + buffers[2]).max()), seconds


def ratios(quick: bool) -> Table:
    """Each instance by each planner."""
    table = Table("instance", "buffers", *PLANNERS, title="height / lower bound (ms)")
    files = sorted(DATA.glob("minimalloc/*.csv")) + sorted(DATA.glob("*.csv"))
    for path in files[::4] if quick else files:
        buffers = read(path)
        least = peak(buffers)
        cells = []
        for planner in PLANNERS:
            height, seconds = planned(planner, buffers)
            cells.append(f"{height / least:.4f} ({1e3 * seconds:.1f})")
        table.add_row(path.stem, f"{len(buffers[0]):,}", *cells)
    return table


def millions(quick: bool) -> Iterator[tuple[str, Buffers]]:
    """Instances of about a million buffers."""
    count = MILLION // 20 if quick else MILLION
    for pattern, seed in SEEDS.items():
        lower: list[int] = []
        size: list[int] = []
        upper: dict[int, int] = {}
        numbers: dict[int, int] = {}
        for operation in PATTERNS[pattern](Options(ops=2 * count, seed=seed)):
            if operation.op == "alloc":
                numbers[operation.id] = len(lower)
                lower.append(len(lower))
                size.append((operation.size + 63) // 64 * 64)
            elif operation.op == "free":
                upper[numbers[operation.id]] = len(lower)
        managed = np.array(sorted(upper), dtype=np.int64)
        ends = np.array([upper[place] for place in managed.tolist()], dtype=np.int64)
        yield f"synthetic {pattern}", (managed, ends, np.array(size, dtype=np.int64)[managed])
    lower_, upper_, size_ = read(DATA / "torch_gptdyn_steady8.csv")
    times = count // len(lower_) + 1
    shift = np.repeat(np.arange(times) * int(upper_.max()), len(lower_))
    yield (
        f"torch_gptdyn_steady8, {times} times",
        (np.tile(lower_, times) + shift, np.tile(upper_, times) + shift, np.tile(size_, times)),
    )


def speed(quick: bool) -> Table:
    """A million buffers by each planner."""
    table = Table("traffic", "buffers", *PLANNERS, title="seconds (height / lower bound)")
    for name, buffers in millions(quick):
        least = peak(buffers)
        cells = []
        for planner in PLANNERS:
            height, seconds = planned(planner, buffers)
            cells.append(f"{seconds:.2f} ({height / least:.4f})")
        table.add_row(name, f"{len(buffers[0]):,}", *cells)
    return table


def record(example: str, folder: Path) -> Traffic:
    """The CPU traffic of an example."""
    path = folder / f"{example}.parquet"
    command = [sys.executable, "-P", "-m", "workbench", "record", "-o", str(path)]
    subprocess.run(
        [*command, str(ROOT / "examples" / f"{example}.py")], check=True, capture_output=True
    )
    return load_trace(str(path))[0].traffic("cpu")


def mismatches(folder: Path) -> Table:
    """Plans of the first steps, run on all and counted from the fourth on."""
    table = Table(
        *("example", "plan", "height", "served as planned", "mismatches", "fell back"),
        *("bytes that fell back", "peak reserved", "peak live"),
        title=f"plans of some steps on steps {FIRST_COUNTED} to {LAST}, rearm:step",
    )
    for example in EXAMPLES:
        traffic = record(example, folder)
        # What comes before is as planned, or not planned: the difference is what counts.
        early = int(np.searchsorted(traffic.step, FIRST_COUNTED))
        for steps in STEPS:
            settings = f"steps:{steps},rearm:step,on_mismatch:fallback"
            plan = _engine.Replay(traffic.events(), "plan", settings, backend="simulated").plan
            assert plan is not None
            whole = run(traffic, len(traffic.op), settings, plan)
            before = run(traffic, early, settings, plan)
            served = {
                name: whole["plan"][name] - before["plan"][name]
                for name in ("planned", "mismatches", "fallback", "fallback_bytes", "unmanaged")
            }
            allocations = served["planned"] + served["fallback"] + served["unmanaged"]
            table.add_row(
                example,
                f"step {steps[0]}" if steps in ("1:2", "3:4") else "steps 1 to 3",
                format_bytes(plan.height),
                f"{served['planned']:,} of {allocations:,}",
                f"{served['mismatches']:,}",
                f"{served['fallback']:,}",
                format_bytes(served["fallback_bytes"]),
                *(
                    format_bytes(int(whole["timeline"][name][early:].max()))
                    for name in ("reserved", "live_requested")
                ),
            )
    return table


def run(traffic: Traffic, count: int, settings: str, plan: _engine.Plan) -> Any:
    """The memory pass of the first `count` events."""
    columns = {
        name: column if name in LANE_COLUMNS else column[:count]
        for name, column in traffic.engine_columns().items()
    }
    events = _engine.Events(**columns, slot_count=traffic.slot_count)
    return _engine.Replay(events, "plan", settings, backend="simulated", plan=plan).memory(
        full=True
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer and smaller instances")
    quick = parser.parse_args().quick
    console = Console(width=160)
    console.print(ratios(quick))
    console.print(speed(quick))
    with tempfile.TemporaryDirectory() as folder:
        console.print(mismatches(Path(folder)))


if __name__ == "__main__":
    main()
