"""What all tests share; results made up for the tests of reports, plainly synthetic."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

MIB = 2**20
NAMES = ("requested", "live_requested", "allocated", "active", "reserved", "segments")


def pytest_configure() -> None:
    """Hear Ctrl-C, as a terminal's programs do: those started in the background ignore it."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def _live(buckets: int) -> np.ndarray:
    """Live bytes that rise and fall five times, as five training steps do, shape (buckets,)."""
    phase = np.linspace(0, 5, buckets) % 1
    return ((20 + 80 * np.minimum(2 * phase, 2 - 2 * phase)) * MIB).astype(np.int64)


def _interval(value: float) -> dict[str, Any]:
    samples = [value * 0.95, value, value * 1.08]
    return {"median": value, "low": samples[0], "high": samples[2], "samples": samples}


def _latency(slower: float) -> dict[str, Any]:
    names = ("p50_ns", "p90_ns", "p99_ns", "p99_9_ns", "p99_99_ns", "max_ns", "mean_ns")
    values = (40, 60, 300, 2_000, 20_000, 150_000, 55)
    kinds = {
        kind: {"count": 5000}
        | {name: _interval(value * slower) for name, value in zip(names, values, strict=True)}
        for kind in ("alloc", "free")
    }
    causes = {"served from cache": {"count": 4000, "total_ns": 160_000}}
    return {**kinds, "causes": causes}


