"""`async` from a trace to its table: CUDA events, captures, fractions, and what is said of it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from command_line import wb

MakeTrace = Callable[..., Path]
MIB = 2**20


def replayed(folder: Path, *arguments: str) -> dict[str, Any]:
    done = wb(folder, "replay", "run.parquet", "-a", "async", "--repeat", "1", "--json", *arguments)
    assert done.returncode == 0, done.stderr
    (cell,) = json.loads(done.stdout)["cells"]
    assert isinstance(cell, dict)
    return cell


def test_a_cpu_trace_is_replayed_as_if_and_the_pool_is_called_a_model(
    make_trace: MakeTrace, tmp_path: Path
) -> None:
    make_trace()
    cell = replayed(tmp_path)
    memory = cell["memory"]
    assert cell["as_if"]
    assert memory["peaks"]["reserved"]["bytes"] == 32 * MIB
    assert "of which it is a model" in memory["reserved_meaning"]
    assert memory["driver_calls"]["pool_alloc"] > memory["driver_calls"]["pool_free"] > 0
    assert any("the driver's memory pool is a model" in one for one in cell["warnings"])
    assert memory["torch_statistics"]["reserved_bytes.all.peak"] == 32 * MIB


def test_the_events_captures_and_fractions_of_a_trace_reach_it(
    make_trace: MakeTrace, tmp_path: Path
) -> None:
    size = 32 * MIB
    rows = [
        ("alloc", 0, size),
        ("free", 0, size),
        ("event_record", -1, 0),
        ("event_wait", -1, 0),
        ("alloc", 1, size),
        ("capture_begin", -1, 0),
        ("free", 1, size),
        ("capture_end", -1, 0),
        ("set_fraction", -1, 0),
        ("alloc", 2, 600 * MIB),
    ]
    make_trace(
        rows=rows,
        device="cuda:0",
        stream=[0, 0, 0, 1, 1, 1, 0, 1, -1, 0],
        value=[None, None, 40, 40, None, None, None, None, 500_000, None],
    )
    cell = replayed(tmp_path, "--capacity", "1GiB", "--completion", "never")
    # Stream 1 waits for stream 0 and has its chunk.
    assert cell["memory"]["peaks"]["reserved"]["bytes"] == size
    assert any("freed during one once" in one for one in cell["warnings"])
    oom = cell["outcome"]["oom"]
    assert oom["event"] == 9
    assert "limit 512.00 MiB" in oom["message"]
    assert oom["message"] in cell["outcome"]["reason"]
