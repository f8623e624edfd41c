"""What recording costs: the same steps with the hook in and out, alternating in one process.

Separate processes differ by more than the hook costs, so steps with and without it alternate in
random order within pairs; the interval of the ratio is bootstrapped over pairs. Printed beside it:
the same comparison of the bare program with itself, which must give 1; PyTorch's own profiler with
memory recording; and the price of an event in a tight loop times the events of a step, which must
explain the ratio where the program leaves the caches alone. One that computes for microseconds
between two events does not: there an event costs what it misses in them.

    python benchmarks/record_overhead.py [--pairs 1000] [--threads 1]
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import random
import re
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import nn
from torch.nn import functional as F

from workbench.common import torch_build
from workbench.recorders import recording

Step = Callable[[], None]
Times = np.ndarray[Any, np.dtype[np.float64]]


def operators(elements: int) -> Step:
    """1,215 operators on `elements` numbers: 2,430 allocations and frees."""
    x = torch.randn(elements)

    def step() -> None:
        y = x
        for _ in range(1215):
            y = torch.tanh(y)

    return step


def densest() -> Step:
    """As many events in as little time as PyTorch can make."""
    return operators(4)


def tiny_operators() -> Step:
    """2,430 events in about 3.5 ms; on a machine where the densest takes longer, that."""
    elements, limit = 4, 3.5e-3
    while elements < 1 << 16:
        step = operators(elements)
        if statistics.median(timed(step) for _ in range(50)) >= limit:
            return step
        elements += max(elements // 8, 1)
    return step


def transformer() -> Step:
    """An encoder of four layers on 4 sequences of 32 tokens."""
    layer = nn.TransformerEncoderLayer(128, 4, 512, batch_first=True)
    model = nn.Sequential(
        nn.Embedding(512, 128), nn.TransformerEncoder(layer, 4), nn.Linear(128, 512)
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    tokens = torch.randint(512, (4, 32))

    def step() -> None:
        optimizer.zero_grad()
        F.cross_entropy(model(tokens).flatten(0, 1), tokens.flatten()).backward()
        optimizer.step()

    return step


def conv_net() -> Step:
    """Four convolutions with batch norm on 4 images of 32 x 32."""
    layers: list[nn.Module] = []
    for channels_in, channels in ((3, 32), (32, 32), (32, 64), (64, 64)):
        layers += [
            nn.Conv2d(channels_in, channels, 3, padding=1),
            nn.BatchNorm2d(channels),
            nn.ReLU(),
        ]
    model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    images, labels = torch.randn(4, 3, 32, 32), torch.randint(10, (4,))

    def step() -> None:
        optimizer.zero_grad()
        F.cross_entropy(model(images), labels).backward()
        optimizer.step()

    return step


MODELS = {
    "tiny operators": tiny_operators,
    "transformer": transformer,
    "conv net": conv_net,
    "densest": densest,
}


def timed(step: Step) -> float:
    """Seconds of one step."""
    start = time.perf_counter()
    step()
    return time.perf_counter() - start


def alternate(step: Step, pairs: int, enter: Step, leave: Step) -> Times:
    """Seconds of `pairs` steps between `enter` and `leave`, and of as many without: (pairs, 2)."""
    order = random.Random(0)
    times = np.empty((pairs, 2))
    for pair in range(pairs):
        for column in order.sample((0, 1), 2):
            if column == 0:
                enter()
                times[pair, 0] = timed(step)
                leave()
            else:
                times[pair, 1] = timed(step)
    return times


def of_pairs(times: Times) -> Any:
    """Median ratio within pairs: both steps of a pair meet the same weather."""
    return np.median(times[..., 0] / times[..., 1], axis=-1)


def of_means(times: Times) -> Any:
    """Ratio of the means: what happens once in many steps counts, too."""
    return times[..., 0].mean(axis=-1) / times[..., 1].mean(axis=-1)


def interval(times: Times, statistic: Callable[[Times], Any]) -> str:
    """`statistic` of times (pairs, 2) and its 95 % interval, bootstrapped over pairs."""
    picks = np.random.default_rng(0).integers(len(times), size=(1000, len(times)))
    low, high = np.quantile(statistic(times[picks]), (0.025, 0.975))
    return f"{statistic(times):.4f} [{low:.4f}, {high:.4f}]"


def anonymous_memory() -> int:
    """Bytes of anonymous memory that this process holds in RAM."""
    text = Path("/proc/self/status").read_text(encoding="utf-8")
    found = re.search(r"RssAnon:\s+(\d+) kB", text)
    return int(found[1]) * 1024 if found else 0


def records_in(folder: Path) -> int:
    """Records in a process's spool so far."""
    segments = (np.fromfile(path, "u8", offset=64) for path in folder.glob("events-*"))
    return int(sum(np.count_nonzero(words[3::4]) for words in segments))


