"""What a library of the user's does to its process, and what becomes of its cell."""

from __future__ import annotations

import ast
import os
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from command_line import wb
from libraries import ROOT, build_library
from trace_maker import write_trace

from workbench.replay import processes, runner
from workbench.replay.job import Options
from workbench.replay.processes import RunOutcome, run_worker
from workbench.replay.runner import replay_traces

EVENTS = [("alloc", 0, 4096), ("alloc", 1, 1000), ("alloc", 2, 100), ("free", 1, 1000)]


@pytest.fixture(scope="module")
def modes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("modes")
    return build_library(ROOT / "tests" / "data" / "library_of_modes.c", folder, "-std=gnu11")


def replayed(folder: Path, library: Path, mode: str = "", **options: Any) -> dict[str, Any]:
    trace = write_trace(folder / "run.parquet", EVENTS)
    name = f"pluggable:{library}" + (f',config:"{mode}"' if mode else "")
    session = replay_traces([str(trace)], [name], folder / "out", Options(repeat=2, **options))
    info: dict[str, Any] = session.results[0].info
    return info


def test_times_of_a_part_of_the_trace_are_none(modes: Path, tmp_path: Path) -> None:
    info = replayed(tmp_path, modes, "null when timed")
    assert info["outcome"]["status"] == "out_of_memory"
    assert "4 of 4 timed passes ran out of memory" in info["outcome"]["reason"]
    assert info["latency"] is None
    assert info["throughput"] == {}


def test_what_only_some_passes_measure_is_not_lost(make_trace: Any, tmp_path: Path) -> None:
    # Of the first process the steady pass, of the second the cold one.
    stub = tmp_path / "stub_worker.py"
    stub.write_text(
        "import pathlib\nfrom workbench.replay import worker\nreal = worker.run\n"
        "def run(task):\n"
        "    result = real(task)\n"
        "    if not task['memory']:\n"
        f"        mark = pathlib.Path({str(tmp_path / 'mark')!r})\n"
        "        state = 'cold' if mark.exists() else 'steady'\n"
        "        mark.touch()\n"
        "        del result['states'][state], result['throughput'][state]\n"
        "        result['outcomes'][state] = 'out_of_memory'\n"
        "    return result\n"
        "worker.run = run\nworker.main()\n"
    )
    options = Options(repeat=2, worker_command=(sys.executable, "-P", str(stub)))
    session = replay_traces([str(make_trace())], ["direct"], tmp_path / "out", options)
    info = session.results[0].info
    assert info["outcome"]["status"] == "out_of_memory"
    assert "2 of 4 timed passes ran out of memory" in info["outcome"]["reason"]
    states = info["latency"]["states"]
    assert {len(states[one]["alloc"]["p50_ns"]["samples"]) for one in ("cold", "steady")} == {1}
    assert {call["process"] for call in info["latency"]["slowest"]} == {0, 1}


def test_a_pass_that_ends_before_the_blocks_are_listed_is_no_fault(
    make_trace: Any, tmp_path: Path
) -> None:
    stub = tmp_path / "stub_worker.py"
    stub.write_text(
        "from workbench.replay import _engine, worker\n"
        "class Replay(_engine.Replay):\n"
        "    def memory(self, *args, **kwargs):\n"
        "        found = super().memory(*args, **kwargs)\n"
        "        return {**found, 'blocks': None}\n"
        "worker._engine.Replay = Replay\nworker.main()\n"
    )
    options = Options(repeat=1, worker_command=(sys.executable, "-P", str(stub)))
    session = replay_traces([str(make_trace())], ["caching"], tmp_path / "out", options)
    assert session.results[0].info["outcome"]["status"] == "ok"
    assert len(session.results[0].blocks) == 0


def test_an_error_of_the_engine_is_not_the_librarys(modes: Path, tmp_path: Path) -> None:
    stub = tmp_path / "stub_worker.py"
    stub.write_text(
        "from workbench.replay import worker\n"
        "def run(task): raise RuntimeError('thread 73 of 100 could not be started')\n"
        "worker.run = run\nworker.main()\n"
    )
    info = replayed(tmp_path, modes, worker_command=(sys.executable, "-P", str(stub)))
    assert info["outcome"]["status"] == "crashed"
    said = "the engine stopped: RuntimeError: thread 73 of 100 could not be started"
    assert info["outcome"]["reason"] == said


def test_a_result_that_cannot_be_written_is_said_to_be_that(modes: Path, tmp_path: Path) -> None:
    info = replayed(tmp_path, modes, "no files")
    assert info["outcome"]["status"] == "crashed"
    assert "File too large" in info["outcome"]["reason"]
    assert "destroy" not in info["outcome"]["reason"]


def test_processes_that_a_library_starts_end_with_its_run(modes: Path, tmp_path: Path) -> None:
    before = set(_waiting(modes))
    assert replayed(tmp_path, modes, "forks")["outcome"]["status"] == "ok"
    for _ in range(100):  # what is killed takes a moment to be gone
        if not set(_waiting(modes)) - before:
            break
        time.sleep(0.05)
    assert not set(_waiting(modes)) - before


def _waiting(library: Path) -> list[str]:
    """Processes that have `library` loaded."""
    found = []
    for maps in Path("/proc").glob("[0-9]*/maps"):
        try:
            if str(library) in maps.read_text():
                found.append(maps.parent.name)
        except OSError:
            continue
    return found


