"""Calibrates this GPU and holds what the profile predicts against the GPU itself: the peak of
reserved memory of the driver's pool, before and after calibration, and the time of driver calls.

    python benchmarks/gpu_calibration.py [TRACE…] [--json FILE] [--profile FILE]

Without a trace, made-up traffic on several streams (device_traffic.py); --profile keeps what was
measured.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

from device_traffic import make_traffic
from rich.console import Console
from rich.table import Table

import workbench
from workbench.common.units import format_bytes, format_duration
from workbench.replay.calibration import calibrate, pool_table, price_table
from workbench.replay.summary_rows import row_of

PRICED = ("direct", "caching", "caching:expandable_segments:True", "async", "host-pinned")


def reserved(traces: list[Path], backend: str, **options: Any) -> list[int | None]:
    """Peaks of what the driver's pool, or the model of it, reserves; one for each trace."""
    result = workbench.replay(traces, "async", backend=backend, repeat=1, **options)
    by_trace = {row["trace"]: row["peak_reserved_bytes"] for row in map(_row, result)}
    return [by_trace.get(str(trace)) for trace in traces]


def _row(cell: Any) -> dict[str, Any]:
    return row_of(cell.info)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n", 1)[0])
    parser.add_argument("traces", nargs="*", type=Path)
    parser.add_argument("--events", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--profile", type=Path)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--stand-in", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    console = Console(width=150)
    profile = calibrate(rounds=options.rounds, stand_in=options.stand_in)
    console.print(price_table(profile))
    console.print(pool_table(profile))
    with tempfile.TemporaryDirectory() as folder:
        file = options.profile or Path(folder) / "profile.json"
        file.write_text(json.dumps(profile.info, indent=1) + "\n", encoding="utf-8")
        traces = options.traces or [
            make_traffic(options.events, seed=seed).write(Path(folder) / f"made-up-{seed}.parquet")
            for seed in range(3)
        ]
        pools = pool_errors(traces, file)
        calls = call_times(traces[0], file)
    table = Table(title="Peak reserved of the driver's pool", title_justify="left")
    for title in ("trace", "GPU", "model", "error", "calibrated model", "error"):
        table.add_column(title, justify="left" if title == "trace" else "right")
    for row in pools:
        table.add_row(
            row["trace"],
            *(_size(row["gpu"]), _size(row["model"]), _share(row["error"])),
            *(_size(row["calibrated"]), _share(row["calibrated_error"])),
        )
    console.print(table)
    table = Table(title="Time in driver calls: calls x price, and measured", title_justify="left")
    for title in ("allocator", "profile", "GPU", "profile / GPU"):
        table.add_column(title, justify="left" if title == "allocator" else "right")
    for row in calls:
        ratio = row["priced_ns"] / row["gpu_ns"] if row["gpu_ns"] else None
        table.add_row(
            row["allocator"],
            *(_time(row["priced_ns"]), _time(row["gpu_ns"])),
            "-" if ratio is None else f"{ratio:.2f}",
        )
    console.print(table)
    worst = max((abs(row["calibrated_error"]) for row in pools if row["gpu"]), default=None)
    summary = f"profile {profile.name}, pool off by up to {_share(worst)}"
    if options.json:
        found = {"profile": profile.info, "pools": pools, "calls": calls, "summary": summary}
        options.json.write_text(json.dumps(found, indent=1))


def pool_errors(traces: list[Path], profile: Path) -> list[dict[str, Any]]:
    """For each trace what the pool reserves on the GPU, and by the model before and after."""
    columns = (
        reserved(traces, "cuda"),
        reserved(traces, "simulated"),
        reserved(traces, "simulated", profile=profile),
    )
    return [
        {
            "trace": trace.stem,
            "gpu": gpu,
            "model": model,
            "error": _error(model, gpu),
            "calibrated": calibrated,
            "calibrated_error": _error(calibrated, gpu),
        }
        for trace, gpu, model, calibrated in zip(traces, *columns, strict=True)
    ]


def call_times(trace: Path, profile: Path) -> list[dict[str, Any]]:
    """For each allocator what its driver calls took on the GPU, and what the profile says."""
    rows = []
    for allocator in PRICED:
        (gpu,) = workbench.replay(trace, allocator, backend="cuda", repeat=1)
        (model,) = workbench.replay(
            trace, allocator, backend="simulated", repeat=1, profile=profile
        )
        kinds = {
            name: ((cell.info["memory"] or {}).get("driver_time") or {}).get("kinds")
            for name, cell in (("gpu", gpu), ("model", model))
        }
        rows.append(
            {
                "allocator": gpu.info["label"],
                "priced_ns": _row(model)["driver_ns"],
                "gpu_ns": _row(gpu)["driver_ns"],
                "kinds": kinds,
            }
        )
    return rows


def _error(found: int | None, real: int | None) -> float:
    return (found or 0) / real - 1 if real else 0.0


def _size(size: int | None) -> str:
    return "-" if size is None else format_bytes(size)


def _share(share: float | None) -> str:
    return "-" if share is None else f"{share:+.1%}"


def _time(nanoseconds: int | None) -> str:
    return "-" if nanoseconds is None else format_duration(nanoseconds)


if __name__ == "__main__":
    main()
