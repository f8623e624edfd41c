"""Pinned host memory that newer releases put into a snapshot becomes a device of the trace."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import snapshot_maker as maker

from workbench.importing import import_file
from workbench.recorders.trace import open_trace

MIB = 2**20


def entry(action: str, address: int, size: int, time_us: int) -> dict[str, Any]:
    frames = [{"filename": "loader.py", "line": 7, "name": "pin"}]
    return {"action": action, "addr": address, "size": size, "stream": 0, "time_us": time_us,
            "frames": frames}  # fmt: skip


def test_pinned_memory_is_read_beside_the_device(tmp_path: Path) -> None:
    snapshot = maker.newest_shape(
        maker.make_snapshot([("alloc", 0, MIB, 0), ("alloc", 1, MIB, 0), ("free", 0, 0, 0)])
    )
    first = snapshot["device_traces"][0][0]["time_us"]
    snapshot["host_traces"] = [
        entry("free_requested", 0x9000, 64, first),  # of before the history
        entry("alloc", 0x1000, 4096, first + 1),
        entry("alloc", 0x3000, 100, first + 2),
        entry("free_requested", 0x1000, 4096, first + 25),
        entry("free_completed", 0x1000, 4096, first + 26),
        entry("alloc", 0x1000, 512, first + 27),
    ]
    report = import_file(maker.save(snapshot, tmp_path / "s.pickle"), tmp_path / "s.parquet")
    assert [check["kind"] for check in report.checks] == ["exact"]
    assert any("pinned" in note for note in report.notes)
    (file,) = open_trace(tmp_path / "s.parquet").files
    rows = [row for batch in file.batches() for row in batch.to_pylist()]
    pinned = [(row["event"], row["size"]) for row in rows if row["device"] == "pinned"]
    assert pinned == [("alloc", 4096), ("alloc", 100), ("free", 4096), ("alloc", 512)]
    assert [row["time_ns"] for row in rows] == sorted(row["time_ns"] for row in rows)
    assert file.metadata["unmatched_frees"] == 1
    assert file.metadata["recorded"] == ["cuda:0", "pinned"]
    assert sum(row["event"] == "alloc" and row["device"] == "cuda:0" for row in rows) == 2
