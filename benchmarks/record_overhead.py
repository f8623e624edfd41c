"""What recording costs: the same steps with the hook in and out, alternating in one process.

Separate processes differ by more than the hook costs, so steps with and without it alternate in
random order within pairs; the interval of the ratio is bootstrapped over pairs. Printed beside it:
the same comparison of the bare program with itself, which must give 1; PyTorch's own profiler with
memory recording; and the price of an event in a tight loop times the events of a step, which must
explain the ratio.

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


def tiny_operators() -> Step:
    """1,215 operators on four numbers: 2,430 allocations and frees, in about 3.5 ms."""
    x = torch.randn(4)

    def step() -> None:
        y = x
        for _ in range(1215):
            y = torch.tanh(y)

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


MODELS = {"tiny operators": tiny_operators, "transformer": transformer, "conv net": conv_net}


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


def event_cost(hook: Any) -> tuple[float, float]:
    """Nanoseconds that recording adds to an event in a tight loop: median, and spread of it."""
    loop = ctypes.CDLL(
        str(torch_build.build("alloc_loop", [Path(__file__).parent / "alloc_loop.cpp"]))
    )
    loop.alloc_loop.argtypes = [ctypes.c_uint64, ctypes.c_uint64]
    loop.alloc_loop.restype = ctypes.c_uint64
    pairs, costs = 100_000, []
    for _ in range(30):
        bare = loop.alloc_loop(pairs, 64)
        hook.wb_resume()
        recorded = loop.alloc_loop(pairs, 64)
        hook.wb_pause()
        costs.append((recorded - bare) / (2 * pairs))
    return statistics.median(costs), statistics.quantiles(costs, n=10)[-1]


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
        cost, spread = event_cost(hook)
        for name in options.models:
            table.add_row(name, *measure(MODELS[name](), hook, process, options.pairs, cost))
        recorder.stop()
        spool.remove()
    console.print(table)
    console.print(f"an event costs {cost:.1f} ns in a tight loop (90 % quantile {spread:.1f} ns)")


def measure(step: Step, hook: Any, folder: Path, pairs: int, cost: float) -> list[str]:
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
        f"{1 + events * cost / (seconds * 1e9):.4f}",
        f"{profiler:.2f}, {held / 2**20:,.0f} MiB",
        f"{memory / 2**20:.1f} MiB",
    ]


if __name__ == "__main__":
    main()
