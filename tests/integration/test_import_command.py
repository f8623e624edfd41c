"""``wb import`` as a user meets it, on files that PyTorch's profiler made here."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from workbench.recorders.importers import discover

FUZZER = Path(__file__).parents[1] / "fuzz" / "fuzz_importers.py"
PROGRAM = """
import sys
import torch
from torch.profiler import ProfilerActivity, profile

with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as made:
    left = torch.empty(1000, dtype=torch.float32)
    product = torch.ones(64, 64) @ torch.ones(64, 64)
    del left, product
    kept = torch.empty(500, dtype=torch.uint8)
made.export_chrome_trace(sys.argv[1])
"""
PLAN = "id,lower,upper,size\n1,0,4,10\n2,4,6,20\n"


def wb(*arguments: object, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-P", "-m", "workbench", *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=folder,
        env={**os.environ, "COLUMNS": "120", "NO_COLOR": "1"},
        timeout=120,
        check=False,
    )


@pytest.mark.torch
@pytest.mark.parametrize("name", ["profile.json", "profile.json.gz"])
def test_a_profile_made_by_pytorch(name: str, tmp_path: Path) -> None:
    pytest.importorskip("torch")
    subprocess.run([sys.executable, "-P", "-c", PROGRAM, name], cwd=tmp_path, check=True)
    done = wb("import", name, "-o", "run.parquet", folder=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert "read as torch-profiler" in done.stdout
    assert done.stdout.endswith("Next: wb info run.parquet\n")
    rows = pq.read_table(tmp_path / "run.parquet").to_pylist()
    made = [(row["size"], row["scope"]) for row in rows if row["event"] == "alloc"]
    assert made[0] == (4000, "aten::empty")
    assert made[-1] == (500, "aten::empty")
    assert [size for size, _ in made].count(64 * 64 * 4) == 3
    assert (64 * 64 * 4, "aten::mm") in made
    # All is freed but what was kept.
    live = {row["id"]: row["size"] for row in rows if row["event"] == "alloc"}
    for row in rows:
        if row["event"] == "free":
            assert live.pop(row["id"]) == row["size"]
    assert list(live.values()) in ([], [500])  # its free may come before the profile ends
    info = wb("info", "run.parquet", folder=tmp_path)
    assert f"kind torch-profiler, file {name}" in info.stdout
    assert "tells no streams" in info.stdout


def test_json_and_the_list_of_kinds(tmp_path: Path) -> None:
    (tmp_path / "plan.csv").write_text(PLAN)
    done = wb("import", "plan.csv", "--json", folder=tmp_path)
    document = json.loads(done.stdout)
    assert document["kind"] == "minimalloc"
    assert document["output"] == "plan.parquet"
    assert (tmp_path / "plan.parquet").is_file()
    kinds = wb("import", "--kinds", folder=tmp_path)
    assert {line.split()[0] for line in kinds.stdout.splitlines()} >= {"minimalloc", "rmm"}


def test_errors_are_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "plan.csv").write_text(PLAN)
    for arguments, words in [
        (["gone.csv"], "gone.csv: cannot be read"),
        (["plan.csv", "-o", "no/run.parquet"], "does not exist"),
        (["plan.csv", "-o", "."], "is a folder"),
        (["plan.csv", "--kind", "other"], "the kinds are"),
    ]:
        done = wb("import", *arguments, folder=tmp_path)
        assert (done.returncode, done.stdout) == (2, "")
        assert words in done.stderr
        assert done.stderr.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["plan.csv"]


@pytest.mark.parametrize("kind", sorted(discover()))
def test_a_few_seconds_of_fuzzing(kind: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-P", FUZZER, "--importer", kind, "--seconds", "3", "--no-coverage"],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "no failure" in done.stdout
    assert done.stderr == ""


def test_a_full_disk_is_one_sentence_and_leaves_nothing(tmp_path: Path) -> None:
    lines = [f"{n},{n},{n + 2},{(n * 7919) % 65521 + 1}" for n in range(20_000)]
    (tmp_path / "plan.csv").write_text("\n".join([PLAN.splitlines()[0], *lines, ""]))
    code = (
        "import resource, signal, sys\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))\n"
        "sys.argv = ['wb', 'import', 'plan.csv', '-o', 'run.parquet']\n"
        "from workbench.cli import main\nmain()\n"
    )
    done = subprocess.run(
        [sys.executable, "-P", "-B", "-c", code],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr.startswith(
        "wb: run.parquet: the trace could not be written (File too large)"
    )
    assert [path.name for path in tmp_path.iterdir()] == ["plan.csv"]


def test_an_import_that_is_ended_leaves_nothing(tmp_path: Path) -> None:
    with (tmp_path / "plan.csv").open("w") as file:
        file.write(PLAN)
        file.writelines(f"{n},{n},{n + 2},8\n" for n in range(1_000_000))
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", "workbench", "import", "plan.csv", "-o", "run.parquet"],
        cwd=tmp_path, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    while process.poll() is None and not list(tmp_path.glob(".run*")):
        time.sleep(0.005)
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate()
    if process.returncode == 0:
        pytest.skip("the import was done before it could be ended")
    assert (process.returncode, said) == (143, "wb: terminated\n")
    assert [path.name for path in tmp_path.iterdir()] == ["plan.csv"]
