"""`wb tune` and `workbench.tune` as a user runs them."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from command_line import ENVIRONMENT, wb

import workbench
from workbench.common.errors import UsageError

MakeTrace = Callable[..., Path]
MIB = 2**20
# Each request is a little larger than the last: no block fits again, unless segments grow.
GROWING = [
    row
    for number in range(25)
    for row in (
        ("alloc", number, (30 + number) * MIB),
        ("free", number, (30 + number) * MIB),
    )
]
# Every request is a segment of its own, all live: nothing to gain.
PLAIN = [("alloc", number, 20 * MIB) for number in range(5)]
# Three blocks to a segment of 20 MiB, two of which are freed: the third holds the segment.
HELD = [
    *(("alloc", number, 6 * MIB) for number in range(30)),
    *(("free", number, 6 * MIB) for number in range(30) if number % 3),
    ("alloc", 30, 100 * MIB),
]


def tuned(folder: Path, *arguments: str) -> dict[str, Any]:
    """What ``wb tune`` says in JSON."""
    done = wb(folder, "tune", *arguments, "--json")
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_the_evidence_the_front_and_the_line_to_export_are_printed(
    make_trace: MakeTrace, tmp_path: Path
) -> None:
    make_trace(GROWING, device="cuda:0")
    done = wb(tmp_path, "tune", "run.parquet", "--quick")
    assert done.returncode == 0, done.stderr
    for words in ("cuda:0 of run.parquet: 50 events", "default", "(best)", "Pareto front", "80GiB"):
        assert words in done.stdout
    assert "no capacity is known" in done.stdout
    assert "As-if" not in done.stdout
    lines = done.stdout.splitlines()
    (line,) = [one for one in lines if one.startswith("export ")]
    assert shlex.split(line)[1].startswith("PYTORCH_ALLOC_CONF=expandable_segments:True")
    assert lines[-1].startswith("Next: wb fit run.parquet -a caching -a caching:expandable")
    assert done.stderr == ""


def test_each_setting_is_tried_once_and_the_default_first(
    make_trace: MakeTrace, tmp_path: Path
) -> None:
    make_trace(GROWING, device="cuda:0")
    found = tuned(tmp_path, "run.parquet", "--trials", "90")
    texts = [one["settings"] for one in found["tried"]]
    assert len(texts) == len(set(texts)) == 90
    assert texts[0] == ""
    assert found["verdict"] == "helps"
    assert found["best"]["objective"] <= min(one["objective"] for one in found["tried"]) * 1.01
    calls = [one["device_calls"] for one in found["front"]]
    reserved = [one["peak_reserved_bytes"] for one in found["front"]]
    assert calls == sorted(calls, reverse=True)
    assert reserved == sorted(reserved)


def test_equal_seeds_give_equal_answers_on_any_number_of_cores(
    make_trace: MakeTrace, tmp_path: Path
) -> None:
    make_trace(GROWING, device="cuda:0")
    arguments = ("run.parquet", "--trials", "80", "--seed", "7")
    one = tuned(tmp_path, *arguments)
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(cores)})
    try:
        other = tuned(tmp_path, *arguments)
    finally:
        os.sched_setaffinity(0, cores)
    assert one == other
    assert tuned(tmp_path, *arguments[:-1], "8")["tried"] != one["tried"]


def test_what_the_trace_ran_with_is_tried_and_shown(make_trace: MakeTrace, tmp_path: Path) -> None:
    settings = "roundup_power2_divisions:2,rules:address-order,pinned_use_cuda_host_register:True"
    make_trace(
        GROWING,
        device="cuda:0",
        metadata={"allocator": {"backend": "native", "settings": settings}},
    )
    found = tuned(tmp_path, "run.parquet", "--quick")
    assert found["recorded"]["settings"] == "roundup_power2_divisions:2"
    assert found["recorded"]["rules"] == "rules:address-order"
    assert found["tried"][1]["settings"] == "roundup_power2_divisions:2"
    assert "rules" not in found["export"]
    assert "pinned_use_cuda_host_register:True" in found["export"]
    # PyTorch of those days knows fewer keys.
    assert not any("large_segment" in one["settings"] for one in found["tried"])
    shown = wb(tmp_path, "tune", "run.parquet", "--quick").stdout
    assert "roundup_power2_divisions:2 (as recorded)" in shown
    assert "rules:address-order belongs to the replay" in shown


def test_settings_of_the_trace_that_are_none_are_left_out_with_a_note(
    make_trace: MakeTrace, tmp_path: Path
) -> None:
    make_trace(PLAIN, device="cuda:0", metadata={"allocator": {"settings": {"lobster": 1}}})
    done = wb(tmp_path, "tune", "run.parquet", "--quick")
    assert done.returncode == 0
    assert "The settings that the trace ran with are none of caching's" in done.stdout
    assert "lobster" in done.stdout


def test_settings_that_conflict_are_warned_of(make_trace: MakeTrace, tmp_path: Path) -> None:
    settings = {"expandable_segments": True, "max_split_size_mb": 64}
    make_trace(GROWING, device="cuda:0", metadata={"allocator": {"settings": settings}})
    done = wb(tmp_path, "tune", "run.parquet", "--quick")
    assert "expandable_segments:True,max_split_size_mb:64 (as recorded)" in done.stdout
    assert "Warning: expandable_segments:True,max_split_size_mb:64: " in done.stdout
    assert "can grow several times over" in done.stdout


def test_what_a_trace_says_is_no_command_to_the_terminal(
    make_trace: MakeTrace, tmp_path: Path
) -> None:
    lost = {"complete": False, "lost_reason": "because \x1b]0;of [red]"}
    make_trace(GROWING, device="cuda:0", metadata=lost)
    done = wb(tmp_path, "tune", "run.parquet", "--quick")
    assert done.returncode == 0, done.stderr
    assert "\x1b" not in done.stdout
    assert "run.parquet is incomplete (because \N{REPLACEMENT CHARACTER}]0;of [red])" in done.stdout


def test_no_setting_helps_where_none_does(make_trace: MakeTrace, tmp_path: Path) -> None:
    make_trace(PLAIN, device="cuda:0")
    done = wb(tmp_path, "tune", "run.parquet", "--trials", "50")
    assert done.returncode == 0
    assert "No setting helps: of 50 settings tried none saves more than 1%" in done.stdout
    assert "export" not in done.stdout
    assert "Next: wb fit run.parquet -a caching\n" in done.stdout


def test_a_gain_must_hold_on_the_check_trace(make_trace: MakeTrace, tmp_path: Path) -> None:
    make_trace(GROWING, device="cuda:0")
    make_trace(PLAIN, "plain", device="cuda:0")
    make_trace(GROWING[:-4], "alike", device="cuda:0")
    against = tuned(tmp_path, "run.parquet", "--quick", "--check", "plain.parquet")
    assert against["verdict"] == "gain_does_not_hold"
    assert against["export"] is None
    assert [check["holds"] for check in against["checks"]] == [False]
    shown = wb(tmp_path, "tune", "run.parquet", "--quick", "--check", "plain.parquet").stdout
    assert "No setting helps: expandable_segments:True" in shown
    assert "On other traces" in shown
    for_it = tuned(tmp_path, "run.parquet", "--quick", "--check", "alike.parquet")
    assert for_it["verdict"] == "helps"
    assert for_it["checks"][0]["gain"] > 0.01


def test_what_completes_where_the_default_does_not_helps(
    make_trace: MakeTrace, tmp_path: Path
) -> None:
    make_trace(HELD, device="cuda:0", metadata={"devices": {"cuda:0": {"capacity": 240 * MIB}}})
    found = tuned(tmp_path, "run.parquet", "--quick")
    assert found["capacity"] == {"bytes": 240 * MIB, "source": "trace"}
    assert found["default"]["status"] == "out_of_memory"
    assert found["default"]["oom"]["requested"] == 100 * MIB
    assert found["verdict"] == "helps"
    assert found["best"]["status"] == "ok"
    shown = wb(tmp_path, "tune", "run.parquet", "--quick").stdout
    assert "completes, where the default runs out of memory" in shown
    assert "out of memory at row 50" in shown


def test_where_nothing_completes_the_command_says_so(make_trace: MakeTrace, tmp_path: Path) -> None:
    make_trace(HELD, device="cuda:0")
    done = wb(tmp_path, "tune", "run.parquet", "--quick", "--capacity", "150MiB")
    assert done.returncode == 0
    assert "No setting helps: with each of" in done.stdout
    assert "150MiB are not enough" in done.stdout


def test_traffic_of_the_cpu_is_as_if(make_trace: MakeTrace, tmp_path: Path) -> None:
    make_trace(GROWING)
    done = wb(tmp_path, "tune", "run.parquet", "--quick")
    assert "As-if replay: cpu traffic through an allocator for GPUs." in done.stdout


def test_other_ranks_are_checks(tmp_path: Path, make_trace: MakeTrace) -> None:
    (tmp_path / "ranks").mkdir()
    make_trace(GROWING, "ranks/rank=0", device="cuda:0")
    make_trace(GROWING[:-4], "ranks/rank=1", device="cuda:1")
    found = tuned(tmp_path, "ranks", "--quick")
    assert found["trace"].endswith("rank=0.parquet")
    assert [check["device"] for check in found["checks"]] == ["cuda:1"]
    assert tuned(tmp_path, "ranks", "--quick", "--device", "cuda:1")["device"] == "cuda:1"


def test_keys_can_be_left_out(make_trace: MakeTrace, tmp_path: Path) -> None:
    make_trace(GROWING, device="cuda:0")
    found = tuned(
        *(tmp_path, "run.parquet", "--trials", "60", "--without", "expandable_segments"),
        *("--without", "large_segment_size_mb"),
    )
    assert not any("expandable" in one["settings"] for one in found["tried"])
    assert not any("large_segment" in one["settings"] for one in found["tried"])


def test_another_objective_has_another_best(make_trace: MakeTrace, tmp_path: Path) -> None:
    make_trace(GROWING, device="cuda:0")
    calls = tuned(tmp_path, "run.parquet", "--quick", "--objective", "device_calls")
    assert calls["best"]["device_calls"] == min(one["device_calls"] for one in calls["tried"])
    retries = tuned(tmp_path, "run.parquet", "--quick", "--objective", "retries")
    assert retries["verdict"] == "no_setting_helps"


def test_without_optuna_the_grid_still_works(make_trace: MakeTrace, tmp_path: Path) -> None:
    make_trace(GROWING, device="cuda:0")
    hidden = tmp_path / "hidden"
    hidden.mkdir()
    (hidden / "optuna.py").write_text("raise ImportError('hidden by the test')")
    environment = {"PYTHONPATH": str(hidden)}
    done = wb(tmp_path, "tune", "run.parquet", environment=environment)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "--quick" in done.stderr
    assert "pip install" in done.stderr
    done = wb(tmp_path, "tune", "run.parquet", "--quick", environment=environment)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--objective", "peak"), "--objective 'peak'"),
        (("--objective", "__import__('os').system('touch x')"), "--objective"),
        (("--trials", "0"), "--trials 0"),
        (("--trials", "-5"), "--trials -5"),
        (("--seed", "-1"), "--seed -1"),
        (("--timeout", "0"), "--timeout 0"),
        (("--timeout", "nan"), "--timeout nan"),
        (("--capacity", "8Gb"), "--capacity '8Gb'"),
        (("--completion", "soon"), "--completion 'soon'"),
        (("--device", "cuda:7"), "--device 'cuda:7'"),
        (("--without", "lobster"), "--without 'lobster'"),
        (("--check", "absent.parquet"), "absent.parquet"),
        (("--check", "run.parquet"), "the same traffic"),
    ],
)
def test_wrong_use_is_one_sentence_and_exit_code_2(
    arguments: tuple[str, ...], message: str, make_trace: MakeTrace, tmp_path: Path
) -> None:
    make_trace(GROWING)
    done = wb(tmp_path, "tune", "run.parquet", *arguments)
    assert done.returncode == 2, done.stdout + done.stderr
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert message in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["run.parquet"]


def test_a_trace_without_allocations_is_wrong_use(make_trace: MakeTrace, tmp_path: Path) -> None:
    make_trace([])
    for command in (("tune", "run.parquet"), ("fit", "run.parquet", "-a", "caching")):
        done = wb(tmp_path, *command)
        assert done.returncode == 2
        assert "nothing is allocated" in done.stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("command", ["tune", "fit"])
def test_a_signal_ends_everything_and_leaves_nothing(
    make_trace: MakeTrace, tmp_path: Path, number: int, command: str
) -> None:
    make_trace(GROWING)
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    options = ["--trials", "1000000"]
    if command == "fit":
        options = [f"-acaching:max_split_size_mb:{limit}" for limit in range(20, 400)]
    process = subprocess.Popen(
        [sys.executable, "-m", "workbench", command, "run.parquet", *options],
        cwd=tmp_path,
        env={**ENVIRONMENT, "TMPDIR": str(scratch)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    while process.poll() is None and not list(scratch.glob("*/worker-*")):
        time.sleep(0.005)
    process.send_signal(number)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 128 + number, said
    assert "Traceback" not in said
    assert list(scratch.iterdir()) == []


def test_the_python_face_mirrors_the_command(make_trace: MakeTrace, tmp_path: Path) -> None:
    trace = make_trace(GROWING, device="cuda:0")
    other = make_trace(GROWING[:-4], "alike", device="cuda:0")
    found = workbench.tune(trace, check=other, quick=True, capacity="4GiB")
    assert found.verdict == "helps"
    assert found.export is not None
    assert found.subject.capacity.bytes == 4 * 2**30
    frame = found.to_pandas()
    assert len(frame) == len(found.tried)
    assert {"settings", "status", "peak_reserved_bytes", "device_calls"} <= set(frame.columns)
    assert "export PYTORCH_ALLOC_CONF" in found._repr_html_()
    with pytest.raises(UsageError, match="--objective"):
        workbench.tune(trace, objective="nothing", quick=True)
