"""`wb fit` and `workbench.fit` as a user runs them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from command_line import wb

import workbench
from workbench.replay.results import load_results

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


def test_the_smallest_device_its_headroom_and_the_next_command_are_printed(
    make_trace: MakeTrace, tmp_path: Path
) -> None:
    make_trace(GROWING, device="cuda:0")
    done = wb(tmp_path, "fit", "run.parquet", "-a", "caching")
    assert done.returncode == 0, done.stderr
    # Segments are of 30, 32 … 54 MiB, each for two requests. On 54 MiB each one is released for
    # the next, at a retry; without a limit all of them stay.
    row = next(line for line in done.stdout.splitlines() if line.startswith("│ caching"))
    assert [cell.strip() for cell in row.strip("│").split("│")] == [
        *("caching", "54 MiB", "54.00 MiB", "0 B (0.0%)"),
        *("12", "25", "546 MiB"),
    ]
    assert "A retry waits for the device" in done.stdout
    assert "As-if" not in done.stdout
    assert "Next: wb replay run.parquet -a caching --capacity 54MiB" in done.stdout
    assert done.stderr == ""


def test_a_replay_with_the_answer_completes_and_with_less_does_not(
    make_trace: MakeTrace, tmp_path: Path
) -> None:
    make_trace(GROWING, device="cuda:0")
    allocator = "caching:expandable_segments:True"
    done = wb(tmp_path, "fit", "run.parquet", "-a", allocator, "--json")
    (found,) = json.loads(done.stdout)["fits"]
    for capacity, status in (
        (found["capacity_bytes"], "ok"),
        (found["capacity_bytes"] - 2 * MIB, "out_of_memory"),
    ):
        wb(
            *(tmp_path, "replay", "run.parquet", "-a", allocator, "--capacity", str(capacity)),
            *("--repeat", "1", "-o", status),
        )
        (result,) = load_results([tmp_path / status])
        assert result.info["outcome"]["status"] == status
    assert result.info["trace"]["peak_live_bytes"] == found["peak_live_bytes"]


def test_all_fits_everything_that_can_run_here(make_trace: MakeTrace, tmp_path: Path) -> None:
    make_trace()
    done = wb(tmp_path, "fit", "run.parquet", "--allocator", "all")
    assert done.returncode == 0, done.stderr
    for words in ("caching *", "cpu-caching", "direct", "async *", "* as-if replay: cpu traffic"):
        assert words in done.stdout
    for name in ("pluggable", "torch-cpu-caching", "torch-host-pinned", "torch-plan"):
        assert f"Left out: {name} (" in done.stdout


def test_each_rank_has_its_own_answer(make_trace: MakeTrace, tmp_path: Path) -> None:
    (tmp_path / "ranks").mkdir()
    make_trace(GROWING, "ranks/rank=0", device="cuda:0")
    make_trace(GROWING[:10], "ranks/rank=1", device="cuda:1")
    done = wb(tmp_path, "fit", "ranks", "-a", "caching", "-a", "direct", "--json")
    fits = json.loads(done.stdout)["fits"]
    assert [(one["device"], one["allocator"]) for one in fits] == [
        *(("cuda:0", "caching"), ("cuda:0", "direct")),
        *(("cuda:1", "caching"), ("cuda:1", "direct")),
    ]
    assert fits[0]["capacity_bytes"] > fits[2]["capacity_bytes"]
    assert "rank=1" in wb(tmp_path, "fit", "ranks", "-a", "caching").stdout


def test_rules_that_a_trace_names_are_replayed(make_trace: MakeTrace, tmp_path: Path) -> None:
    rules = {"allocator": {"settings": "rules:address-order"}}
    make_trace(GROWING, device="cuda:0", metadata=rules)
    done = wb(tmp_path, "fit", "run.parquet", "-a", "caching")
    assert "caching: replayed with rules:address-order, as run.parquet says." in done.stdout
    assert "-a caching:rules:address-order --capacity" in done.stdout
    other = wb(tmp_path, "fit", "run.parquet", "-a", "caching:rules:2.13", "-a", "direct", "--json")
    assert [one["rules"] for one in json.loads(other.stdout)["fits"]] == ["", ""]


def test_what_no_device_holds_is_a_row_and_exit_code_0(
    make_trace: MakeTrace, tmp_path: Path
) -> None:
    make_trace(GROWING, device="cuda:0")
    arguments = ("-a", "caching", "-a", "caching:per_process_memory_fraction:0")
    done = wb(tmp_path, "fit", "run.parquet", *arguments)
    assert done.returncode == 0, done.stderr
    assert "never" in done.stdout
    assert "row 0 is refused on a device without limit too" in done.stdout
    assert "-a caching --capacity" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "no allocator is named"),
        (("-a", "cachin"), "did you mean 'caching'"),
        (("-a", "caching:lobster:1"), "lobster"),
        (("-a", "caching", "--device", "cuda:7"), "--device 'cuda:7'"),
        (("-a", "caching", "--completion", "soon"), "--completion 'soon'"),
        (("-a", "caching", "--timeout", "0"), "--timeout 0"),
    ],
)
def test_wrong_use_is_one_sentence_and_exit_code_2(
    arguments: tuple[str, ...], message: str, make_trace: MakeTrace, tmp_path: Path
) -> None:
    make_trace(GROWING)
    done = wb(tmp_path, "fit", "run.parquet", *arguments)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert message in done.stderr


def test_a_run_past_its_time_is_a_row_and_exit_code_1(
    make_trace: MakeTrace, tmp_path: Path
) -> None:
    make_trace(GROWING)
    done = wb(tmp_path, "fit", "run.parquet", "-a", "caching", "--timeout", "1e-9")
    assert done.returncode == 1
    assert "timed out" in done.stdout
    assert "allow more with --timeout" in done.stdout


def test_the_python_face_mirrors_the_command(make_trace: MakeTrace, tmp_path: Path) -> None:
    trace = make_trace(GROWING, device="cuda:0")
    found = workbench.fit(trace, ["caching", "caching:expandable_segments:True"])
    assert len(found) == 2
    assert found[0].capacity == 54 * MIB
    assert found[0].headroom == 0
    assert found[0].at is not None
    assert found[0].at.retries == 12
    frame = found.to_pandas()
    assert {"label", "capacity_bytes", "headroom_bytes", "retries"} <= set(frame.columns)
    assert "caching" in found._repr_html_()
