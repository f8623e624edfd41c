"""Processes that run many candidates: in order, whatever becomes of a process."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import psutil
import pytest
from searches import LocalPool, subject_of

from workbench.common.errors import RunError
from workbench.replay.search import Candidate, Pool

MIB = 2**20
OPERATIONS = [("alloc", number, (1 + number % 9) * MIB, 0) for number in range(200)]
SETTINGS = ["", "expandable_segments:True", "max_split_size_mb:32", "roundup_power2_divisions:4"]
# A worker that does as its settings say, instead of replaying.
ODD_WORKER = """
import os, signal, sys, time
from workbench.replay import search_worker
measure = search_worker.measure
def odd(events, task):
    if task["settings"] == "crash":
        print("the last words", file=sys.stderr, flush=True)
        os.kill(os.getpid(), signal.SIGSEGV)
    if task["settings"] == "exit":
        os._exit(3)
    if task["settings"] == "hang":
        time.sleep(1000)
    if task["settings"] == "talk":
        print("what a library says", flush=True)
        os.write(1, b"and one in C")
        return measure(events, {**task, "settings": ""})
    return measure(events, task)
search_worker.measure = odd
search_worker.main()
"""
ODD = (sys.executable, "-P", "-c", ODD_WORKER)


def candidates(*settings: str, capacity: int | None = None) -> list[Candidate]:
    return [Candidate("one", "caching", text, capacity) for text in settings]


@pytest.mark.parametrize("workers", [1, 3])
def test_outcomes_come_in_order_and_are_those_of_replays_here(tmp_path: Path, workers: int) -> None:
    subject = subject_of(OPERATIONS)
    asked = candidates(*SETTINGS * 3) + candidates(*SETTINGS, capacity=100 * MIB)
    seen: list[int] = []
    with Pool({"one": subject.traffic}, tmp_path, workers=workers) as pool:
        found = pool.run(asked, seen.append)
        assert pool.run([]) == []
        assert pool.run(asked[:1]) == found[:1]
    assert found == LocalPool(subject).run(asked)
    assert seen == list(range(1, len(asked) + 1))
    assert {one.status for one in found} == {"ok", "out_of_memory"}


def test_several_traffics_share_the_processes(tmp_path: Path) -> None:
    traffics = {
        name: subject_of([("alloc", 0, size, 0)]).traffic
        for name, size in (("one", MIB), ("other", 50 * MIB))
    }
    with Pool(traffics, tmp_path, workers=1) as pool:
        found = pool.run([Candidate("other", "caching"), Candidate("one", "caching")])
    assert [one.peak_reserved for one in found] == [50 * MIB, 2 * MIB]


def test_a_process_that_crashes_is_an_outcome_and_the_others_go_on(tmp_path: Path) -> None:
    subject = subject_of(OPERATIONS)
    with Pool({"one": subject.traffic}, tmp_path, workers=2, command=ODD) as pool:
        found = pool.run(candidates("", "crash", "exit", "nonsense:1", *SETTINGS))
    assert [one.status for one in found] == ["ok", "crashed", "crashed", "refused", *["ok"] * 4]
    assert "signal SIGSEGV" in str(found[1].reason)
    assert "the last words" in str(found[1].reason)
    assert "exit code 3" in str(found[2].reason)
    assert "nonsense" in str(found[3].reason)
    assert not found[1].measured


def test_a_process_that_hangs_is_stopped_and_is_an_outcome(tmp_path: Path) -> None:
    subject = subject_of(OPERATIONS)
    with Pool({"one": subject.traffic}, tmp_path, workers=2, timeout=3, command=ODD) as pool:
        found = pool.run(candidates("hang", *SETTINGS))
    assert [one.status for one in found] == ["timed_out", *["ok"] * 4]
    assert "allow more with --timeout" in str(found[0].reason)


def test_what_a_worker_prints_is_no_answer(tmp_path: Path) -> None:
    subject = subject_of(OPERATIONS)
    with Pool({"one": subject.traffic}, tmp_path, workers=1, command=ODD) as pool:
        assert [one.status for one in pool.run(candidates("talk", ""))] == ["ok", "ok"]


def test_workers_that_cannot_start_are_one_sentence(tmp_path: Path) -> None:
    command = (sys.executable, "-c", "import sys; sys.exit('no luck today')")
    traffic = subject_of(OPERATIONS).traffic
    with (
        Pool({"one": traffic}, tmp_path, command=command) as pool,
        pytest.raises(RunError, match=r"did not start: .*exit code 1.*no luck today"),
    ):
        pool.run(candidates(""))


def test_no_process_outlives_the_pool(tmp_path: Path) -> None:
    traffic = subject_of(OPERATIONS).traffic
    before = set(psutil.Process().children(recursive=True))

    def interrupt(number: int) -> None:
        raise KeyboardInterrupt

    with (
        pytest.raises(KeyboardInterrupt),
        Pool({"one": traffic}, tmp_path, workers=3, command=ODD) as pool,
    ):
        pool.run(candidates("", "hang", "hang", ""), interrupt)
    deadline = time.monotonic() + 30
    while set(psutil.Process().children(recursive=True)) - before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert set(psutil.Process().children(recursive=True)) - before == set()
