"""Several ranks under one `wb record`: one file each, and `wb info` over all."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("torch")

pytestmark = pytest.mark.torch

WB = [sys.executable, "-m", "workbench"]
LAUNCHER = """
import os, subprocess, sys
ranks = [
    subprocess.Popen(
        [sys.executable, "-c", f"import torch; x = torch.ones({1000 * (rank + 1)})"],
        env={**os.environ, "RANK": str(rank), "WORLD_SIZE": "2"},
    )
    for rank in range(2)
]
for rank in ranks:
    assert rank.wait() == 0
import torch
"""


def run(folder: Path, *arguments: str) -> str:
    done = subprocess.run(
        [*WB, *arguments],
        cwd=folder,
        env={name: text for name, text in os.environ.items() if name != "PYTHONSAFEPATH"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_each_rank_has_a_file_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "launch.py").write_text(LAUNCHER)
    (tmp_path / "ranks").mkdir()
    run(tmp_path, "record", "-o", "ranks/run.parquet", "launch.py")
    names = sorted(path.name for path in (tmp_path / "ranks").glob("*"))
    assert names == ["run.parquet", "run.rank-0.parquet", "run.rank-1.parquet"]
    files = json.loads(run(tmp_path, "info", "--json", "ranks"))["files"]
    assert [file["metadata"]["rank"] for file in files] == [None, 0, 1]
    for rank, file in enumerate(files[1:]):
        (device,) = file["devices"]
        assert (device["device"], device["allocated_bytes"]) == ("cpu", 4000 * (rank + 1))
    table = run(tmp_path, "info", "ranks")
    assert all(f"run.rank-{rank}.parquet" in table for rank in range(2))
