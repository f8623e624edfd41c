"""Traces for the tests that replay them: made up, and recorded from the examples."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

EXAMPLES = sorted((Path(__file__).parents[2] / "examples").glob("*.py"))
STEPS = 6
KINDS = ("alloc", "free")
Row = tuple[str, int, int]


def traffic(count: int, *, first_id: int = 0, size: int = 1000) -> list[Row]:
    """`count` allocations of growing size, each freed three allocations later, some never."""
    rows: list[Row] = []
    for number in range(count):
        rows.append(("alloc", first_id + number, size + 64 * (number % 7)))
        old = number - 3
        if old >= 0 and old % 10:
            rows.append(("free", first_id + old, size + 64 * (old % 7)))
    return rows


def write_trace(path: Path, rows: Iterable[Row], **changed: Any) -> Path:
    """Write a trace of `rows`: event, id, size.

    Args:
        path: the file.
        rows: events on one device, one microsecond apart.
        changed: other values for ``device``, ``thread``, ``stream``, ``scope`` … of every row, or
            a list with one for each; and ``metadata``.
    """
    from workbench.recorders.trace import TraceMetadata, TraceWriter

    listed = list(rows)
    count = len(listed)
    metadata = TraceMetadata({"program": ["train.py"], **changed.pop("metadata", {})})
    columns: dict[str, Any] = {
        "time_ns": [1000 * number for number in range(count)],
        "event": [event for event, _, _ in listed],
        "id": [id_ for _, id_, _ in listed],
        "size": [size for _, _, size in listed],
    }
    defaults = {"device": "cpu", "stream": 0, "thread": 0, "pool": 0, "step": 0}
    for name, value in {**defaults, "phase": "forward", **changed}.items():
        columns[name] = value if isinstance(value, list) else [value] * count
    with TraceWriter(path, metadata) as writer:
        if count:
            writer.write(columns)
    return path


@pytest.fixture
def make_trace(tmp_path: Path) -> Callable[..., Path]:
    """Writes a trace into the test's folder: ``make_trace(rows, name="run", device="cpu")``."""

    def make(rows: Iterable[Row] | None = None, name: str = "run", **changed: Any) -> Path:
        return write_trace(
            tmp_path / f"{name}.parquet", traffic(300) if rows is None else rows, **changed
        )

    return make


@pytest.fixture(scope="session", params=EXAMPLES, ids=lambda path: path.stem)
def example_trace(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recording of some steps of each example, made once; needs torch."""
    folder = tmp_path_factory.mktemp(request.param.stem)
    trace = folder / "run.parquet"
    recording = [sys.executable, "-P", "-m", "workbench", "record", "-o", str(trace)]
    done = subprocess.run(
        [*recording, str(request.param), "--steps", str(STEPS)],
        cwd=folder,
        env={key: text for key, text in os.environ.items() if key != "PYTHONSAFEPATH"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return trace
