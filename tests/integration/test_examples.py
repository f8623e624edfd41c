"""The examples train: they run without a download, the same every time, and the loss falls."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("torch", reason="the examples need PyTorch")

EXAMPLES = Path(__file__).parents[2] / "examples"


def losses(name: str, steps: int, folder: Path) -> list[float]:
    run = subprocess.run(
        [sys.executable, "-W", "error", EXAMPLES / name, "--steps", str(steps)],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    assert run.stderr == ""
    return [float(loss) for loss in re.findall(r"loss (\S+)", run.stdout)]


@pytest.mark.torch
@pytest.mark.parametrize(
    "name", sorted(path.name for path in EXAMPLES.glob("*.py")), ids=lambda name: name[:-3]
)
def test_the_loss_falls_and_is_the_same_every_time(name: str, tmp_path: Path) -> None:
    steps = 14
    first = losses(name, steps, tmp_path)
    assert len(first) == steps
    assert sum(first[-4:]) < 0.9 * sum(first[:4])
    assert losses(name, 3, tmp_path) == first[:3]
    assert not list(tmp_path.iterdir())