def nothing() -> None:
    """Stands for the switch where there is nothing to switch."""


def memory_of(library: str) -> Any:
    """Addresses (n, 2) of the readable memory that a loaded library takes, its variables last."""
    ranges: list[tuple[int, int]] = []
    for line in Path("/proc/self/maps").read_text(encoding="utf-8").splitlines():
        place, rights, _, _, _, *name = line.split(maxsplit=5)
        begin, end = (int(word, 16) for word in place.split("-"))
        follows = bool(ranges) and ranges[-1][1] == begin and not name
        if rights[0] == "r" and (library in "".join(name) or follows):
            ranges.append((begin, min(end, begin + 65536)))
    return np.array(ranges, dtype=np.uint64)


def event_costs(hook: Any) -> tuple[float, float]:
    """Nanoseconds that recording adds to an event, medians: in a tight loop, and where the caches
    hold nothing of the hook.
    """
    loop = ctypes.CDLL(
        str(torch_build.build("alloc_loop", [Path(__file__).parent / "alloc_loop.cpp"]))
    )
    number = ctypes.c_uint64
    loop.alloc_loop.argtypes, loop.alloc_loop.restype = [number, number], number
    loop.evicted_loop.argtypes = [number, number, ctypes.c_void_p, number]
    loop.evicted_loop.restype = number
    memory = memory_of("cpu_hook")

    def hot() -> float:
        # Few enough for the spool's next segment to be ready: a program is slower than the disk.
        return float(loop.alloc_loop(500, 64)) / 1000

    def evicted() -> float:
        return float(loop.evicted_loop(101, 4096, memory.ctypes.data, len(memory))) / 2

    def added(cost: Callable[[], float]) -> float:
        bare = cost()
        hook.wb_resume()
        recorded = cost()
        hook.wb_pause()
        return recorded - bare

    return (
        statistics.median(added(hot) for _ in range(300)),
        statistics.median(added(evicted) for _ in range(100)),
    )


def with_profiler(step: Step, steps: int) -> tuple[float, int]:
    """Ratio of step times under PyTorch's profiler with memory recording, and bytes it held."""
    bare = [timed(step) for _ in range(steps)]
    gc.collect()
    before = anonymous_memory()
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
    ):
        profiled = [timed(step) for _ in range(steps)]
        held = anonymous_memory() - before
    return statistics.median(profiled) / statistics.median(bare), held


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=1000, help="of steps, for each model")
    parser.add_argument("--threads", type=int, default=1, help="that PyTorch computes with")
    parser.add_argument("--models", nargs="*", choices=MODELS, default=list(MODELS))
    parser.add_argument("--folder", type=Path, default=None, help="for the spool")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    console = Console(width=180)
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        asked = recording.RecordOptions(Path(folder) / "run.parquet")
        spool = recording.open_spool(asked, sys.argv)
        recorder = recording.start_here(spool)
        hook, process = recorder.hook, Path(recorder.folder)
        hook.wb_pause()
        console.print(
            f"torch {torch.__version__}, {options.threads} thread(s), {options.pairs} pairs of "
            "steps; ratios with 95 % intervals"
        )
        table = Table("model", "step", "events", "with the hook: pairs", "means")
        for title in ("control: pairs", "event cost predicts", "profiler", "own memory"):
            table.add_column(title)
        costs = event_costs(hook)
        for name in options.models:
            table.add_row(name, *measure(MODELS[name](), hook, process, options.pairs, costs))
        recorder.stop()
        spool.remove()
    console.print(table)
    console.print(
        f"an event costs {costs[0]:.1f} ns in a tight loop, {costs[1]:.0f} ns where the caches "
        "hold nothing of the hook; a program lies between"
    )


def measure(
    step: Step, hook: Any, folder: Path, pairs: int, costs: tuple[float, float]
) -> list[str]:
    """The row of one model."""
    for _ in range(10):
        step()
    hook.wb_resume()
    before = records_in(folder)
    step()
    hook.wb_pause()
    events = records_in(folder) - before
    memory = anonymous_memory()
    recorded = alternate(step, pairs, hook.wb_resume, hook.wb_pause)
    memory = anonymous_memory() - memory
    control = alternate(step, pairs, nothing, nothing)
    profiler, held = with_profiler(step, min(pairs, 100))
    seconds = float(np.median(control))

    return [
        f"{seconds * 1e3:.2f} ms",
        f"{events:,}",
        interval(recorded, of_pairs),
        interval(recorded, of_means),
        interval(control, of_pairs),
        " to ".join(f"{1 + events * cost / (seconds * 1e9):.4f}" for cost in costs),
        f"{profiler:.2f}, {held / 2**20:,.0f} MiB",
        f"{memory / 2**20:.1f} MiB",
    ]


if __name__ == "__main__":
    main()