def write_result(
    folder: Path,
    name: str = "caching",
    /,
    *,
    overhead: float = 0.2,
    slower: float = 1.0,
    status: str = "ok",
    buckets: int = 400,
    timed: bool = True,
    trace: dict[str, Any] | None = None,
    **changed: Any,
) -> Path:
    """Write a result into `folder`/`name`.

    Args:
        folder: holds the results.
        name: of the cell and of its allocator.
        overhead: reserved bytes over the peak of live ones, as a share of the peak.
        slower: factor on all times.
        status: the outcome; ``out_of_memory`` ends the timeline in its middle, ``crashed`` leaves
            no timeline at all.
        buckets: rows of the timeline.
        timed: whether there are latencies.
        trace: fields of the trace that differ.
        changed: fields of cell.json that differ.
    """
    target = folder / name
    target.mkdir(parents=True)
    live = _live(buckets)
    if status == "out_of_memory":
        live = live[: buckets // 2]
    reserved = np.maximum.accumulate(live) + int(overhead * live.max())
    allocated = live + live // 50
    columns: dict[str, Any] = {
        "event_first": np.arange(len(live)) * 25,
        "event_last": np.arange(len(live)) * 25 + 24,
        "time_ns": (np.arange(len(live)) * 2.5e6).astype(np.int64),
    }
    series = (live, live, allocated, allocated, reserved, np.full(len(live), 7))
    for column, values in zip(NAMES, series, strict=True):
        columns[f"{column}_min"] = values
        columns[f"{column}_max"] = values
    columns |= {"phase": ["forward"] * len(live), "step": np.zeros(len(live), np.int32)}
    no_timeline = status in ("crashed", "timed_out", "unavailable")
    if no_timeline:
        columns = {column: [] for column in columns}
        timed = False
    pq.write_table(pa.table(columns), target / "timeline.parquet")

    edges = 10 ** (1 + np.arange(61) / 12) * slower
    shape = np.exp(-(((np.arange(60) - 8) / 4.0) ** 2)) * 5000 + np.where(np.arange(60) < 45, 2, 0)
    histogram: dict[str, list[Any]] = {
        part: [] for part in ("state", "kind", "cause", "bucket_low_ns", "bucket_high_ns", "count")
    }
    for state in ("cold", "steady") if timed else ():
        for kind in ("alloc", "free"):
            for low, high, calls in zip(edges[:-1], edges[1:], shape.astype(int), strict=True):
                row = (state, kind, "served from cache", low, high, int(calls))
                for part, value in zip(histogram, row, strict=True):
                    histogram[part].append(value)
    pq.write_table(pa.table(histogram), target / "latency.parquet")
    blocks = ("moment", "segment", "segment_address", "segment_size", "stream", "pool", "offset")
    blocks += ("size", "requested", "state", "alloc_event", "id", "scope", "stack")
    pq.write_table(pa.table({column: [] for column in blocks}), target / "blocks.parquet")

    peaks = {
        column: {"bytes": int(values.max()), "event": 25, "time_ns": 2_500_000}
        for column, values in zip(NAMES[:-1], series, strict=False)
    }
    oom = {
        "event": len(live) * 25 - 1,
        "time_ns": 500_000_000,
        "requested": 512 * MIB,
        "allocated": int(allocated[-1]),
        "reserved": int(reserved[-1]),
        "active": int(allocated[-1]),
        "largest_free": 3 * MIB,
        "device_free": 100 * MIB,
        "live_requested": int(live[-1]),
    }
    info: dict[str, Any] = {
        "format_version": 1,
        "key": {"name": name},
        "name": name,
        "label": name,
        "trace": {
            "path": "traces/synthetic.parquet",
            "fingerprint": "5f" * 16,
            "program": ["train.py", "--steps", "5"],
            "events": 10_000,
            "device": "cpu",
            "recorded_kind": "cpu",
            "complete": True,
            "lost_events": 0,
            "duration_ns": 1_000_000_000,
            "step_count": 5,
            "peak_live_bytes": int(_live(buckets).max()),
        }
        | (trace or {}),
        "allocator": {"name": name, "settings": {}, "kind": "cpu", "latency_source": "ours"},
        "backend": {"name": "host", "is_model": False},
        "as_if": False,
        "capacity": {"bytes": None, "source": "unlimited"},
        "completion": "recorded",
        "outcome": {
            "status": status,
            "reason": None if status == "ok" else "synthetic",
            "oom": oom if status == "out_of_memory" else None,
        },
        "memory": None
        if no_timeline
        else {
            "peaks": peaks,
            "finals": {column: peak["bytes"] for column, peak in peaks.items()},
            "unused_share": overhead / (1 + overhead),
            "reserved_meaning": "bytes of all segments taken from the device",
            "driver_calls": {"alloc": 12, "free": 3},
            "counters": {"hits": 4000},
            "rss_growth_bytes": 120 * MIB,
            "minor_faults": 30_000,
            "major_faults": 0,
        },
        "latency": {
            "source": "ours",
            "states": {"cold": _latency(2 * slower), "steady": _latency(slower)},
            "slowest": [],
        }
        if timed
        else None,
        "throughput": {
            state: {
                "events_per_s": _interval(2.2e7 / slower),
                "ns_per_event": _interval(45 * slower),
            }
            for state in ("cold", "steady")
        }
        if timed
        else {},
        "harness": {"clock_cost_ns": 11.5, "ns_per_event": 1.9},
        "digests": {"cold": "00", "steady": "11"},
        "processes": 3,
        "machine": {
            "cpu": "Synthetic CPU",
            "cores": 4,
            "governor": None,
            "load_average": [0.1, 0.2, 0.3],
            "memory_bytes": 16 * 2**30,
        },
        "versions": {"workbench": "0.1.0", "python": "3.11.0"},
        "warnings": [],
        "command": f"wb replay traces/synthetic.parquet --allocator {name}",
        "created": "2026-01-02T03:04:05+00:00",
    }
    (target / "cell.json").write_text(json.dumps(info | changed), encoding="utf-8")
    return target


@pytest.fixture
def make_result() -> Callable[..., Path]:
    """The function `write_result`."""
    return write_result


@pytest.fixture
def synthetic_results(tmp_path: Path) -> Path:
    """Four results: one ordinary, one frugal, one as-if on a model, one out of memory."""
    folder = tmp_path / "results"
    write_result(folder, "cpu-caching", overhead=0.35, slower=1.4)
    write_result(folder, "direct", overhead=0.0, slower=40)
    model = {"name": "simulated", "is_model": True}
    write_result(folder, "caching", overhead=0.12, as_if=True, backend=model)
    write_result(
        folder,
        "caching-80MiB",
        label="caching",
        overhead=0.12,
        as_if=True,
        backend=model,
        status="out_of_memory",
        capacity={"bytes": 80 * MIB, "source": "option"},
        warnings=["The steady runs differ by 40% of their median: the machine was noisy."],
    )
    return folder
