"""How fast a spool becomes a trace, how large it is, and what memory that takes.

Makes a spool of 10 million events that looks like the training of a transformer, converts it,
validates the trace and runs ``wb info``, each in a process of its own:

    python benchmarks/trace_size_and_speed.py
    python benchmarks/trace_size_and_speed.py --trace run.parquet     # bytes per event of this one

Goals: under 20 s and 1 GB altogether, at most 3 bytes per event.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import struct
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

RECORD = np.dtype(
    [("ticks", "<u8"), ("address", "<u8"), ("scope", "<u4"), ("stack", "<u4"), ("kind", "<u8")]
)
MAGIC = b"WBSPOOL1"
ALLOC, FREE, CONTEXT = 1, 2, 3
LAYERS = 12
TICKS_PER_NS = 2.5
SEGMENT_RECORDS = 131_070  # as the hook's: 4 MiB

CONVERT = """
import json, sys
from pathlib import Path
from workbench.recorders.spool import convert_process
done = convert_process(Path(sys.argv[1]), Path(sys.argv[2]), metadata={"recorded": ["cpu"]})
print(json.dumps({"rows": done.rows, "complete": done.complete}))
"""
VALIDATE = """
import json, sys
from workbench.recorders.trace import open_trace
rows = 0
for file in open_trace(sys.argv[2]).files:
    for batch in file.batches():
        rows += batch.num_rows
