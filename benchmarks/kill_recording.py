"""Kills trainings at random moments and compares each trace with an independent count.

The count comes from a library that is preloaded before posix_memalign and free and knows nothing of
the recorder. A trace may differ from it by the one event that was in flight in the only thread.

    python benchmarks/kill_recording.py [--kills 20]
"""

from __future__ import annotations

import argparse
import os
import random
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from workbench.recorders.trace import open_trace

TRAINING = """
import ctypes, os
import torch
assert ctypes.CDLL(os.environ["COUNTER"]).start_counting(os.environ["COUNTS"].encode()) == 0
from torch import nn
torch.set_num_threads(1)
model = nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.LayerNorm(64), nn.Linear(64, 8))
optimizer = torch.optim.Adam(model.parameters())
print("ready", os.getpid(), flush=True)
while True:
    x = torch.randn(int(torch.randint(1, 64, ())), 32)
    loss = nn.functional.cross_entropy(model(x), torch.zeros(len(x), dtype=torch.long))
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
"""


@dataclass(frozen=True)
class Comparison:
    """Allocations, frees and allocated bytes: as counted, and in the trace."""

    counted: tuple[int, int, int]
    traced: tuple[int, int, int]
    exit_code: int
    complete: bool

    @property
    def equal(self) -> bool:
        """Whether both agree, but for one event in flight."""
        allocs = self.counted[0] - self.traced[0]  # counted first, recorded after
        frees = self.traced[1] - self.counted[1]  # recorded first, counted after
        same_bytes = allocs == 1 or self.counted[2] == self.traced[2]
        return (allocs, frees) in ((0, 0), (1, 0), (0, 1)) and same_bytes and self.complete


def build_counter(folder: Path) -> Path:
    """Compile the counting library into `folder`."""
    library = folder / "liballocation_counter.so"
    source = Path(__file__).parent / "allocation_counter.c"
    compiler = os.environ.get("CC", "cc")
    subprocess.run(
        [compiler, "-O2", "-fPIC", "-shared", str(source), "-o", str(library), "-ldl"], check=True
    )
    return library


def kill_once(folder: Path, counter: Path, seconds: float) -> Comparison:
    """Record a training in `folder`, kill it after `seconds`, compare."""
    (folder / "train.py").write_text(TRAINING, encoding="utf-8")
    page = folder / "counts"
    page.write_bytes(bytes(4096))
    variables = {**os.environ, "LD_PRELOAD": str(counter), "COUNTER": str(counter)}
    variables["COUNTS"] = str(page)
    command = [sys.executable, "-P", "-m", "workbench", "record", "--force", "train.py"]
    with subprocess.Popen(
        command, cwd=folder, env=variables, stdout=subprocess.PIPE, text=True
    ) as recording:
        assert recording.stdout is not None
        process_id = int(recording.stdout.readline().split()[1])
        time.sleep(seconds)
        os.kill(process_id, 9)
        exit_code = recording.wait()
    counted = np.fromfile(page, "u8", 3)
    trace = open_trace(str(folder / "train.parquet"))
    allocs = frees = size = 0
    for batch in trace.files[0].batches(columns=["event", "size"]):
        events, sizes = batch.column("event").to_pylist(), batch.column("size").to_pylist()
        for event, of_size in zip(events, sizes, strict=True):
            allocs += event == "alloc"
            frees += event == "free"
            size += of_size * (event == "alloc")
    return Comparison(
        (int(counted[0]), int(counted[1]), int(counted[2])),
        (allocs, frees, size),
        exit_code,
        bool(trace.metadata["complete"]),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=20)
    kills = parser.parse_args().kills
    moments = random.Random(0)
    equal = 0
    print(f"{'killed after':>12} exit {'counted allocs, frees, bytes':>34} {'in the trace':>34}")
    with tempfile.TemporaryDirectory() as name:
        counter = build_counter(Path(name))
        for _ in range(kills):
            seconds = moments.uniform(0.05, 3)
            found = kill_once(Path(name), counter, seconds)
            equal += found.equal
            verdict = "equal" if found.equal else "DIFFERENT"
            print(
                f"{seconds:10.3f} s {found.exit_code:4} {found.counted!s:>34} "
                f"{found.traced!s:>34} {verdict}", flush=True,
            )  # fmt: skip
    print(f"{equal} of {kills} equal, one event in flight aside")
    sys.exit(equal != kills)


if __name__ == "__main__":
    main()
