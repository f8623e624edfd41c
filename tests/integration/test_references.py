"""PyTorch's own allocators beside ours: what is listed, what runs, what a crash of theirs means."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from workbench.common.errors import UsageError
from workbench.common.torch_build import find_torch
from workbench.replay import _engine, references
from workbench.replay.allocators import known_allocators
from workbench.replay.fit import fit_trace
from workbench.replay.job import Options
from workbench.replay.notes import notes
from workbench.replay.references import HEADER
from workbench.replay.runner import Session, replay_traces
from workbench.replay.summary import memory_table
from workbench.replay.summary_rows import rows

MakeTrace = Callable[..., Path]
NAMES = sorted(references.references())
# Seven buffers of one size on which the original's planner crashes.
SEVEN = [(0, 4), (1, 5), (2, 6), (3, 12), (7, 9), (8, 10), (9, 11)]
TORCH_IS_HERE = not references.references()["torch-plan"].unavailable()
needs_torch = pytest.mark.skipif(not TORCH_IS_HERE, reason="references are PyTorch's own code")


def seven_rows() -> list[tuple[str, int, int]]:
    rows: list[tuple[str, int, int]] = []
    for time in range(13):
        rows += [("free", number, 64) for number, (_, end) in enumerate(SEVEN) if end == time]
        rows += [("alloc", number, 64) for number, (begin, _) in enumerate(SEVEN) if begin == time]
    return rows


def replay(trace: Path, allocators: list[str], output: Path, **options: Any) -> Session:
    return replay_traces([str(trace)], allocators, output, Options(repeat=1, **options))


def by_allocator(session: Session) -> dict[str, dict[str, Any]]:
    return {result.info["allocator"]["name"]: result.info for result in session.results}


def test_a_reference_is_two_files_in_the_folder_and_everything_of_it_is_installed() -> None:
    assert {"torch-cpu-caching", "torch-plan"} <= set(NAMES)
    ours = {info["name"] for info in _engine.allocators()}
    for name, reference in references.references().items():
        assert name.startswith("torch-")
        assert reference.models in ours
        assert (references.FOLDER / reference.source).is_file()
    assert HEADER.is_file()


def test_two_references_of_one_name_are_an_error(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("one", "other"):
        (tmp_path / f"{name}.py").write_text("")
    monkeypatch.setattr(references, "FOLDER", tmp_path)
    plan = references.references()["torch-plan"]
    module = type("Module", (), {"REFERENCE": plan})
    monkeypatch.setattr(references.importlib, "import_module", lambda name: module)
    with pytest.raises(ImportError, match=r"two references have the name 'torch-plan'"):
        references.references.__wrapped__()


def test_they_are_described_as_the_engines_own_are() -> None:
    keys = set(_engine.allocators()[0])
    for name in NAMES:
        info = known_allocators()[name]
        assert keys <= set(info)
        assert info["latency_source"] == "reference"


@needs_torch
def test_all_has_the_references_and_marks_them(make_trace: MakeTrace, tmp_path: Path) -> None:
    # Each block is larger than all before it together: no two free ranges are equal.
    trace = [("alloc", number, 64 * 3**number) for number in range(8)]
    trace += [("free", number, 64 * 3**number) for number in range(8)]
    progress: list[str] = []
    session = replay_traces(
        [str(make_trace(trace))],
        ["all"],
        tmp_path / "out",
        Options(repeat=1),
        lambda what, done, total: progress.append(what),
    )
    assert session.failed == []
    assert "Building" in progress
    infos = by_allocator(session)
    run = {name: one for name, one in references.references().items() if not one.unavailable()}
    left_out = dict(session.left_out)
    for name in NAMES:
        if name not in run:
            assert left_out[name] == references.references()[name].unavailable()
            continue
        info = infos[name]
        assert info["outcome"]["status"] == "ok", info["outcome"]
        assert info["allocator"]["latency_source"] == info["latency"]["source"] == "reference"
    for theirs, reference in run.items():
        ours, original = (infos[one]["memory"] for one in (reference.models, theirs))
        for name in ("requested", "allocated", "reserved"):
            assert ours["peaks"][name]["bytes"] == original["peaks"][name]["bytes"]
        assert ours["reserved_meaning"] == original["reserved_meaning"]
    table = memory_table(rows(session.results))
    assert "torch-plan †" in table.columns[0]._cells
    assert any(note.startswith("† PyTorch's own code") for note in notes(session.results))


@needs_torch
def test_the_planners_crash_is_told_and_fails_only_who_asked_for_it(
    make_trace: MakeTrace, tmp_path: Path
) -> None:
    trace = make_trace(seven_rows())
    every = replay(trace, ["all"], tmp_path / "all")
    infos = by_allocator(every)
    outcome = infos["torch-plan"]["outcome"]
    assert outcome["status"] == "crashed"
    assert "PyTorch's own planner, c10::AllocationPlanner, crashed" in outcome["reason"]
    assert "two free ranges have the same size" in outcome["reason"]
    assert infos["plan"]["outcome"]["status"] == "ok"
    assert infos["torch-cpu-caching"]["outcome"]["status"] == "ok"
    assert every.failed == []
    named = replay(trace, ["all", "torch-plan"], tmp_path / "named")
    assert named.failed == [by_allocator(named)["torch-plan"]["name"]]


@needs_torch
def test_what_takes_its_memory_from_the_system_does_not_run_on_a_simulation(
    make_trace: MakeTrace, tmp_path: Path
) -> None:
    trace = make_trace()
    every = replay(trace, ["all"], tmp_path / "all", backend="simulated")
    left_out = dict(every.left_out)
    for name in ("torch-cpu-caching", "torch-plan"):
        assert "it runs on the backend host" in left_out[name]
    assert every.failed == []
    named = replay(trace, ["torch-plan"], tmp_path / "named", backend="simulated")
    assert named.results[0].info["outcome"] == {
        "status": "unavailable",
        "reason": left_out["torch-plan"],
        "oom": None,
    }
    assert len(named.failed) == 1
    fitted = fit_trace(str(trace), ["torch-plan", "direct"])
    assert [fit.status for fit in fitted.fits] == ["unavailable", "fits"]


@needs_torch
def test_a_capacity_that_does_not_hold_it_and_what_it_was_compiled_from_are_told(
    make_trace: MakeTrace, tmp_path: Path
) -> None:
    session = replay(
        make_trace(), ["torch-cpu-caching", "cpu-caching"], tmp_path / "out", capacity=100 << 20
    )
    infos = by_allocator(session)
    theirs, ours = infos["torch-cpu-caching"], infos["cpu-caching"]
    held = "a capacity of 100.00 MiB does not hold it: it takes its memory from the system itself"
    assert [held in " ".join(info["warnings"]) for info in (theirs, ours)] == [True, False]
    assert theirs["versions"]["torch"] == find_torch().version
    assert theirs["versions"]["compiler"]
    assert "torch" not in ours["versions"]


def test_without_torch_they_are_left_out_of_all_and_a_row_by_name(
    make_trace: MakeTrace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(references, "_missing", lambda: "torch is not installed")
    trace = make_trace()
    every = replay(trace, ["all"], tmp_path / "all")
    assert set(NAMES) <= {name for name, reason in every.left_out if "torch" in reason}
    assert every.failed == []
    assert not set(NAMES) & set(by_allocator(every))
    named = replay(trace, ["torch-plan"], tmp_path / "named")
    outcome = named.results[0].info["outcome"]
    assert (outcome["status"], outcome["reason"]) == ("unavailable", "torch is not installed")
    assert len(named.failed) == 1


@needs_torch
def test_what_the_compiler_refuses_is_left_out_of_all_and_a_row_by_name(
    make_trace: MakeTrace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("CXX", "false")
    trace = make_trace()
    every = replay(trace, ["all"], tmp_path / "all")
    assert "could not compile" in dict(every.left_out)["torch-plan"]
    assert every.failed == []
    named = replay(trace, ["torch-plan"], tmp_path / "named")
    outcome = named.results[0].info["outcome"]
    assert outcome["status"] == "unavailable"
    assert "could not compile" in outcome["reason"]


@needs_torch
def test_a_folder_with_blanks_and_commas_will_do(
    make_trace: MakeTrace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "a b, c [d]"))
    session = replay(make_trace(), ["torch-cpu-caching"], tmp_path / "out")
    assert session.results[0].info["outcome"]["status"] == "ok"
    assert session.results[0].info["allocator"]["settings"] == {}


def test_a_setting_that_a_reference_does_not_take_is_wrong_use(
    make_trace: MakeTrace, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=r"unknown setting 'planner'; it takes none"):
        replay(make_trace(), ["torch-plan:planner:greedy"], tmp_path / "out")


@needs_torch
def test_a_crash_of_the_pinned_cache_is_told_by_its_defect(
    make_trace: MakeTrace, tmp_path: Path
) -> None:
    # A block of 129 MiB serves a request for 255 MiB: both are in the free list up to 256 MiB.
    rows = [("alloc", 0, 129 << 20), ("free", 0, 129 << 20), ("alloc", 1, 255 << 20)]
    trace = make_trace([*rows, ("free", 1, 255 << 20)], device="pinned")
    limit = "torch-host-pinned:pinned_max_round_threshold_mb:1"
    session = replay(trace, [limit], tmp_path / "out", backend="host")
    outcome = session.results[0].info["outcome"]
    if outcome["status"] == "unavailable":
        pytest.skip("this process may pin little memory")
    assert outcome["status"] == "crashed"
    assert "hands out blocks smaller than asked" in outcome["reason"]
