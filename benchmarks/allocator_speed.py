"""Ours against PyTorch's own binaries: the same trace, the same process, nanoseconds per event.

    python benchmarks/allocator_speed.py [--rounds 41] [--models plan] [--quick]

Every reference that can run here beside the allocator of ours that it is the original of, on the
CPU traffic of the three examples and on synthetic traces, from a fresh allocator (cold) and with a
warm one (steady). In each round all of them pass through the trace once, in random order; shown are
medians over rounds with the middle half of them.

A reference is called through the engine's C interface and ours is not, so what the interface costs
is measured in the same rounds by a library that does nothing, and the loop around ours by an
allocator that does nothing. *net* is the time less these: the allocators alone. The ratio of ours
to the reference is taken round by round; its interval (95 %) is bootstrapped over rounds.

Both take memory in the same way: as PyTorch's CPU allocator does, untouched, where the original
asks the system by itself, else from the same simulated device.

Each pair runs in a process of its own: where the original crashes, the table says so.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from replay_overhead import columns
from rich.console import Console
from rich.table import Table
from synthetic_trace import PATTERNS, Operation, Options

from workbench.common.torch_build import build
from workbench.replay import _engine
from workbench.replay.allocators import runs_as
from workbench.replay.cell import AllocatorSpec
from workbench.replay.references import HEADER, Reference, references

ROOT = Path(__file__).parents[1]
EXAMPLES = ("conv_net", "transformer_lm", "variable_length")
STATES = ("cold", "steady")
# Settings under which ours does what the original does.
SAME_RULES = {"plan": "planner:greedy"}
SEEDS = 100
# A pass over a short trace is repeated until it has so many events.
LEAST_EVENTS = 200_000


def random_trace(quick: bool) -> Iterator[Operation]:
    """Tensors of all sizes on one stream."""
    ops = 10_000 if quick else 100_000
    return PATTERNS["random"](Options(ops=ops, seed=21, streams=1, live=1 << 30))


def surviving_trace(seed: int, count: int) -> Iterator[Operation]:
    """Few alive at once, of so many sizes that two free ranges are rarely of one size."""
    rng = random.Random(seed)
    live: list[int] = []
    for number in range(count):
        yield Operation("alloc", number, 64 * rng.randrange(1, 1 << 18))
        live.append(number)
        while len(live) > 8 or (live and rng.random() < 0.4):
            yield Operation("free", live.pop(rng.randrange(len(live))))
    for number in live:
        yield Operation("free", number)


def save_synthetic(operations: Iterator[Operation], path: Path) -> None:
    found, slot_count = columns(operations)
    thread = np.zeros(len(found["op"]), np.int32)
    np.savez(path, **found, thread=thread, slot_count=slot_count)


def save_example(name: str, steps: int, path: Path) -> None:
    """Record an example and keep its CPU traffic."""
    from workbench.replay.events import load_trace

    trace = path.with_suffix(".parquet")
    program = [str(ROOT / "examples" / f"{name}.py"), "--steps", str(steps)]
    command = [sys.executable, "-P", "-m", "workbench", "record", "-o", str(trace), *program]
    subprocess.run(command, check=True, capture_output=True)
    traffic = load_trace(str(trace))[0].traffic("cpu")
    names = ("op", "slot", "size", "stream", "thread")
    np.savez(
        path, **{name: getattr(traffic, name) for name in names}, slot_count=traffic.slot_count
    )


def load(path: Path) -> _engine.Events:
    with np.load(path) as file:
        found = {name: file[name] for name in file.files}
    return _engine.Events(**{**found, "slot_count": int(found["slot_count"])})


def candidates(events: _engine.Events, reference: Reference) -> dict[str, _engine.Replay]:
    """Ours, the reference, and for each what it costs to call an allocator that does nothing."""
    system = reference.takes_system_memory
    ours = "host-untouched" if system else "simulated"
    theirs = "host" if system else "simulated"
    source = Path(__file__).with_name("do_nothing.cpp")
    nothing = build("do_nothing", [source], headers=[HEADER], includes=[HEADER.parent])
    name, settings = runs_as(AllocatorSpec(reference.name))
    rules = SAME_RULES.get(reference.models, "")
    return {
        "ours": _engine.Replay(events, reference.models, rules, backend=ours),
        "reference": _engine.Replay(events, name, settings, backend=theirs),
        "loop": _engine.Replay(events, "null", backend=ours),
        "interface": _engine.Replay(
            events, "pluggable", f'library:"{nothing}",abi:workbench', backend=theirs
        ),
    }


def measure(path: Path, reference: Reference, rounds: int) -> dict[str, Any]:
    """Nanoseconds per event of each candidate, state and round."""
    events = load(path)
    replays = candidates(events, reference)
    repeat = -(-LEAST_EVENTS // len(events))
    order = random.Random(0)
    times: dict[str, dict[str, list[float]]] = {
        state: {name: [] for name in replays} for state in STATES
    }
    for _ in range(rounds):
        for state in STATES:
            for name in order.sample(list(replays), len(replays)):
                passes = replays[name].throughput(state, repeat)["ns"]
                times[state][name].append(float(np.median(passes)) / len(events))
    return times


def measured_apart(path: Path, reference: Reference, rounds: int) -> dict[str, Any] | None:
    """`measure` in a process of its own; None where that crashed."""
    task = [str(path), reference.name, str(rounds)]
    done = subprocess.run(
        [sys.executable, __file__, "--one", *task], capture_output=True, text=True, check=False
    )
    if done.returncode < 0:
        return None
    if done.returncode:
        sys.exit(f"{reference.name} on {path.stem}: {done.stderr}")
    return dict(json.loads(done.stdout))


def interval(values: np.ndarray) -> tuple[float, float, float]:
    """The median, and between what it lies in 95 % of bootstrapped rounds."""
    drawn = np.random.default_rng(0).integers(0, len(values), (2000, len(values)))
    low, high = np.quantile(np.median(values[drawn], axis=1), [0.025, 0.975])
    return float(np.median(values)), float(low), float(high)


def row(times: dict[str, list[float]]) -> list[str]:
    """Cells of one state: times with their middle half, and the two ratios."""
    of = {name: np.array(values) for name, values in times.items()}
    cells = []
    for name in ("ours", "reference", "loop", "interface"):
        low, median, high = np.quantile(of[name], [0.25, 0.5, 0.75])
        cells.append(f"{median:.1f} ({low:.1f} to {high:.1f})")
    net = (of["ours"] - of["loop"]) / (of["reference"] - of["interface"])
    for ratio in (of["ours"] / of["reference"], net):
        median, low, high = interval(ratio)
        cells.append(f"{median:.2f} ({low:.2f} to {high:.2f})")
    return cells


def survivor(folder: Path, reference: Reference, quick: bool) -> Path | None:
    """A synthetic trace on which the original does not crash."""
    for seed in range(SEEDS):
        path = folder / f"random, seed {seed}.npz"
        save_synthetic(surviving_trace(seed, 500 if quick else 3000), path)
        if measured_apart(path, reference, 1) is not None:
            return path
    return None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n", 1)[0])
    parser.add_argument("--rounds", type=int, default=41)
    parser.add_argument("--models", help="only the reference of this allocator of ours")
    parser.add_argument("--quick", action="store_true", help="short traces, few rounds")
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        path, name, rounds = arguments.one
        print(json.dumps(measure(Path(path), references()[name], int(rounds))))
        return
    rounds = 5 if arguments.quick else arguments.rounds
    console = Console(width=160)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        paths = [folder / f"{name}.npz" for name in (*EXAMPLES, "random")]
        with console.status("recording the examples"):
            for name, path in zip(EXAMPLES, paths, strict=False):
                save_example(name, 2 if arguments.quick else 6, path)
            save_synthetic(random_trace(arguments.quick), paths[-1])
        for reference in references().values():
            if arguments.models not in (None, reference.models):
                continue
            if reason := reference.unavailable():
                console.print(f"{reference.name}: {reason}")
                continue
            table = Table(
                "trace", "state", title=f"{reference.models} and {reference.name}: ns per event"
            )
            for title in ("ours", "PyTorch's", "loop", "interface", "ours / PyTorch's", "net"):
                table.add_column(title, justify="right")
            for path in paths:
                add_rows(table, path, reference, rounds, folder, arguments.quick)
            console.print(table)


def add_rows(
    table: Table, path: Path, reference: Reference, rounds: int, folder: Path, quick: bool
) -> None:
    times = measured_apart(path, reference, rounds)
    if times is None:
        table.add_row(path.stem, "", "", "crashes")
        if path.stem != "random":
            return
        survived = survivor(folder, reference, quick)
        if survived is None:
            return
        path, times = survived, measured_apart(survived, reference, rounds)
        assert times is not None
    for state in STATES:
        table.add_row(path.stem if state == STATES[0] else "", state, *row(times[state]))


if __name__ == "__main__":
    main()
