"""Settings of `caching` x peak of reserved memory x device calls, on recordings.

    python benchmarks/settings_on_examples.py TRACE...

CPU traffic through a device's allocator is an as-if replay: it shows what a setting does to such
traffic, not what to deploy. The device is simulated and has 80 GiB.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from rich.console import Console
from rich.table import Table

from workbench.common.units import format_bytes
from workbench.replay import _engine
from workbench.replay.cell import device_kind
from workbench.replay.events import Traffic, load_trace
from workbench.replay.results import device_calls

CAPACITY = 80 << 30
SETTINGS = (
    "",
    "expandable_segments:True",
    "large_segment_size_mb:64",
    "roundup_power2_divisions:8",
    "roundup_power2_divisions:4",
    "max_split_size_mb:64",
    "max_split_size_mb:20",
)


def peak_and_calls(traffic: Traffic, settings: str) -> tuple[int, int]:
    """Bytes reserved at the most, and calls of the device."""
    replay = _engine.Replay(
        traffic.events(),
        "caching",
        settings,
        backend="simulated",
        capacity=CAPACITY,
        after_oom="continue",
    )
    memory = replay.memory()
    return memory["peaks"]["reserved"]["bytes"], device_calls(memory["driver_calls"]) or 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n", 1)[0])
    parser.add_argument("traces", nargs="+", type=Path, metavar="TRACE")
    arguments = parser.parse_args()
    table = Table("settings", title="Peak of reserved memory and device calls")
    columns: list[list[str]] = []
    for path in arguments.traces:
        trace = load_trace(str(path))[0]
        by_device = trace.bytes_by_device
        device = max(by_device, key=lambda name: by_device[name])
        traffic = trace.traffic(device)
        as_if = " (as if)" if device_kind(device) != "device" else ""
        table.add_column(f"{path.stem}{as_if}", justify="right")
        found = [peak_and_calls(traffic, settings) for settings in SETTINGS]
        columns.append(
            [f"{format_bytes(peak)}, {calls:,}" for peak, calls in found]
            + [format_bytes(traffic.peak_live_bytes)]
        )
    for number, name in enumerate([*(one or "default" for one in SETTINGS), "peak of live memory"]):
        table.add_row(name, *(column[number] for column in columns))
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
