"""Programs with several threads: recorded, and replayed in every order."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from command_line import wb

import workbench
from workbench.common.errors import UsageError
from workbench.replay import _engine

MakeTrace = Callable[..., Path]

# Two threads make batches, the main thread computes with them and frees them.
PROGRAM = """
import queue
import threading

import torch

torch.set_num_threads(1)
batches = queue.Queue(maxsize=4)

def load(seed):
    generator = torch.Generator().manual_seed(seed)
    for number in range(30):
        raw = torch.rand(64, 128 + seed, generator=generator)
        batches.put((raw * 2).clone())
    batches.put(None)

threads = [threading.Thread(target=load, args=(seed,)) for seed in (1, 2)]
for thread in threads:
    thread.start()
ended = 0
while ended < 2:
    batch = batches.get()
    if batch is None:
        ended += 1
        continue
    (batch @ batch.T).relu().sum().item()
for thread in threads:
    thread.join()
print("done")
"""


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("torch")
    folder = tmp_path_factory.mktemp("threads")
    (folder / "loader.py").write_text(PROGRAM)
    done = wb(folder, "record", "-o", "run.parquet", "loader.py")
    assert (done.returncode, "done" in done.stdout) == (0, True), done.stderr
    return folder / "run.parquet"


def cpu_allocators() -> list[str]:
    return [
        info["name"] + (":on_mismatch:fallback" if info["runs_plan"] else "")
        for info in _engine.allocators()
        if info["kind"] == "cpu" and info["available"] and not info["needs_library"]
    ]


def test_the_program_hands_blocks_from_thread_to_thread(recorded: Path) -> None:
    rows = pd.read_parquet(recorded)
    made = rows[rows.event == "alloc"].set_index("id").thread
    freed = rows[rows.event == "free"].set_index("id").thread
    assert rows.thread.nunique() == 3
    assert (made.loc[freed.index] != freed).sum() >= 60


@pytest.mark.parametrize("order", ["global", "handoff", "free"])
def test_a_recorded_program_is_replayed_by_its_threads(recorded: Path, order: str) -> None:
    cells = workbench.replay(recorded, cpu_allocators(), order=order, repeat=2).cells
    assert len(cells) == len(cpu_allocators())
    for cell in cells:
        info = cell.info
        assert info["outcome"]["status"] == "ok", (info["label"], info["outcome"])
        assert info["order"] == order
        assert info["trace"]["threads"] == 3
        finals = info["memory"]["finals"]
        peak = info["memory"]["peaks"]["live_requested"]["bytes"]
        if order == "global":
            assert peak == info["trace"]["peak_live_bytes"]
            assert set(info["digests"]) == {"cold", "steady"}
            assert "order" not in info["key"]
            assert len(cell.blocks)
        else:
            assert peak > 0
            assert info["digests"] == {}
            assert info["key"]["order"] == order
            assert info["name"].endswith(f"order-{order}")
            assert len(cell.blocks) == 0
            assert any("3 threads in the order" in warning for warning in info["warnings"])
            assert info["memory"]["unused_share"] is not None
        # What the program still holds at its end is the same whoever came first.
        calls = info["latency"]["states"]["steady"]
        events = calls["alloc"]["count"] + calls["free"]["count"]
        assert events == info["trace"]["events"]
        assert finals["live_requested"] == _left_over(recorded)
        threads = info["latency"]["threads"]["steady"]
        assert len(threads) == 3
        assert (
            sum(
                thread[kind]["count"]
                for thread in threads.values()
                for kind in thread
                if kind != "lock_wait"
            )
            == events
        )
        waited = sum(thread["lock_wait"]["count"] for thread in threads.values())
        assert (order != "global") or waited == 0
        assert int(cell.timeline.event_last.max()) < info["trace"]["rows"]


def _left_over(path: Path) -> int:
    rows = pd.read_parquet(path)
    sums = rows[rows["device"] == "cpu"].groupby("event")["size"].sum()
    return int(sums["alloc"] - sums["free"])


def test_the_command_shows_threads_and_says_what_the_order_means(recorded: Path) -> None:
    done = wb(
        *(recorded.parent, "replay", "run.parquet", "-a", "direct", "-a", "cpu-caching"),
        *("--order", "handoff", "--repeat", "1", "-o", "out", "--html", "page.html"),
    )
    assert done.returncode == 0, done.stderr
    for words in ("Latency by recorded thread", "cpu-caching, handoff", "waited for a lock"):
        assert words in done.stdout
    assert "Replayed by 3 threads in the order handoff" in done.stdout
    assert "by recorded thread" in (recorded.parent / "page.html").read_text()


def test_an_unknown_order_is_refused(make_trace: MakeTrace, tmp_path: Path) -> None:
    make_trace()
    done = wb(tmp_path, "replay", "run.parquet", "-a", "direct", "--order", "sideways")
    assert done.returncode == 2
    assert "--order 'sideways' is not known; write global, handoff or free" in done.stderr


def test_orders_are_cells_of_their_own_and_have_no_snapshot(
    make_trace: MakeTrace, tmp_path: Path
) -> None:
    rows = [("alloc", 0, 100), ("alloc", 1, 50), ("free", 0, 100), ("free", 1, 50)]
    path = make_trace(rows, thread=[0, 1, 1, 0])
    for order in ("global", "handoff", "free"):
        workbench.replay(path, "direct", order=order, repeat=1, output=tmp_path / "out")
    assert len(list((tmp_path / "out").iterdir())) == 3
    cell = workbench.replay(path, "direct", order="free", repeat=1)[0]
    with pytest.raises(UsageError, match="several threads"):
        cell.snapshot_at("peak")


def test_one_thread_is_the_same_in_every_order(make_trace: MakeTrace) -> None:
    path = make_trace()
    found: list[Any] = []
    for order in ("global", "handoff", "free"):
        info = workbench.replay(path, "caching", order=order, repeat=1)[0].info
        found.append(json.dumps([info["digests"], info["memory"]["peaks"]], sort_keys=True))
        assert "threads" not in info["latency"]
        said = any("changes nothing" in warning for warning in info["warnings"])
        assert said == (order != "global")
    assert len(set(found)) == 1


def test_out_of_memory_ends_every_thread(make_trace: MakeTrace) -> None:
    rows = [("alloc", number, 1 << 20) for number in range(8)]
    path = make_trace(rows, thread=[0, 1] * 4)
    for order in ("handoff", "free"):
        info = workbench.replay(path, "direct", order=order, repeat=1, capacity="4MiB")[0].info
        assert info["outcome"]["status"] == "out_of_memory"
        assert info["outcome"]["oom"]["reserved"] == 4 << 20
        assert info["outcome"]["oom"]["count"] == 1


def test_what_takes_no_locks_is_left_to_one_thread(recorded: Path) -> None:
    done = wb(
        *(recorded.parent, "replay", "run.parquet", "-a", "torch-plan", "--order", "free"),
        *("--repeat", "1", "-o", "plan", "--json"),
    )
    assert done.returncode == 1, done.stderr
    outcome = json.loads(done.stdout)["cells"][0]["outcome"]
    assert outcome["status"] == "unavailable"
    assert "one thread at a time may call it" in outcome["reason"]