print(json.dumps({"rows": rows}))
"""
INFO = """
import sys
from workbench.cli import main
sys.argv = ["wb", "info", sys.argv[2]]
main()
"""


def one_step(random: np.random.Generator) -> tuple[np.ndarray, list[tuple[int, int, int]]]:
    """One training step: (kind, block, size, scope) of each event, and phases by position.

    Sizes and lifetimes follow a GPT of 12 layers: activations live from forward to backward,
    temporaries for a few events, gradients until they are cleared at the next step's start.
    """
    events: list[tuple[int, int, int, int]] = []
    blocks = 0
    hidden = 8 * 256 * 768 * 4
    phases = [(0, 1, 0)]

    def allocate(size: int, scope: int) -> int:
        nonlocal blocks
        events.append((ALLOC, blocks, size, scope))
        blocks += 1
        return blocks - 1

    def release(block: int, scope: int) -> None:
        events.append((FREE, block, 0, scope))

    kept: list[int] = []
    for layer in range(LAYERS):
        for operator in range(24):
            scope = layer << 16 | operator + 1
            size = int(hidden * random.choice([1, 1, 1, 3, 4])) if operator % 3 else 8 * 256 * 4
            temporaries = [
                allocate(int(random.choice([64, 512, 8192, size])), scope)
                for _ in range(int(random.integers(0, 4)))
            ]
            kept.append(allocate(size, scope))
            for block in reversed(temporaries):
                release(block, scope)
    phases.append((len(events), 2, 0))
    gradients: list[int] = []
    while kept:
        scope = (len(kept) // 24) << 16 | len(kept) % 24 + 30
        temporaries = [
            allocate(int(random.choice([64, hidden, 4 * hidden])), scope)
            for _ in range(int(random.integers(1, 5)))
        ]
        if len(kept) % 4 == 0:
            gradients.append(allocate(768 * 3072 * 4, scope))
        for block in temporaries:
            release(block, scope)
        release(kept.pop(), scope)
    phases.append((len(events), 3, 0))
    for gradient in gradients:
        for _ in range(3):
            release(allocate(768 * 3072 * 4, 60), 60)
        release(gradient, 61)
    phases.append((len(events), 0, 1))
    return np.array(events, np.int64), phases


def write_spool(folder: Path, events_wanted: int) -> int:
    """Write the spool; returns how many events it holds."""
    random = np.random.default_rng(1)
    step, phases = one_step(random)
    block_count = int(step[:, 1].max()) + 1
    # Freed addresses come back: a block has the same address in every step.
    addresses = 0x7F00_0000_0000 + np.cumsum(random.integers(64, 1 << 22, block_count)) // 64 * 64
    folder.mkdir()
    sequence = held = written = steps = 0
    ticks = 10_000
    pending: list[np.ndarray] = []

    def flush() -> None:
        nonlocal sequence, held
        records = np.concatenate(pending)
        pending.clear()
        head = struct.pack("<8sIIQQ32x", MAGIC, 1, 0, 4321, sequence)
        (folder / f"events-{sequence}").write_bytes(head + records.tobytes())
        sequence += 1
        held = 0

    while written < events_wanted:
        records = np.zeros(len(step) + len(phases), RECORD)
        gaps = np.maximum(random.lognormal(np.log(800), 1.0, len(records)) * TICKS_PER_NS, 1)
        records["ticks"] = ticks + np.cumsum(gaps.astype(np.uint64))
        ticks = int(records["ticks"][-1])
        places = np.delete(
            np.arange(len(records)), [at + place for place, (at, _, _) in enumerate(phases)]
        )
        rows = np.zeros(len(step), RECORD)
        rows["address"] = addresses[step[:, 1]]
        rows["scope"] = step[:, 3]
        rows["kind"] = step[:, 2].astype(np.uint64) << np.uint64(8) | step[:, 0].astype(np.uint64)
        for name in ("address", "scope", "kind"):
            records[name][places] = rows[name]
        for place, (at, phase, add) in enumerate(phases):
            records["address"][at + place] = phase
            records["kind"][at + place] = (steps + add) << 8 | CONTEXT
        pending.append(records)
        held += len(records)
        written += len(step)
        steps += 1
        if held >= SEGMENT_RECORDS:
            flush()
    if pending:
        flush()
    control = struct.pack(
        "<8sIIIIQQQQQQQQQ", MAGIC, 1, 4321, 0, 0, 0, 0, ticks, int(ticks / TICKS_PER_NS),
        1, 0, 0, 0, 1,
    )  # fmt: skip
    (folder / "control").write_bytes(control.ljust(4096, b"\0"))
    names = [("module", number, f"transformer.blocks.{number}") for number in range(1, LAYERS + 1)]
    names += [("op", number, f"aten::operator_{number}") for number in range(1, 64)]
    lines = (json.dumps({"kind": kind, "id": number, "text": text}) for kind, number, text in names)
    (folder / "names").write_text("\n".join(lines) + "\n")
    return written


def run_part(name: str, code: str, arguments: list[str]) -> tuple[float, float]:
    """Run `code` in a process of its own; returns seconds and peak resident MB, and prints them."""
    began = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-P", "-c", code, *arguments], stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    output = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - began
    if status != 0:
        sys.exit(f"{name} failed with status {status}: {output.decode()}")
    megabytes = usage.ru_maxrss / 1024
    busy = usage.ru_utime + usage.ru_stime
    print(f"{name:10} {seconds:7.2f} s  {megabytes:7.0f} MB   ({busy:.2f} s of processor time)")
    return seconds, megabytes


def print_size(trace: Path) -> float:
    """Print bytes per event, in all and by column; returns the former."""
    footer = pq.ParquetFile(trace).metadata
    columns: dict[str, int] = {}
    for group in range(footer.num_row_groups):
        for number in range(footer.num_columns):
            column = footer.row_group(group).column(number)
            columns[column.path_in_schema] = (
                columns.get(column.path_in_schema, 0) + column.total_compressed_size
            )
    rows = max(footer.num_rows, 1)
    per_event = trace.stat().st_size / rows
    print(f"{trace.name}: {footer.num_rows:,} events, {per_event:.2f} bytes per event")
    for name, size in sorted(columns.items(), key=lambda item: -item[1])[:7]:
        print(f"  {name:12} {size / rows:6.3f}")
    return per_event


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--events", type=int, default=10_000_000)
    parser.add_argument("--trace", type=Path, help="measure this trace, convert nothing")
    parser.add_argument("--json", type=Path, help="write the numbers there too")
    options = parser.parse_args()
    work = Path(tempfile.mkdtemp(prefix="wb-trace-"))
    try:
        numbers: dict[str, object] = {}
        trace = options.trace or work / "synthetic.parquet"
        parts = {"validate": VALIDATE, "wb info": INFO}
        if options.trace is None:
            count = write_spool(work / "process", options.events)
            print(f"synthetic spool: {count:,} events")
            parts = {"convert": CONVERT, **parts}
        seconds = megabytes = 0.0
        for name, code in parts.items():
            took, peak = run_part(name, code, [str(work / "process"), str(trace)])
            numbers[name] = {"seconds": took, "peak_mb": peak}
            seconds += took
            megabytes = max(megabytes, peak)
        print(f"{'together':10} {seconds:7.2f} s  {megabytes:7.0f} MB   (goals: 20 s, 1000 MB)")
        numbers["bytes_per_event"] = print_size(trace)
        if options.json:
            options.json.write_text(json.dumps(numbers, indent=1) + "\n")
    finally:
        shutil.rmtree(work)


if __name__ == "__main__":
    main()
