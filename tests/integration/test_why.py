"""``wb why`` as a user meets it: a snapshot in, an answer out that a replay confirms."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import snapshot_maker as maker

import workbench
from workbench.replay import _engine
from workbench.replay.events import load_trace

MIB = 2**20


def operations() -> list[tuple[str, int, int, int]]:
    """Blocks of 30 MiB with small ones between them that outlive them; then one of 90 MiB."""
    made: list[tuple[str, int, int, int]] = []
    for number in range(8):
        made.append(("alloc", 2 * number, 12 * MIB, 0))
        made.append(("alloc", 2 * number + 1, 7 * MIB, 0))
    made += [("free", 2 * number, 0, 0) for number in range(8)]
    return [*made, ("alloc", 100, 100 * MIB, 0), ("free", 100, 0, 0)]


@pytest.fixture(scope="module")
def out_of_memory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A snapshot whose last entry is a refused request of 100 MiB, on a device of 200 MiB."""
    snapshot = maker.make_snapshot(operations(), capacity=200 * MIB)
    assert snapshot["device_traces"][0][-1]["action"] == "oom"
    return maker.save(snapshot, tmp_path_factory.mktemp("why") / "oom.pickle")


def why(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-P", "-m", "workbench", "why", *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
    )


def answer(*arguments: object) -> dict[str, Any]:
    run = why(*arguments, "--json")
    assert run.returncode == 0, run.stderr
    found: dict[str, Any] = json.loads(run.stdout)
    return found


def test_the_answer_fits_a_screen_and_says_what_to_set(out_of_memory: Path) -> None:
    run = why(out_of_memory, "--device-memory", "256MiB")
    assert run.returncode == 0, run.stderr
    lines = run.stdout.splitlines()
    assert len(lines) <= 45
    assert "out of memory at row" in lines[0]
    assert "100.00 MiB were asked for" in lines[0]
    for words in (
        "model.py:",
        "Fragmentation is to blame",
        "held by others on the device",
        "56.00 MiB",
        "Who pins the emptiest",
        "default (recorded)",
        "Set: export PYTORCH_ALLOC_CONF=",
        "Smallest device that would have held it",
        "Self-check: exact: all",
        "Assumed: ",
        "Next: wb import",
    ):
        assert words in run.stdout, words


def test_the_numbers_add_up(out_of_memory: Path) -> None:
    found = answer(out_of_memory)
    assert sum(found["waterfall"].values()) == found["reserved_bytes"]
    assert found["out_of_memory"]["size"] == 100 * MIB
    assert found["left_to_pytorch_bytes"] == 200 * MIB
    assert found["reserved_bytes"] + found["out_of_memory"]["device_free"] == 200 * MIB
    assert found["waterfall"]["live_requested"] == 8 * 7 * MIB
    assert found["fragmentation_is_to_blame"] is True
    assert found["state"] == "recorded"
    assert found["self_check"]["kind"] == "exact"


def test_what_is_said_to_serve_it_does(out_of_memory: Path, tmp_path: Path) -> None:
    """Each choice, replayed by itself: the outcome, and the smallest device to the unit."""
    found = answer(out_of_memory)
    trace = tmp_path / "run.parquet"
    subprocess.run(
        [sys.executable, "-P", "-m", "workbench", "import", out_of_memory, "-o", trace], check=True
    )
    (loaded,) = load_trace(str(trace))
    events = loaded.traffic("cuda:0").events()

    def completes(settings: str, capacity: int) -> bool:
        replay = _engine.Replay(events, "caching", settings, backend="simulated", capacity=capacity)
        return replay.memory(1)["oom"] is None

    assert found["helping"]
    choices = [found["recorded_settings"], *found["choices"]]
    assert not completes("", 200 * MIB)
    for choice in choices:
        assert completes(choice["settings"], 200 * MIB) == (choice["status"] == "ok")
        if (smallest := choice["smallest_device_bytes"]) is not None:
            assert completes(choice["settings"], smallest)
            assert not completes(choice["settings"], smallest - 2 * MIB)
    assert {one["settings"] for one in found["choices"] if one["status"] == "ok"} == set(
        found["helping"]
    )


def test_a_device_that_is_too_small_is_said_to_be(tmp_path: Path) -> None:
    listed = [("alloc", number, 30 * MIB, 0) for number in range(8)]
    path = maker.save(maker.make_snapshot(listed, capacity=200 * MIB), tmp_path / "full.pickle")
    run = why(path)
    assert "The device is too small: tensors and the request alone need 210.00 MiB" in run.stdout
    assert "No setting serves the request" in run.stdout
    assert answer(path)["helping"] == []


def test_without_an_out_of_memory_the_peak_is_explained(tmp_path: Path) -> None:
    path = maker.save(maker.make_snapshot(operations()), tmp_path / "fine.pickle")
    run = why(path)
    assert run.returncode == 0, run.stderr
    assert "did not run out of memory; this is the peak" in run.stdout
    assert "less (" in run.stdout
    assert answer(path)["out_of_memory"] is None


