"""`caching` under all settings against PyTorch's own binary: every column of every row."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from engine_events import read_golden

from workbench.common.units import parse_size
from workbench.replay import _engine

GOLDEN = Path(__file__).parents[1] / "data" / "caching_golden"
RUNS = json.loads((GOLDEN / "manifest.json").read_text(encoding="utf-8"))


def replay(run: dict[str, Any]) -> _engine.Replay:
    return _engine.Replay(
        read_golden(GOLDEN / "traces" / f"{run['trace']}.csv"),
        "caching",
        run["settings"],
        backend="simulated",
        capacity=parse_size(run["capacity"], "capacity"),
        after_oom="continue",
    )


@pytest.mark.parametrize("run", RUNS, ids=lambda run: Path(run["file"]).stem)
def test_every_column_of_every_row_is_the_originals(run: dict[str, Any]) -> None:
    memory = replay(run).memory(full=True)
    golden = pq.read_table(GOLDEN / run["file"])
    assert golden.num_rows == run["events"] == len(memory["timeline"]["oom"])
    for name in golden.column_names:
        if name == "event":
            continue
        expected = golden.column(name).to_numpy().astype(np.int64)
        ours = memory["timeline"][name].astype(np.int64)
        different = np.flatnonzero(expected != ours)
        assert not different.size, f"{name} differs from event {different[0]} on"
    assert memory["peaks"]["reserved"]["bytes"] == run["peak_reserved"]
    assert memory["counters"]["ooms"] == run["ooms"]  # rejections are not counted here
    assert memory["ooms"] == int(golden.column("oom").to_numpy().astype(bool).sum())
    assert memory["counters"]["retries"] == run["retries"]


@pytest.mark.parametrize("run", RUNS, ids=lambda run: Path(run["file"]).stem)
def test_decisions_are_the_same_in_every_pass_of_a_state(run: dict[str, Any]) -> None:
    made = replay(run)
    assert made.memory()["digest"] == made.timed("cold")["digest"]
    assert made.timed("steady")["digest"] == made.timed("steady")["digest"]
