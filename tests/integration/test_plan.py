"""`wb plan`, plan files, and the allocator `plan` in replays."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from command_line import wb

from workbench.common.errors import BrokenFileError
from workbench.replay.job import Options
from workbench.replay.plans import METADATA_KEY, read_plan
from workbench.replay.results import CellResult, load_results
from workbench.replay.runner import replay_traces

MakeTrace = Callable[..., Path]
Row = tuple[str, int, int]


def training(steps: int, sizes: Callable[[int], list[int]]) -> dict[str, Any]:
    """Rows and steps: a parameter that stays, then each step its blocks, freed in turn."""
    rows: list[Row] = [("alloc", 0, 1000)]
    step = [0]
    next_id = 1
    for number in range(steps):
        ids = []
        for size in sizes(number):
            rows.append(("alloc", next_id, size))
            ids.append(next_id)
            next_id += 1
            if len(ids) > 2:
                rows.append(("free", ids[-3], sizes(number)[len(ids) - 3]))
        rows += [("free", ids[-2], sizes(number)[-2]), ("free", ids[-1], sizes(number)[-1])]
        step += [number] * (len(rows) - len(step))
    return {"rows": rows, "step": step}


EQUAL = training(6, lambda step: [100, 5000, 300, 70_000, 200])
VARYING = training(6, lambda step: [100, 5000 + 64 * step, 300, 70_000 + 4096 * (step % 3), 200])


def replayed(trace: Path, allocator: str, output: Path) -> CellResult:
    session = replay_traces([str(trace)], [allocator], output, Options(repeat=1))
    assert not session.errors
    (result,) = session.results
    return result


def test_a_plan_is_written_told_and_read(make_trace: MakeTrace, tmp_path: Path) -> None:
    make_trace(**EQUAL)
    done = wb(tmp_path, "plan", "run.parquet", "-o", "plan.parquet")
    assert (done.returncode, done.stderr) == (0, "")
    for words in (
        "plan.parquet: 31 allocations of thread 0, all events",
        "height  ",
        "lower bound",
        "1.0000 times the lower bound",
        "unmanaged    1 allocations of 1000 B",
        "Next: wb replay run.parquet -a plan:file:plan.parquet -a caching",
    ):
        assert words in done.stdout
    plan, origin = read_plan(tmp_path / "plan.parquet")
    assert (len(plan), origin.device, origin.program) == (31, "cpu", ["train.py"])
    assert plan.height >= plan.lower_bound > 0
    again = wb(tmp_path, "plan", "run.parquet", "-o", "plan.parquet")
    assert again.returncode == 2
    assert "plan.parquet exists; replace it with --force" in again.stderr
    told = json.loads(wb(tmp_path, "plan", "run.parquet", "--json", "--planner", "greedy").stdout)
    assert told["planner"] == "greedy"
    assert told["height_bytes"] >= plan.height
    assert (told["managed"], told["unmanaged"], told["check"]) == (30, 1, None)


def test_another_trace_is_held_against_a_plan(make_trace: MakeTrace, tmp_path: Path) -> None:
    make_trace(**EQUAL)
    make_trace(**VARYING, name="other")
    make_trace(EQUAL["rows"][:-1], name="short", step=EQUAL["step"][:-1])
    make_trace([*EQUAL["rows"], ("alloc", 31, 5)], name="long", step=[*EQUAL["step"], 5])
    assert wb(tmp_path, "plan", "run.parquet", "-o", "plan.parquet").returncode == 0
    same = wb(tmp_path, "plan", "plan.parquet", "--check", "run.parquet")
    assert same.returncode == 0
    assert "run.parquet keeps to the plan: 31 allocations" in same.stdout
    for name, words in (
        ("other", "id 7 has 4.95 KiB (5,064 B), planned were 4.88 KiB (5,000 B); of 31 ids"),
        ("short", "id 30 is never freed, planned was freed after 31 allocations"),
        ("long", "there are 32 allocations, planned were 31"),
    ):
        differs = wb(tmp_path, "plan", "plan.parquet", "--check", f"{name}.parquet")
        assert differs.returncode == 1
        assert f"{name}.parquet does not keep to the plan: {words}" in differs.stdout
    told = json.loads(
        wb(tmp_path, "plan", "run.parquet", "--check", "other.parquet", "--json").stdout
    )["check"]
    assert (told["matches"], told["first"], told["planned"], told["found"]) == (False, 7, 31, 31)


def test_the_whole_trace_as_planned(make_trace: MakeTrace, tmp_path: Path) -> None:
    info = replayed(make_trace(**EQUAL), "plan", tmp_path / "results").info
    assert info["outcome"]["status"] == "ok"
    plan = info["plan"]
    served = plan["served"]
    assert (served["planned"], served["unmanaged"], served["mismatches"]) == (30, 1, 0)
    assert info["memory"]["peaks"]["reserved"]["bytes"] == plan["height_bytes"] + 1000
    assert info["memory"]["reserved_meaning"] == "the arena and what is held beside it"
    assert plan["file"] is None
    assert plan["steps"] is None


def test_a_strict_plan_ends_in_an_outcome(make_trace: MakeTrace, tmp_path: Path) -> None:
    make_trace(**EQUAL)
    other = make_trace(**VARYING, name="other")
    assert wb(tmp_path, "plan", "run.parquet", "-o", "plan.parquet").returncode == 0
    result = replayed(other, f"plan:file:{tmp_path / 'plan.parquet'}", tmp_path / "results")
    outcome = result.info["outcome"]
    assert outcome["status"] == "plan_mismatch"
    row = outcome["mismatch"]["event"]
    assert VARYING["rows"][row] == ("alloc", 7, 5064)
    assert (outcome["mismatch"]["id"], outcome["mismatch"]["got"]) == (7, "one of 5064 bytes")
    assert (
        f"at row {row} of the trace: of id 7 the plan expects an allocation of 5000 bytes"
        in (outcome["reason"])
    )
    assert result.info["throughput"] == {}
    with pytest.raises(Exception, match=f"ended in a plan mismatch at event {row}"):
        result.snapshot_at(row + 1)
    assert result.snapshot_at(row - 1).event == row - 1


def test_fallback_counts_what_departs(make_trace: MakeTrace, tmp_path: Path) -> None:
    make_trace(**EQUAL)
    other = make_trace(**VARYING, name="other")
    assert wb(tmp_path, "plan", "run.parquet", "-o", "plan.parquet").returncode == 0
    allocator = f"plan:file:{tmp_path / 'plan.parquet'},on_mismatch:fallback"
    info = replayed(other, allocator, tmp_path / "results").info
    assert info["outcome"]["status"] == "ok"
    served = info["plan"]["served"]
    # Five blocks of 5,064 bytes and more, four of more than 70,000.
    departing = [
        size
        for (event, _, size), (_, _, planned) in zip(VARYING["rows"], EQUAL["rows"], strict=True)
        if event == "alloc" and size != planned
    ]
    assert (served["mismatches"], served["fallback"]) == (len(departing), len(departing))
    assert served["fallback_bytes"] == sum(departing)
    assert served["planned"] + served["fallback"] + served["unmanaged"] == 31


def test_a_plan_of_a_step_serves_the_others(make_trace: MakeTrace, tmp_path: Path) -> None:
    trace = make_trace(**EQUAL)
    for steps, outside in (("1:2", 6), ("1:3", 6), ("3:4", 16)):
        cell = replayed(trace, f"plan:steps:{steps},rearm:step", tmp_path / steps.replace(":", "-"))
        assert cell.info["outcome"]["status"] == "ok"
        served = cell.info["plan"]["served"]
        assert (served["outside"], served["planned"]) == (outside, 31 - outside)
    # Without it the ids go on, past the plan's end.
    once = replayed(trace, "plan:steps:1:2", tmp_path / "once").info["outcome"]
    assert (once["status"], once["mismatch"]["id"]) == ("plan_mismatch", 5)
    assert once["mismatch"]["expected"] == "the end of the plan, which has 5 ids"


def test_one_thread_is_planned(make_trace: MakeTrace, tmp_path: Path) -> None:
    rows: list[Row] = [("alloc", 0, 64), ("alloc", 1, 64), ("alloc", 2, 64), ("free", 1, 64)]
    trace = make_trace(rows, thread=[3, 7, 7, 3])
    plan = replayed(trace, "plan", tmp_path / "busiest").info["plan"]
    assert (plan["thread"], plan["managed"], plan["served"]["other_threads"]) == (7, 1, 1)
    plan = replayed(trace, "plan:thread:3", tmp_path / "named").info["plan"]
    assert (plan["thread"], plan["managed"], plan["served"]["other_threads"]) == (3, 0, 2)


def test_the_notes_tell_counts(make_trace: MakeTrace, tmp_path: Path) -> None:
    make_trace(**VARYING)
    allocator = "plan:steps:1:2,rearm:step,on_mismatch:fallback"
    done = wb(tmp_path, "replay", "run.parquet", "-a", allocator, "--repeat", "1")
    assert done.returncode == 0, done.stderr
    text = " ".join(done.stdout.split())
    assert "5 planned in" in text
    assert "of the lower bound" in text
    assert "7 mismatches sent 7 allocations of" in text
    assert "to raw memory, at most" in text


def test_a_plan_of_all_steps_has_nothing_to_begin_again(
    make_trace: MakeTrace, tmp_path: Path
) -> None:
    info = replayed(make_trace(**EQUAL), "plan:rearm:step", tmp_path / "results").info
    assert any("rearm:step does nothing" in warning for warning in info["warnings"])


def test_too_little_memory_is_out_of_memory(make_trace: MakeTrace, tmp_path: Path) -> None:
    done = wb(
        tmp_path, "replay", str(make_trace(**EQUAL)), "-a", "plan", "--capacity", "4KiB",
        "--repeat", "1", "--json",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (cell,) = json.loads(done.stdout)["cells"]
    assert cell["outcome"]["status"] == "out_of_memory"
    assert any("is more than the capacity" in warning for warning in cell["warnings"])


@pytest.mark.parametrize(
    ("allocator", "words"),
    [
        ("plan:planner:gredy", "unknown planner 'gredy'; there are best, first-fit-by-size"),
        ("plan:alignment:100", "alignment 100 is not a power of two"),
        ("plan:steps:2:2", "give A:B, from step A up to, not including, step B"),
        ("plan:steps:90:91", "there is no event in steps 90:91"),
        ("plan:on_mismatch:ignore", "give strict or fallback"),
        ("plan:rearm:always", "give never or step"),
        ("plan:seconds:0", "give a number above 0"),
        ("plan:file:missing.parquet", "--allocator plan:file:missing.parquet: missing.parquet: no"),
        ("plan:file:/dev/zero", "/dev/zero: is no regular file"),
        ("plan:file:", "plan:file: names no file"),
        ('plan:file:"plan.parquet', "a quote that does not end"),
        ("plan:file:run.parquet", "run.parquet: is not a plan"),
        ("plan:file:plan.parquet,steps:0:1", "the plan's file says it; leave it out"),
    ],
)
def test_wrong_settings_are_one_sentence(
    make_trace: MakeTrace, tmp_path: Path, allocator: str, words: str
) -> None:
    make_trace(**EQUAL)
    wb(tmp_path, "plan", "run.parquet", "-o", "plan.parquet")
    done = wb(tmp_path, "replay", "run.parquet", "-a", allocator)
    assert done.returncode == 2
    assert words in done.stderr
    assert "Traceback" not in done.stderr
    assert not list((tmp_path / "results").glob("*/cell.json"))


def test_a_plan_may_lie_at_a_path_with_blanks_and_commas(
    make_trace: MakeTrace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_trace(**EQUAL)
    wb(tmp_path, "plan", "run.parquet", "-o", "my plan, again.parquet")
    named = 'plan:file:"my plan, again.parquet"'
    done = wb(tmp_path, "replay", "run.parquet", "-a", named, "--repeat", "1", "-o", "out")
    assert done.returncode == 0, done.stderr
    (result,) = load_results([tmp_path / "out"])
    assert result.info["allocator"]["settings"] == {"file": "my plan, again.parquet"}
    monkeypatch.chdir(tmp_path)
    assert len(result.snapshot_at("peak").blocks)


def test_broken_plan_files_are_one_sentence(make_trace: MakeTrace, tmp_path: Path) -> None:
    make_trace(**EQUAL)
    wb(tmp_path, "plan", "run.parquet", "-o", "plan.parquet")
    good = pq.read_table(tmp_path / "plan.parquet")
    metadata = json.loads(good.schema.metadata[METADATA_KEY])

    def problem(table: pa.Table, **changed: Any) -> str:
        path = tmp_path / "broken.parquet"
        text = json.dumps({**metadata, **changed})
        pq.write_table(table.replace_schema_metadata({METADATA_KEY: text}), path)
        with pytest.raises(BrokenFileError) as error:
            read_plan(path)
        assert str(error.value).startswith(f"{path}: ")
        return str(error.value)

    def column(name: str, values: Any) -> pa.Table:
        return good.set_column(good.column_names.index(name), name, pa.array(values))

    offsets = [0 if offset is not None else None for offset in good["offset"].to_pylist()]
    assert "overlap" in problem(column("offset", offsets))
    assert "id 0 lies at offset -1" in problem(column("lifetime_end", [1] * len(good)))
    assert "has no column size" in problem(good.drop_columns(["size"]))
    assert "has no column size" in problem(column("size", [1.5] * len(good)))
    assert "rows without a value" in problem(column("size", [None, *[5] * 30]))
    assert "does not count from 0" in problem(column("id", range(1, 32)))
    assert "plan format version 2" in problem(good, format_version=2)
    for changed, said in (
        ({"format_version": "1"}, 'format_version "1", which is no whole number'),
        ({"thread": 2**40}, "thread 1099511627776, outside 0 to 2147483647"),
        ({"thread": -5}, "thread -5, outside 0 to"),
        ({"alignment": 2**70}, "alignment 1180591620717411303424, outside 1 to"),
        ({"steps": []}, "steps [], which are not the first and the one past the last"),
        ({"steps": [1]}, "steps [1], which are not"),
        ({"steps": ["a", "b"]}, 'steps ["a", "b"], which are not'),
        ({"seconds": math.nan}, "seconds NaN, which is no time"),
        ({"seconds": math.inf}, "seconds Infinity, which is no time"),
        ({"planner": 7}, "a planner that is none"),
    ):
        assert f"its metadata has {said}" in problem(good, **changed)
    far = good["offset"].to_pylist()
    far[3] = 2**45
    assert f"id 3 lies at offset {2**45:,}, and end to end" in problem(column("offset", far))
    assert "lacks alignment" in problem(good, alignment=None)
    assert "not a power of two" in problem(good, alignment=5)
    assert "of no step" in problem(good, steps=[3, 3])
    (tmp_path / "cut.parquet").write_bytes((tmp_path / "plan.parquet").read_bytes()[:-20])
    with pytest.raises(BrokenFileError, match="cannot be read as Parquet"):
        read_plan(tmp_path / "cut.parquet")


def test_a_thread_that_is_not_there_is_told(make_trace: MakeTrace, tmp_path: Path) -> None:
    make_trace(**EQUAL)
    for command in (
        ("replay", "run.parquet", "-a", "plan:thread:99"),
        ("plan", "run.parquet", "--thread", "99"),
    ):
        done = wb(tmp_path, *command)
        assert done.returncode == 2
        assert "thread:99: the trace has no such thread; its only thread is 0" in done.stderr
    info = replayed(tmp_path / "run.parquet", "cpu-caching:guard_thread:99", tmp_path / "out").info
    assert "guard_thread:99 is no thread of this trace" in " ".join(info["warnings"])


def test_a_plan_that_never_begins_again_says_so(make_trace: MakeTrace, tmp_path: Path) -> None:
    trace = make_trace(**EQUAL)
    settings = ("steps:0:2", "steps:1:50")
    said = [
        " ".join(
            replayed(trace, f"plan:{one},rearm:step,on_mismatch:fallback", folder).info["warnings"]
        )
        for one in settings
        for folder in [tmp_path / one.replace(":", "-")]
    ]
    assert ["rearm:step never began the plan" in one for one in said] == [False, True]


def test_the_next_command_runs_the_plan_that_was_checked(
    make_trace: MakeTrace, tmp_path: Path
) -> None:
    make_trace(**EQUAL)
    make_trace(EQUAL["rows"][:20], name="short", step=EQUAL["step"][:20])
    assert wb(tmp_path, "plan", "run.parquet", "-o", "a plan.parquet").returncode == 0
    same = wb(tmp_path, "plan", "a plan.parquet", "--check", "run.parquet").stdout
    assert "Next: wb replay run.parquet -a 'plan:file:\"a plan.parquet\"'" in same
    assert "fallback" not in same
    short = wb(tmp_path, "plan", "a plan.parquet", "--check", "short.parquet").stdout
    assert "-a 'plan:file:\"a plan.parquet\",on_mismatch:fallback'" in short
    assert "of the plan's 31 ids are missing" in short
    unwritten = wb(tmp_path, "plan", "run.parquet", "--check", "short.parquet").stdout
    assert "Next: wb plan run.parquet -o plan.parquet" in unwritten