def test_a_trace_is_explained_by_its_replay(out_of_memory: Path, tmp_path: Path) -> None:
    trace = tmp_path / "run.parquet"
    subprocess.run(
        [sys.executable, "-P", "-m", "workbench", "import", out_of_memory, "-o", trace], check=True
    )
    from_trace, from_snapshot = answer(trace), answer(out_of_memory)
    assert from_trace["state"] == "replayed"
    for name in ("reserved_bytes", "waterfall", "helping", "left_to_pytorch_bytes"):
        assert from_trace[name] == from_snapshot[name]


def test_a_history_without_entries_shows_the_state_at_the_end(tmp_path: Path) -> None:
    snapshot = maker.make_snapshot(operations()[:-2])
    path = maker.save(
        maker.cut(snapshot, len(snapshot["device_traces"][0])), tmp_path / "bare.pickle"
    )
    found = answer(path)
    assert found["state"] == "recorded"
    assert found["waterfall"]["live_requested"] == 8 * 7 * MIB
    assert "no history" in why(path).stdout


def test_the_page_is_written_whole_or_not_at_all(out_of_memory: Path, tmp_path: Path) -> None:
    page = tmp_path / "why.html"
    assert why(out_of_memory, "--html", page).returncode == 0
    text = page.read_text()
    assert "Fragmentation is to blame" in text
    assert "http" not in text.replace("http-equiv", "")
    again = why(out_of_memory, "--html", page)
    assert again.returncode == 2
    assert "--force" in again.stderr
    assert why(out_of_memory, "--html", page, "--force").returncode == 0
    full = why(out_of_memory, "--html", "/dev/full")
    assert full.returncode in (1, 2)
    assert full.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "no such file"),
        (b"", "is empty"),
        (b"not a snapshot\n", "no kind that can be imported"),
        (b"\x80\x04cos\nsystem\n.", "asks to call"),
    ],
)
def test_what_is_no_snapshot_is_refused(content: bytes | None, words: str, tmp_path: Path) -> None:
    path = tmp_path / "file.pickle"
    if content is not None:
        path.write_bytes(content)
    run = why(path)
    assert run.returncode == 2
    assert run.stderr.count("\n") == 1
    assert words in run.stderr
    assert list(tmp_path.iterdir()) == ([path] if content is not None else [])


def test_wrong_options_are_refused(out_of_memory: Path) -> None:
    for arguments, words in (
        (["--device", "cuda:7"], "cuda:7"),
        (["--capacity", "much"], "--capacity"),
        (["--html", "/nowhere/why.html"], "does not exist"),
    ):
        run = why(out_of_memory, *arguments)
        assert run.returncode == 2, run.stdout
        assert run.stderr.count("\n") == 1
        assert words in run.stderr


def test_python_gets_the_same_answer(out_of_memory: Path, tmp_path: Path) -> None:
    found = workbench.why(out_of_memory, device_memory="256MiB")
    assert found.document() | {"file": ""} == answer(out_of_memory, "--device-memory", "256MiB") | {
        "file": ""
    }
    assert "Fragmentation is to blame" in found._repr_html_()
    report = workbench.import_file(out_of_memory, tmp_path / "run.parquet")
    assert [check["kind"] for check in report.checks] == ["exact"]


def test_a_failure_that_a_fresh_start_does_not_show_is_said_to_be_missed(tmp_path: Path) -> None:
    """Cut behind the frees: what is stranded is from before the history."""
    snapshot = maker.make_snapshot(operations(), capacity=200 * MIB)
    trace = snapshot["device_traces"][0]
    path = maker.save(maker.cut(snapshot, len(trace) - 1), tmp_path / "cut.pickle")
    run = why(path)
    assert "Mind: from a fresh start the recorded settings serve all of it too" in run.stdout
    assert "default (as recorded)" in run.stdout
    assert "Worth trying" in run.stdout
    assert "Set: " not in run.stdout
    assert "above 200.00 MiB with the recorded settings" in run.stdout
    assert answer(path)["failure_is_missed"] is True


def test_text_from_a_file_cannot_command_the_terminal(tmp_path: Path) -> None:
    snapshot = maker.make_snapshot(operations(), capacity=200 * MIB)
    for entry in snapshot["device_traces"][0]:
        entry["frames"] = [{"filename": "[bold]x\x1b[31m\n.py", "line": 1, "name": "\x00f"}]
    path = maker.save(snapshot, tmp_path / "bad.pickle")
    run = why(path)
    assert run.returncode == 0, run.stderr
    assert "\x1b" not in run.stdout
    assert "\x00" not in run.stdout
    assert "[bold]x\ufffd[31m\ufffd.py:1" in run.stdout


def test_an_impossible_device_memory_is_refused(out_of_memory: Path) -> None:
    run = why(out_of_memory, "--device-memory", "10MiB")
    assert run.returncode == 2
    assert "--device-memory is less than" in run.stderr
