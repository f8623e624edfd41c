"""The numbers of a replay that people compare, one row for each cell."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from workbench.replay.result_fields import WATERFALL
from workbench.replay.results import (
    CellResult,
    device_calls,
    driver_ns,
    driver_time_is_model,
    rounding_share,
)

STATES = ("cold", "steady")
KINDS = ("alloc", "free")
QUANTILES = ("p50", "p99", "max")


def rows(results: Sequence[CellResult]) -> list[dict[str, Any]]:
    """One mapping for each cell: names, bytes, calls, latencies in nanoseconds, outcome.

    A number that was not measured is None. Latencies are the medians over processes.
    """
    return [row_of(result.info) for result in results]


def row_of(info: Mapping[str, Any]) -> dict[str, Any]:
    """The mapping of one cell, from what is in its ``cell.json``."""
    memory = info["memory"] or {}
    peaks = memory.get("peaks", {})
    calls = memory.get("driver_calls", {})
    waterfall = memory.get("waterfall") or {}
    row: dict[str, Any] = {
        "cell": info["name"],
        "trace": info["trace"]["path"],
        "device": info["trace"]["device"],
        "allocator": info["label"],
        "backend": info["backend"]["name"],
        "as_if": info["as_if"],
        "capacity_bytes": info["capacity"]["bytes"],
        **{
            f"peak_{name}_bytes": peaks.get(name, {}).get("bytes")
            for name in ("requested", "live_requested", "allocated", "reserved")
        },
        "unused_share": memory.get("unused_share"),
        "rounding_share": rounding_share(memory),
        **{f"waterfall_{part}_bytes": waterfall.get(part) for part in WATERFALL},
        "resident_growth_bytes": memory.get("rss_growth_bytes"),
        "device_calls": device_calls(calls),
        "driver_ns": driver_ns(memory),
        "driver_time_is_model": driver_time_is_model(memory),
        "latency_source": info["allocator"]["latency_source"],
    }
    states = (info["latency"] or {}).get("states", {})
    for state in STATES:
        for kind in KINDS:
            measured = states.get(state, {}).get(kind, {})
            for quantile in QUANTILES:
                row[f"{state}_{kind}_{quantile}_ns"] = measured.get(f"{quantile}_ns", {}).get(
                    "median"
                )
        row[f"{state}_events_per_s"] = (
            info["throughput"].get(state, {}).get("events_per_s", {}).get("median")
        )
    return {**row, "outcome": info["outcome"]["status"], "reason": info["outcome"]["reason"]}


def named(label: str, trace: str, several_traces: bool) -> str:
    """A cell's label, with its trace where there are several."""
    return f"{Path(trace).stem}: {label}" if several_traces else label


def grows_unreported(row: Mapping[str, Any]) -> bool:
    """Whether only the growth of the process says what the allocator holds."""
    return row["peak_reserved_bytes"] is None and row["resident_growth_bytes"] is not None
