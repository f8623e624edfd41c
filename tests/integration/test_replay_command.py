"""`wb replay`, `wb allocators` and `wb doctor` as a user runs them."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from command_line import ENVIRONMENT, wb

from workbench.replay.allocators import known_allocators
from workbench.replay.results import load_results

MakeTrace = Callable[..., Path]


def test_a_replay_prints_tables_notes_and_the_next_command(
    make_trace: MakeTrace, tmp_path: Path
) -> None:
    make_trace()
    done = wb(tmp_path, "replay", "run.parquet", "--allocator", "all", "--repeat", "1")
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    for words in (
        "peak live requested",
        "unused",
        "device calls",
        "alloc p50 / p99 / max",
        "events per second",
        "ours",
        "* as-if replay",
        "is a model",
        "Next: wb report results -o report.html",
    ):
        assert words in done.stdout
    # Again over the same results: they are replaced, and no other file is left.
    again = wb(tmp_path, "replay", "run.parquet", "-a", "direct", "--repeat", "1")
    assert again.returncode == 0
    every = known_allocators().values()
    assert {path.name.split(".")[2] for path in (tmp_path / "results").iterdir()} == {
        info["name"] for info in every if info["available"] and not info["needs_library"]
    }


def test_json_is_one_document_and_the_page_is_written_too(
    make_trace: MakeTrace, tmp_path: Path
) -> None:
    make_trace()
    done = wb(
        *(tmp_path, "replay", "run.parquet", "-a", "direct", "--repeat", "1"),
        *("--json", "--html", "page.html", "-o", "out"),
    )
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert [cell["allocator"]["name"] for cell in document["cells"]] == ["direct"]
    assert document["left_out"] == document["errors"] == []
    assert document["cells"][0]["command"].startswith("wb replay run.parquet")
    assert "direct" in (tmp_path / "page.html").read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("-a", "cachin"), "did you mean 'caching'"),
        (("-a", "all", "--capacity", "0"), "--capacity '0' is not a size above zero"),
        (("-a", "all", "--capacity", "8Gb"), "--capacity '8Gb' is not a size above zero"),
        (("-a", "all", "--capacity", "-1"), "--capacity '-1' is not a size above zero"),
        (("-a", "all", "--html", "no/page.html"), "no does not exist"),
        ((), "no allocator is named"),
    ],
)
def test_wrong_use_is_one_sentence_and_exit_code_2(
    arguments: tuple[str, ...], message: str, make_trace: MakeTrace, tmp_path: Path
) -> None:
    make_trace()
    done = wb(tmp_path, "replay", "run.parquet", *arguments)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert message in done.stderr
    assert not (tmp_path / "results").exists()


def test_a_broken_trace_is_one_sentence_and_exit_code_2(tmp_path: Path) -> None:
    (tmp_path / "run.parquet").write_bytes(b"PAR1 and then nothing")
    for name in ("run.parquet", "absent.parquet"):
        done = wb(tmp_path, "replay", name, "-a", "direct")
        assert done.returncode == 2
        assert done.stderr.count("\n") == 1
        assert name in done.stderr


def test_a_run_past_its_time_is_a_row_and_exit_code_1(
    make_trace: MakeTrace, tmp_path: Path
) -> None:
    make_trace()
    done = wb(tmp_path, "replay", "run.parquet", "-a", "direct", "--timeout", "0.001")
    assert done.returncode == 1
    assert "timed out" in done.stdout
    assert "allow more with --timeout" in done.stdout
    (result,) = load_results([tmp_path / "results"])
    assert result.info["outcome"]["status"] == "timed_out"


def test_out_of_memory_is_exit_code_0(make_trace: MakeTrace, tmp_path: Path) -> None:
    make_trace([("alloc", 0, 2**20), ("alloc", 1, 2**30)])
    done = wb(
        tmp_path, "replay", "run.parquet", "-a", "direct", "--capacity", "8MiB", "--repeat", "1"
    )
    assert done.returncode == 0
    assert "out of memory" in done.stdout
    assert "out of memory at row 1 of the trace: it asked for 1.00 GiB" in " ".join(
        done.stdout.split()
    )


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_kills_workers_leaves_nothing_and_is_in_the_exit_code(
    make_trace: MakeTrace, tmp_path: Path, number: int
) -> None:
    make_trace()
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    process = subprocess.Popen(
        [sys.executable, "-m", "workbench", "replay", "run.parquet", "-a", "all"],
        cwd=tmp_path,
        env={**ENVIRONMENT, "TMPDIR": str(scratch)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    while process.poll() is None and not list(scratch.glob("*/run-*")):
        time.sleep(0.01)
    process.send_signal(number)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 128 + number, said
    assert "Traceback" not in said
    assert list(scratch.iterdir()) == []
    assert list((tmp_path / "results").iterdir()) == []


def test_two_commands_into_one_folder_leave_one_whole_result(
    make_trace: MakeTrace, tmp_path: Path
) -> None:
    make_trace()
    command = [sys.executable, "-m", "workbench", "replay", "run.parquet", "-a", "direct"]
    both = [
        subprocess.Popen(
            [*command, "--repeat", "1"],
            cwd=tmp_path,
            env=ENVIRONMENT,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    for process in both:
        _, said = process.communicate(timeout=120)
        assert process.returncode == 0, said
    (result,) = load_results([tmp_path / "results"])
    assert len(result.timeline) > 0
    assert [path.name for path in (tmp_path / "results").glob(".*")] == []


@contextlib.contextmanager
def small_disk(folder: Path, options: str) -> Iterator[Path]:
    """A file system of its own at `folder`; skips where none may be mounted."""
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)],
        capture_output=True,
        text=True,
        check=False,
    )
    if mounted.returncode != 0:
        pytest.skip(f"no file system can be mounted here: {mounted.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_is_one_sentence_and_nothing_half_written(
    make_trace: MakeTrace, tmp_path: Path
) -> None:
    make_trace()
    with small_disk(tmp_path / "disk", "size=16k") as disk:
        done = wb(tmp_path, "replay", "run.parquet", "-a", "direct", "--repeat", "1", "-o", "disk")
        assert done.returncode == 1
        assert done.stderr.count("\n") == 1
        assert "No space left on device" in done.stderr
        assert "nothing half-written" in done.stderr
        assert list(disk.iterdir()) == []


def test_a_read_only_output_is_refused_at_once(make_trace: MakeTrace, tmp_path: Path) -> None:
    make_trace()
    with small_disk(tmp_path / "disk", "size=1m,ro"):
        done = wb(tmp_path, "replay", "run.parquet", "-a", "direct", "-o", "disk/results")
        assert done.returncode == 2
        assert done.stderr.count("\n") == 1
        assert "Read-only file system" in done.stderr


def test_allocators_are_listed_with_what_they_model(tmp_path: Path) -> None:
    done = wb(tmp_path, "allocators")
    assert done.returncode == 0
    for words in ("direct", "caching", "cpu-caching", "CUDA caching allocator", "guard_thread"):
        assert words in done.stdout
    document = json.loads(wb(tmp_path, "allocators", "--json").stdout)
    assert {"name", "summary", "kind", "settings", "available", "reason"} <= set(
        document["allocators"][0]
    )
    assert "null" not in {allocator["name"] for allocator in document["allocators"]}


def test_the_doctor_finds_what_works_here(tmp_path: Path) -> None:
    done = wb(tmp_path, "doctor")
    assert done.returncode == 0
    document = json.loads(wb(tmp_path, "doctor", "--json").stdout)
    assert document["healthy"] is True
    parts = {finding["part"]: finding for finding in document["findings"]}
    assert {"python", "packages", "backend host", "allocator direct", "load"} <= set(parts)
    assert all(part in done.stdout for part in ("python", "backend host", "time-stamp counter"))
    assert {finding["state"] for finding in document["findings"]} <= {"ok", "note", "broken"}


def test_the_doctor_says_what_is_missing_for_recording(tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text("")
    done = subprocess.run(
        [sys.executable, "-m", "workbench", "doctor", "--json"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**ENVIRONMENT, "PYTHONPATH": str(tmp_path), "CXX": "no-such-compiler"},
        timeout=120,
        check=False,
    )
    parts = {finding["part"]: finding for finding in json.loads(done.stdout)["findings"]}
    for part in ("torch", "compiler"):
        assert parts[part]["state"] == "note"
        assert "nothing can be recorded here" in parts[part]["meaning"]
    assert done.returncode == 0


def test_a_terminal_sees_progress(make_trace: MakeTrace, tmp_path: Path) -> None:
    make_trace()
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "workbench", "replay", "run.parquet", "-a", "caching"]
    process = subprocess.Popen(
        [*command, "--repeat", "1"], cwd=tmp_path, env=ENVIRONMENT, stdout=theirs, stderr=theirs
    )
    os.close(theirs)
    said = b""
    with contextlib.suppress(OSError):  # what reading ends with when the other side is closed
        while piece := os.read(ours, 4096):
            said += piece
    os.close(ours)
    assert process.wait(timeout=120) == 0, said.decode()
    assert b"Reading" in said
    assert b"Next: wb report" in said


def test_a_full_output_is_one_sentence(make_trace: MakeTrace, tmp_path: Path) -> None:
    make_trace()
    with open("/dev/full", "w", encoding="utf-8") as full:
        done = subprocess.run(
            [sys.executable, "-m", "workbench", "replay", "run.parquet", "-a", "caching",
             "--repeat", "1"],
            cwd=tmp_path, env=ENVIRONMENT, stdout=full, stderr=subprocess.PIPE, text=True,
            timeout=120, check=False,
        )  # fmt: skip
    assert done.returncode == 1
    assert "cannot write the output" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "arguments",
    [["-a", "caching:max_split\udc80:128"], ["-a", "caching", "--completion", "delay:" + "9" * 20]],
)
def test_values_that_no_engine_takes_are_wrong_use(
    make_trace: MakeTrace, tmp_path: Path, arguments: list[str]
) -> None:
    make_trace()
    done = wb(tmp_path, "replay", "run.parquet", *arguments)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert len(done.stderr.splitlines()) == 1