def test_a_hang_in_a_timed_pass_names_the_library(modes: Path, tmp_path: Path) -> None:
    outcome = replayed(tmp_path, modes, "hangs when timed", timeout=2)["outcome"]
    assert outcome["status"] == "timed_out"
    said = f"library {modes}: it did not come back within 2 s in a timed pass; if it is only slow"
    assert outcome["reason"].startswith(said)


@pytest.mark.parametrize("mode", ["hangs at exit", "exit code 5", "chdir"])
def test_what_a_library_does_to_its_process_takes_no_result_away(
    mode: str, modes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(modes.parent)
    info = replayed(tmp_path, Path(modes.name), mode, timeout=20)
    assert info["outcome"] == {"status": "ok", "reason": None, "oom": None}
    assert info["processes"] == 2
    assert info["allocator"]["library"]["path"] == str(modes)
    assert len(info["allocator"]["library"]["blake2b"]) == 32


def test_what_a_library_writes_is_kept_in_bounds(modes: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    line = "import sys\nfor n in range(300_000): print('line', n, file=sys.stderr)\nsys.exit(3)"
    outcome = run_worker({}, folder, 60, (sys.executable, "-P", "-c", line))
    assert outcome.reason == "a run ended with exit code 3 and no result (line 299999)"
    assert not list(folder.iterdir())
    said = replayed(tmp_path, modes, "says much")["outcome"]["reason"]
    assert said.endswith("it crashed in create (signal SIGABRT) (line 199999 of many)")


def test_a_library_that_is_replaced_fails_its_cell(
    modes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    library = tmp_path / "mine.so"
    library.write_bytes(modes.read_bytes())
    runs = []

    def replacing(*args: Any) -> RunOutcome:
        outcome = processes.run_worker(*args)
        runs.append(outcome)
        if len(runs) == 3:
            other = tmp_path / "other.so"
            other.write_bytes(modes.read_bytes() + b"\0")
            other.replace(library)
        return outcome

    monkeypatch.setattr(runner, "run_worker", replacing)
    outcome = replayed(tmp_path, library)["outcome"]
    assert outcome["status"] == "library_fault"
    assert f"library {library} was replaced during the replay" in outcome["reason"]
    assert len(runs) == 3


def test_what_must_not_be_loaded_is_not(modes: Path, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo.so")
    said = replayed(tmp_path, tmp_path / "fifo.so", timeout=5)["outcome"]["reason"]
    assert said.endswith("fifo.so cannot be loaded: it is no regular file; name a shared library")
    (tmp_path / "cut.so").write_bytes(modes.read_bytes()[:5000])
    said = replayed(tmp_path, tmp_path / "cut.so")["outcome"]["reason"]
    assert said.endswith("its file is cut short or damaged; build or copy it again")


def test_wrong_use_is_one_sentence(tmp_path: Path) -> None:
    write_trace(tmp_path / "run.parquet", EVENTS)
    write_trace(tmp_path / "streams.parquet", EVENTS, stream=[0, 2_000_000_000, 0, 0])
    cases: tuple[tuple[tuple[str, ...], dict[str, str], str | None], ...] = (
        (("--timeout", "inf"), {}, "--timeout inf is not a time"),
        (("--timeout", "1e9"), {}, "--timeout 1e+09 is not a time"),
        ((), {"CXX": "g++ 'x"}, None),
        (("streams.parquet",), {}, "row 1 has stream 2000000000"),
    )
    for arguments, environment, said in cases:
        words = ["replay", "run.parquet", "-a", "direct", "--repeat", "1", "--force", *arguments]
        done = wb(tmp_path, *words, environment=environment)
        assert "Traceback" not in done.stderr
        assert done.returncode == (0 if said is None else 2), done.stderr
        assert (said or "") in done.stderr
    assert wb(tmp_path, "plan", "run.parquet", "-o", "plan.parquet").returncode == 0
    done = wb(tmp_path, "fit", "run.parquet", "-a", "plan:file:plan.parquet")
    assert (done.returncode, "leave the file out" in done.stderr) == (2, True), done.stderr
    done = wb(tmp_path, "fit", "run.parquet", "-a", "direct", "--timeout", "inf")
    assert (done.returncode, "Traceback" in done.stderr) == (2, False), done.stderr


def test_messages_hold_no_pictures(tmp_path: Path, modes: Path) -> None:
    library = tmp_path / ":a:.so"
    library.write_bytes(b"")
    write_trace(tmp_path / ":b:.parquet", EVENTS)
    done = wb(
        *(tmp_path, "replay", ":b:.parquet", "-a", f"pluggable:{library}", "--repeat", "1"),
        *("-o", "out"),
    )
    assert "\N{NEGATIVE SQUARED LATIN CAPITAL LETTER A}" not in done.stdout
    assert ":a:.so cannot be loaded" in done.stdout.replace("\n", "")


def test_no_console_of_ours_draws_pictures() -> None:
    consoles = 0
    for folder in ("workbench", "replay", "reports", "recorders"):
        for source in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(source.read_text())):
                if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "Console":
                    given = {keyword.arg: keyword.value for keyword in node.keywords}
                    assert ast.unparse(given.get("emoji", node)) == "False", source
                    consoles += 1
    assert consoles > 8
