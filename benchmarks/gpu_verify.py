"""Fill and verify on a GPU: every block of many events on several streams, no byte damaged.

    python benchmarks/gpu_verify.py [--events 10000000] [--json FILE]

Each block is filled by a kernel on its stream with a pattern of its own when it is allocated, read
by another stream where one uses it, and read again on its stream before it is freed. A block that
is handed out before another stream is done with it is found out. Exit code 1: a byte was damaged.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

from device_traffic import make_traffic
from rich.console import Console
from rich.table import Table

from workbench.replay import _engine

CASES = [
    ("caching", "", "recorded", 1.0),
    ("caching", "expandable_segments:True", "recorded", 0.05),
    ("caching", "", "immediate", 0.05),
    ("caching", "", "never", 0.05),
    ("async", "", "recorded", 0.05),
    ("direct", "", "recorded", 0.005),
]
"""Allocator, settings, completion, share of the events."""


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n", 1)[0])
    parser.add_argument("--events", type=int, default=10_000_000)
    parser.add_argument("--streams", type=int, default=4)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    table = Table(title=f"Fill and verify, {options.streams} streams", title_justify="left")
    for title in ("allocator", "completion", "events", "seconds", "damaged"):
        table.add_column(title, justify="right" if title in ("events", "seconds") else "left")
    rows = []
    for allocator, settings, completion, share in CASES:
        events = make_traffic(int(options.events * share), streams=options.streams).events()
        replay = _engine.Replay(
            events, allocator, settings, backend="cuda", completion=completion, after_oom="continue"
        )
        started = time.monotonic()
        damage = None
        try:
            replay.memory(1, verify=True)
        except _engine.DamagedBlock as error:
            damage = str(error)
        rows.append(
            {
                "allocator": allocator,
                "settings": settings,
                "completion": completion,
                "events": len(events),
                "seconds": time.monotonic() - started,
                "damage": damage,
            }
        )
        label = f"{allocator} ({settings})" if settings else allocator
        seconds = f"{rows[-1]['seconds']:.1f}"
        table.add_row(label, completion, f"{len(events):,}", seconds, damage or "no byte")
    Console().print(table)
    damaged = sum(row["damage"] is not None for row in rows)
    most = max(int(row["events"]) for row in rows)
    summary = f"{damaged} of {len(rows)} cases damaged; {most:,} events at most"
    if options.json:
        options.json.write_text(json.dumps({"summary": summary, "rows": rows}, indent=1))
    sys.exit(1 if damaged else 0)


if __name__ == "__main__":
    main()
