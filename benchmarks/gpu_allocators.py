"""All allocators on a GPU in one table: memory, time per call, the driver's calls and their times.

    python benchmarks/gpu_allocators.py [TRACE…] [--json FILE]

Without a trace, made-up traffic on several streams (device_traffic.py).
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

from device_traffic import make_traffic
from rich.console import Console
from rich.table import Table

import workbench
from workbench.common.units import format_duration
from workbench.replay.summary_rows import row_of

ALLOCATORS = (
    "direct",
    "caching",
    "caching:expandable_segments:True",
    "async",
    "host-pinned",
    "plan",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n", 1)[0])
    parser.add_argument("traces", nargs="*", type=Path)
    parser.add_argument("--events", type=int, default=60_000)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        traces = options.traces or [
            make_traffic(options.events).write(Path(folder) / "made-up.parquet")
        ]
        result = workbench.replay(
            traces, ALLOCATORS, backend="cuda", repeat=options.repeat, output=Path(folder) / "out"
        )
    Console(width=150).print(result)
    times = Table(title="The driver's calls, by kind", title_justify="left")
    for title in ("allocator", "kind", "calls", "total", "p50", "p99", "max"):
        times.add_column(title, justify="left" if title in ("allocator", "kind") else "right")
    for cell in result:
        for kind, one in (
            ((cell.info["memory"] or {}).get("driver_time") or {}).get("kinds") or {}
        ).items():
            numbers = (one[name] for name in ("total_ns", "p50_ns", "p99_ns", "max_ns"))
            times.add_row(
                cell.info["label"], kind, f"{one['count']:,}", *map(format_duration, numbers)
            )
    Console(width=150).print(times)
    rows = [
        row_of(cell.info) | {"driver_time": (cell.info["memory"] or {}).get("driver_time")}
        for cell in result
    ]
    served = sum(row["outcome"] == "ok" for row in rows)
    summary = f"{served} of {len(rows)} cells ok"
    if options.json:
        options.json.write_text(json.dumps({"summary": summary, "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
