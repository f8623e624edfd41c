"""How long importing takes, and how much memory: a Chrome trace as PyTorch's profiler writes it.

python benchmarks/import_speed.py --gigabytes 1
"""

from __future__ import annotations

import argparse
import pickle
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

_HEAD = """{
  "schemaVersion": 1,
  "deviceProperties": [
  ],
  "displayTimeUnit": "ms",
  "baseTimeNanoseconds": 1790857026000000000,
  "traceEvents": [
  {
    "ph": "M", "name": "process_name", "ts": 4415317042635.892, "pid": 31625, "tid": 0,
    "args": {
      "name": "python"
    }
  }"""
_OPERATOR = """,
  {
    "ph": "X", "cat": "cpu_op", "name": "aten::op_%d", "pid": 31625, "tid": %d,
    "ts": %.3f, "dur": 7.250,
    "args": {
      "External id": %d,"Record function id": 0, "Ev Idx": %d
    }
  }"""
_MEMORY = """,
  {
    "ph": "i",
    "cat": "cpu_instant_event",
    "s": "t",
    "name": "[memory]",
    "pid": 31625,
    "tid": %d,
    "ts": %.3f
    ,
    "args": {
      "Total Reserved": 10485760000, "Total Allocated": 9485760000, "Bytes": %d, "Device Id": 0, \
"Device Type": 1, "Addr": %d, "Ev Idx": %d
    }
  }"""
_SLOTS = 4096


def write_profile(path: Path, size: int) -> int:
    """Write a Chrome trace of about `size` bytes; returns its memory events.

    Two threads run operators one after the other; each allocates, and frees what was allocated
    4,096 operators earlier.
    """
    written = number = 0
    with path.open("w", encoding="utf-8") as file:
        file.write(_HEAD)
        while written < size:
            parts = []
            for _ in range(10_000):
                at = 4415317042635.892 + 10.0 * number
                thread = 31625 + number % 2
                parts.append(_OPERATOR % (number % 300, thread, at, number, 3 * number))
                address = 0x7F0000000000 + (number % _SLOTS) * 2**21
                if number >= _SLOTS:
                    freed = -512 * (1 + (number - _SLOTS) % 1000)
                    parts.append(_MEMORY % (thread, at + 1, freed, address, 3 * number + 1))
                made = 512 * (1 + number % 1000)
                parts.append(_MEMORY % (thread, at + 2, made, address, 3 * number + 2))
                number += 1
            written += file.write("".join(parts))
        file.write('\n  ],"traceName": "made.json" }')
    return 2 * number - _SLOTS


def write_snapshot(path: Path, entries: int) -> int:
    """Write a memory snapshot of at least `entries` entries; returns how many it has."""
    from make_snapshot import snapshot_of_trace, synthetic

    snapshot = snapshot_of_trace(synthetic(entries * 3 // 4, "train", 1), "", None)
    with path.open("wb") as file:
        pickle.dump(snapshot, file, protocol=4)
    return max(map(len, snapshot["device_traces"]))


def main() -> None:
    """Print seconds and peak memory of ``wb import``."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--gigabytes", type=float, default=1.0, help="size of the Chrome trace")
    parser.add_argument("--snapshot", type=int, metavar="ENTRIES", help="a snapshot instead")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=".") as folder:
        if options.snapshot:
            made = Path(folder) / "snapshot.pickle"
            what = f"{write_snapshot(made, options.snapshot):,} entries"
        else:
            made = Path(folder) / "profile.json"
            what = f"{write_profile(made, int(options.gigabytes * 1e9)):,} memory events"
        command = [sys.executable, "-P", "-m", "workbench", "import", made, "-o"]
        begin = time.perf_counter()
        subprocess.run([*command, f"{folder}/t.parquet"], check=True)
        seconds = time.perf_counter() - begin
        peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
        print(
            f"{made.stem}: {made.stat().st_size / 1e9:.2f} GB, {what}: "
            f"{seconds:.1f} s, {peak / 1e9:.2f} GB of memory at the peak"
        )


if __name__ == "__main__":
    main()
