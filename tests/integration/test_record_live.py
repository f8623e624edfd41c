"""`wb record --ring` and `--convert live`: work on the spool while the program runs, and deaths."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytest.importorskip("torch")

from workbench.recorders.trace import open_trace

pytestmark = pytest.mark.torch

WB = [sys.executable, "-m", "workbench"]
EVENTS = 400_000
# Sizes tell which allocation it is; what is kept is live to the end.
LOOP = """
import os, sys, torch
kept = [torch.empty(100_000 + i, dtype=torch.uint8) for i in range(20)]
for i in range({count}):
    torch.empty(i % 5000 + 1, dtype=torch.uint8)
{end}
"""
KILL = "os.kill(os.getpid(), 9)"
WAIT = "open('done', 'w').close()\nimport time; time.sleep(300)"


def variables() -> dict[str, str]:
    return {name: text for name, text in os.environ.items() if name != "PYTHONSAFEPATH"}


def start(
    folder: Path, *options: str, end: str = "", count: int = EVENTS
) -> subprocess.Popen[bytes]:
    (folder / "loop.py").write_text(LOOP.format(count=count, end=end))
    with (folder / "stderr").open("wb") as stderr:
        return subprocess.Popen(
            [*WB, "record", "-o", "run.parquet", *options, "loop.py"],
            cwd=folder,
            env=variables(),
            stderr=stderr,
        )


def companion_of(process: int) -> int | None:
    """The process that works on the spool of this `wb record`."""
    children = Path(f"/proc/{process}/task/{process}/children")
    for path in Path(f"/proc/{process}/task").glob("*/children") if children.exists() else ():
        for child in path.read_text().split():
            try:
                line = Path(f"/proc/{child}/cmdline").read_bytes()
            except OSError:
                continue
            if b"workbench.recorders.spool.live" in line:
                return int(child)
    return None


def wait_for(what: object, seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not what():  # type: ignore[operator]
        assert time.monotonic() < end
        time.sleep(0.02)


def kept_sizes(path: Path, event: str) -> list[int]:
    (file,) = open_trace(path).files
    found: list[int] = []
    for batch in file.batches(columns=["event", "size"]):
        rows = batch.to_pydict()
        found += [s for e, s in zip(rows["event"], rows["size"], strict=True) if e == event]
    return found


def loop_sizes(count: int = EVENTS) -> list[int]:
    return [number % 5000 + 1 for number in range(count)]


def of_loop(sizes: list[int]) -> list[int]:
    return [size for size in sizes if size <= 5000]


def test_a_live_conversion_is_the_whole_trace_in_less_disk(tmp_path: Path) -> None:
    run = start(tmp_path, "--convert", "live")
    spool = tmp_path / "run.parquet.spool"
    parts: set[str] = set()
    while run.poll() is None:
        parts |= {path.name for path in spool.glob("process-*/part-*.parquet")}
        time.sleep(0.02)
    assert run.returncode == 0
    assert parts
    assert of_loop(kept_sizes(tmp_path / "run.parquet", "alloc")) == loop_sizes()
    about = open_trace(tmp_path / "run.parquet").metadata
    assert (about["complete"], about["lost_events"], about["unmatched_frees"]) == (True, 0, 0)
    assert not spool.exists()


@pytest.mark.parametrize("who", ["program", "companion", "both"])
def test_whoever_is_killed_a_live_conversion_loses_nothing(tmp_path: Path, who: str) -> None:
    run = start(tmp_path, "--convert", "live", end=KILL if who != "companion" else "")
    if who != "program":
        spool = tmp_path / "run.parquet.spool"
        wait_for(lambda: list(spool.glob("process-*/part-0.parquet")))
        companion = companion_of(run.pid)
        if companion is not None:
            os.kill(companion, signal.SIGKILL)
    assert run.wait() == (137 if who != "companion" else 0)
    assert of_loop(kept_sizes(tmp_path / "run.parquet", "alloc")) == loop_sizes()
    assert open_trace(tmp_path / "run.parquet").metadata["complete"]


def test_what_a_killed_recording_left_is_recovered_with_its_parts(tmp_path: Path) -> None:
    run = start(tmp_path, "--convert", "live", end=WAIT)
    wait_for((tmp_path / "done").exists)
    spool = tmp_path / "run.parquet.spool"
    wait_for(lambda: list(spool.glob("process-*/part-*.parquet")))
    (process,) = spool.glob("process-*-*")
    os.kill(run.pid, signal.SIGKILL)
    run.wait()
    os.kill(int(process.name.split("-")[1]), signal.SIGKILL)

    def recovered() -> bool:
        """The companion, which holds the lock, takes a moment to see that its parent is gone."""
        done = subprocess.run(
            [*WB, "recover", str(spool)],
            cwd=tmp_path,
            env=variables(),
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0 or "right now" in done.stderr or "still" in done.stderr
        return done.returncode == 0

    wait_for(recovered)
    assert of_loop(kept_sizes(tmp_path / "run.parquet", "alloc")) == loop_sizes()


@pytest.mark.parametrize("killed", [False, True])
def test_a_ring_keeps_the_last_part_and_what_is_live(tmp_path: Path, killed: bool) -> None:
    count = 2 * EVENTS
    run = start(tmp_path, "--ring", "16MiB", end=KILL if killed else "", count=count)
    assert run.wait() == (137 if killed else 0)
    trace = tmp_path / "run.parquet"
    kept = of_loop(kept_sizes(trace, "alloc"))
    assert kept == loop_sizes(count)[-len(kept) :]
    assert 100_000 < len(kept) < count - 100_000
    live = kept_sizes(trace, "live")
    assert {100_000 + number for number in range(20)} <= set(live)
    about = open_trace(trace).metadata
    assert about["complete"]
    assert about["dropped_events"] > 200_000


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        (("--ring", "1MiB"), "too small"),
        (("--ring", "64MiB", "--convert", "live"), "use one of them"),
        (("--convert", "now"), "use end or live"),
    ],
)
def test_wrong_use_is_one_sentence(tmp_path: Path, options: tuple[str, ...], problem: str) -> None:
    run = start(tmp_path, *options)
    assert run.wait() == 2
    assert problem in (tmp_path / "stderr").read_text()
    assert not (tmp_path / "run.parquet.spool").exists()
