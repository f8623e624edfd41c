"""What is recorded is what PyTorch's own profiler reports, event by event."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from itertools import accumulate
from pathlib import Path

import pytest

pytest.importorskip("torch")

from workbench.recorders.trace import open_trace

pytestmark = pytest.mark.torch

EXAMPLES = Path(__file__).parents[2] / "examples"
SENTINEL = 4 * 123_457  # bytes no example asks for

PROFILED = f"""
import json, runpy, sys
import torch
script, out = sys.argv[1], sys.argv[2]
sys.argv = [script, "--steps", "2"]
torch.set_num_threads(1)
torch.empty({SENTINEL // 4})
with torch.profiler.profile(
    activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
) as profile:
    runpy.run_path(script, run_name="__main__")
torch.empty({SENTINEL // 4})
events = [e for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"]
events.sort(key=lambda event: event.start_ns())
with open(out, "w") as file:
    json.dump([event.nbytes() for event in events], file)
"""


def signed_sizes(trace: Path) -> list[int]:
    """Bytes of each event between the two sentinels; frees negative."""
    found: list[int] = []
    for batch in open_trace(str(trace)).files[0].batches(columns=["event", "size"]):
        rows = batch.to_pydict()
        found += [
            size if event == "alloc" else -size
            for event, size in zip(rows["event"], rows["size"], strict=True)
        ]
    first = found.index(-SENTINEL)
    return found[first + 1 : found.index(SENTINEL, first)]


def profiled(folder: Path, name: str, command: list[str]) -> list[int]:
    """What the profiler reports of two steps of an example, run by `command`."""
    (folder / "profiled.py").write_text(PROFILED, encoding="utf-8")
    variables = {key: text for key, text in os.environ.items() if key != "PYTHONSAFEPATH"}
    subprocess.run(
        [*command, "profiled.py", str(EXAMPLES / f"{name}.py"), "reported.json"],
        cwd=folder, env=variables, check=True, capture_output=True,
    )  # fmt: skip
    reported: list[int] = json.loads((folder / "reported.json").read_text(encoding="utf-8"))
    return reported


@pytest.mark.parametrize("name", ["transformer_lm", "conv_net", "variable_length"])
def test_the_trace_equals_the_profilers_report(tmp_path: Path, name: str) -> None:
    wb = [sys.executable, "-m", "workbench", "record", "-o", "run.parquet"]
    reported = profiled(tmp_path, name, wb)
    traced = signed_sizes(tmp_path / "run.parquet")
    assert len(traced) > 500
    assert traced == [size for size in reported if size]
    live, reported_live = list(accumulate(traced)), list(accumulate(reported))
    assert max(live) == max(reported_live)
    assert live[-1] == reported_live[-1]
    if name == "transformer_lm":  # the report itself goes on as without the hook
        assert reported == profiled(tmp_path, name, [sys.executable])
