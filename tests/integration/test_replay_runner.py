"""The runner through real processes: what is measured, and what happens when one goes wrong."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import sys
import textwrap
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import workbench
from workbench.common.errors import BrokenFileError, RunError, UsageError
from workbench.replay import _engine, job, processes, runner
from workbench.replay.allocators import known_allocators
from workbench.replay.cell import AllocatorSpec, Capacity, Cell
from workbench.replay.events import load_trace
from workbench.replay.job import Options
from workbench.replay.machine import noise_warnings
from workbench.replay.measurement import spread_warnings
from workbench.replay.processes import WORKER_COMMAND, RunOutcome, run_worker
from workbench.replay.references import references
from workbench.replay.results import load_results
from workbench.replay.runner import replay_traces

MakeTrace = Callable[..., Path]
QUICK = Options(repeat=2)
MEBIBYTE = 2**20


def stub(tmp_path: Path, body: str) -> tuple[str, ...]:
    """A worker that does `body` instead of, or before, the real one's `main()`."""
    script = tmp_path / "stub_worker.py"
    script.write_text(
        "import json, os, signal, sys, time\nfrom workbench.replay import worker\n"
        + textwrap.dedent(body)
    )
    return (sys.executable, "-P", str(script))


def test_a_cell_is_measured_in_full(make_trace: MakeTrace, tmp_path: Path) -> None:
    trace = make_trace(scope="layer/aten::mm")
    session = replay_traces([str(trace)], ["direct", "caching"], tmp_path / "out", QUICK)
    assert session.failed == session.errors == session.left_out == []
    by_name = {result.info["allocator"]["name"]: result for result in session.results}
    direct = by_name["direct"].info
    assert direct["outcome"] == {"status": "ok", "reason": None, "oom": None}
    assert direct["backend"] == {"name": "host", "is_model": False}
    assert direct["capacity"] == {"bytes": None, "source": "unlimited"}
    assert direct["as_if"] is False
    assert direct["processes"] == 2
    allocs = sum(event == "alloc" for event in _events(trace))
    frees = sum(event == "free" for event in _events(trace))
    for state in ("cold", "steady"):
        measured = direct["latency"]["states"][state]
        assert measured["alloc"]["count"] == allocs
        assert measured["free"]["count"] == frees
        assert sum(cause["count"] for cause in measured["causes"].values()) == allocs + frees
        for kind in ("alloc", "free"):
            medians = [
                measured[kind][f"{q}_ns"]["median"] for q in ("p50", "p90", "p99", "p99_9", "max")
            ]
            assert medians == sorted(medians)
            assert len(measured[kind]["p50_ns"]["samples"]) == 2
        assert direct["throughput"][state]["events_per_s"]["median"] > 0
        assert direct["digests"][state]
    assert direct["memory"]["peaks"]["requested"]["bytes"] == direct["trace"]["peak_live_bytes"]
    assert direct["memory"]["driver_calls"]["alloc"] == allocs
    assert direct["memory"]["unused_share"] == 0
    assert {call["scope"] for call in direct["latency"]["slowest"]} == {"layer/aten::mm"}

    latency = by_name["direct"].latency
    cold = latency[(latency["state"] == "cold") & (latency["kind"] == "alloc")]
    assert cold["count"].sum() == 2 * allocs
    assert (latency["bucket_low_ns"] < latency["bucket_high_ns"]).all()

    timeline = by_name["caching"].timeline
    assert timeline["event_first"].tolist()[0] == 0
    assert timeline["event_last"].tolist()[-1] == direct["trace"]["rows"] - 1
    peaks = by_name["caching"].info["memory"]["peaks"]
    for name in ("requested", "allocated", "active", "reserved"):
        assert timeline[f"{name}_max"].max() == peaks[name]["bytes"]
        assert (timeline[f"{name}_min"] <= timeline[f"{name}_max"]).all()

    blocks = by_name["caching"].blocks
    assert set(blocks["moment"]) == {"peak"}
    assert blocks["size"].sum() == peaks["reserved"]["bytes"]
    used = blocks[blocks["state"] == "active_allocated"]
    share = by_name["caching"].info["memory"]["unused_share"]
    assert share == pytest.approx(1 - used["size"].sum() / peaks["reserved"]["bytes"])
    assert 0 < used["requested"].sum() <= peaks["requested"]["bytes"]
    assert set(used["scope"]) == {"layer/aten::mm"}
    assert (used["id"] >= 0).all()


def _events(trace: Path) -> list[str]:
    import pyarrow.parquet as pq

    events: list[str] = pq.read_table(trace)["event"].to_pylist()
    return events


def test_cpu_traffic_through_a_device_allocator_is_labelled_as_if(
    make_trace: MakeTrace, tmp_path: Path
) -> None:
    session = replay_traces([str(make_trace())], ["caching"], tmp_path / "out", Options(repeat=1))
    info = session.results[0].info
    assert info["as_if"] is True
    assert info["backend"] == {"name": "simulated", "is_model": True}
    assert info["capacity"] == {"bytes": 80 * 2**30, "source": "default"}
    assert any(warning.startswith("As-if replay") for warning in info["warnings"])
    assert any("is a model" in warning for warning in info["warnings"])


def test_device_traffic_through_its_own_allocator_is_not_as_if(
    make_trace: MakeTrace, tmp_path: Path
) -> None:
    left = {"cuda:0": {"name": "GPU", "capacity": 64 * MEBIBYTE, "held_by_others": 24 * MEBIBYTE}}
    trace = make_trace(device="cuda:0", metadata={"devices": left})
    session = replay_traces([str(trace)], ["caching"], tmp_path / "out", Options(repeat=1))
    info = session.results[0].info
    assert info["as_if"] is False
    assert info["trace"]["device"] == "cuda:0"
    assert info["capacity"] == {"bytes": 40 * MEBIBYTE, "source": "trace"}


def test_out_of_memory_is_a_result(make_trace: MakeTrace, tmp_path: Path) -> None:
    trace = make_trace([("alloc", number, MEBIBYTE) for number in range(20)])
    session = replay_traces(
        [str(trace)],
        ["direct", "caching"],
        tmp_path / "out",
        Options(repeat=2, capacity=10 * MEBIBYTE),
    )
    assert session.failed == []
    for result in session.results:
        outcome = result.info["outcome"]
        assert outcome["status"] == "out_of_memory"
        assert outcome["oom"]["event"] == 10
        assert outcome["oom"]["time_ns"] == 10_000
        assert outcome["oom"]["requested"] == MEBIBYTE
        assert outcome["oom"]["live_requested"] == 10 * MEBIBYTE
        assert set(result.blocks["moment"]) == {"peak", "oom"}
        assert result.info["throughput"] == {}


def test_after_out_of_memory_the_replay_can_continue(make_trace: MakeTrace, tmp_path: Path) -> None:
    rows = [("alloc", 0, MEBIBYTE), ("alloc", 1, 50 * MEBIBYTE), ("alloc", 2, MEBIBYTE)]
    rows += [("free", 1, 50 * MEBIBYTE), ("free", 0, MEBIBYTE)]
    session = replay_traces(
        [str(make_trace(rows))],
        ["direct"],
        tmp_path / "out",
        Options(repeat=1, capacity=10 * MEBIBYTE, after_oom="continue"),
    )
    info = session.results[0].info
    assert info["outcome"]["status"] == "out_of_memory"
    assert info["outcome"]["oom"]["count"] == 1
    assert info["memory"]["peaks"]["requested"]["bytes"] == 2 * MEBIBYTE
    assert info["memory"]["finals"]["requested"] == MEBIBYTE


def test_a_trace_without_events_is_replayed(make_trace: MakeTrace, tmp_path: Path) -> None:
    session = replay_traces([str(make_trace([]))], ["all"], tmp_path / "out", Options(repeat=1))
    assert len(session.results) + len(session.left_out) == len(known_allocators())
    for result in session.results:
        assert result.info["outcome"]["status"] == "ok"
        assert result.info["memory"]["peaks"]["reserved"] == {
            "bytes": 0,
            "event": None,
            "time_ns": None,
        }
        assert result.info["memory"]["unused_share"] is None
        assert len(result.timeline) == len(result.blocks) == len(result.latency) == 0
        assert any("no event to replay" in warning for warning in result.info["warnings"])


def test_the_same_trace_gives_the_same_decisions_and_another_trace_others(
    make_trace: MakeTrace, tmp_path: Path
) -> None:
    one, other = str(make_trace()), str(make_trace([("alloc", 0, 5)], name="other"))
    first = replay_traces([one], ["caching"], tmp_path / "a", Options(repeat=1)).results[0].info
    again = replay_traces([one], ["caching"], tmp_path / "b", Options(repeat=1)).results[0].info
    third = replay_traces([other], ["caching"], tmp_path / "c", Options(repeat=1)).results[0].info
    assert first["digests"] == again["digests"]
    assert first["key"] == again["key"]
    assert first["digests"] != third["digests"]
    assert first["trace"]["fingerprint"] != third["trace"]["fingerprint"]


def test_a_folder_of_ranks_is_one_trace_with_a_cell_for_each(
    make_trace: MakeTrace, tmp_path: Path
) -> None:
    (tmp_path / "job").mkdir()
    for rank in (0, 1):
        make_trace(name=f"job/rank={rank}", metadata={"rank": rank, "world_size": 2})
    session = replay_traces(
        [str(tmp_path / "job")], ["direct"], tmp_path / "out", Options(repeat=1)
    )
    assert [result.folder.name for result in session.results] == [
        "job-rank=0.cpu.direct.host.unlimited",
        "job-rank=1.cpu.direct.host.unlimited",
    ]


def test_the_order_of_runs_is_shuffled_and_depends_on_the_seed_only(
    make_trace: MakeTrace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[tuple[str, bool]] = []
    known: dict[tuple[str, bool], tuple[Path, RunOutcome]] = {}

    def noting(task: dict[str, Any], folder: Path, *rest: Any) -> RunOutcome:
        run = (task["replay"]["allocator"], task["memory"])
        ran.append(run)
        if run not in known:
            kept = tmp_path / f"kept-{len(known)}"
            known[run] = (kept, run_worker(task, folder, *rest))
            shutil.copytree(folder, kept)
        kept, outcome = known[run]
        shutil.copytree(kept, folder, dirs_exist_ok=True)
        return outcome

    monkeypatch.setattr(runner, "run_worker", noting)
    trace, three = str(make_trace()), ["direct", "caching", "cpu-caching"]
    orders = []
    for seed in (1, 1, 2):
        ran.clear()
        replay_traces([trace], three, tmp_path / "out", Options(repeat=4, seed=seed))
        orders.append(list(ran))
    assert orders[0] == orders[1] != orders[2]
    for order in orders:
        rounds = [order[start : start + 3] for start in range(0, 15, 3)]
        assert all(sorted(name for name, _ in of_round) == sorted(three) for of_round in rounds)
        assert [memory for _, memory in order] == [True] * 3 + [False] * 12


@pytest.mark.parametrize(
    ("body", "status", "reason"),
    [
        ("os.kill(os.getpid(), signal.SIGSEGV)", "crashed", "signal SIGSEGV"),
        ("os.kill(os.getpid(), signal.SIGKILL)", "crashed", "SIGKILL; the system may be out of"),
        ("sys.exit('no memory for tables')", "crashed", "exit code 1 and no result .no memory"),
        ("os._exit(0)", "crashed", "exit code 0 and no result"),
        ("time.sleep(600)", "timed_out", "longer than 0.5 s .* allow more with --timeout"),
        ("worker.run = lambda task: 1 / 0\nworker.main()", "crashed", "ZeroDivisionError"),
        (
            "def fault(task): raise RuntimeError('id 3 is damaged at byte 8')\n"
            "worker.run = fault\nworker.main()",
            "crashed",
            "the engine stopped: RuntimeError: id 3 is damaged at byte 8",
        ),
    ],
)
def test_a_worker_that_goes_wrong_is_a_row_and_the_others_go_on(
    body: str, status: str, reason: str, make_trace: MakeTrace, tmp_path: Path
) -> None:
    only_caching = (
        "text = sys.stdin.read()\n"
        "import io; sys.stdin = io.StringIO(text)\n"
        "if json.loads(text)['replay']['allocator'] == 'caching':\n"
        + textwrap.indent(body, "    ")
        + "\nelse:\n    worker.main()\n"
    )
    hangs = status == "timed_out"
    session = replay_traces(
        [str(make_trace())],
        ["caching", "direct"],
        tmp_path / "out",
        Options(
            repeat=2,
            timeout=0.5 if hangs else 60,
            # Nothing but the hanging worker may meet a limit that short.
            worker_command=stub(tmp_path, body if hangs else only_caching),
        ),
    )
    caching, direct = (result.info for result in session.results)
    assert caching["outcome"]["status"] == status
    assert re.search(reason, caching["outcome"]["reason"])
    assert caching["memory"] is None
    assert caching["latency"] is None
    assert session.results[0].folder.name in session.failed
    if not hangs:
        assert direct["outcome"]["status"] == "ok"
        assert direct["processes"] == 2
        assert len(session.failed) == 1


def test_a_worker_that_crashes_later_keeps_what_was_measured_before(
    make_trace: MakeTrace, tmp_path: Path
) -> None:
    body = """
        import io
        text = sys.stdin.read()
        sys.stdin = io.StringIO(text)
        if json.loads(text)["memory"]:
            worker.main()
        else:
            os.kill(os.getpid(), signal.SIGBUS)
    """
    session = replay_traces(
        [str(make_trace())],
        ["direct"],
        tmp_path / "out",
        Options(repeat=3, worker_command=stub(tmp_path, body)),
    )
    info = session.results[0].info
    assert info["outcome"]["status"] == "crashed"
    assert info["memory"]["peaks"]["requested"]["bytes"] > 0
    assert info["latency"] is None
    assert len(session.results[0].timeline) > 0


def test_processes_that_decide_differently_are_an_error_that_names_the_cell(
    make_trace: MakeTrace, tmp_path: Path
) -> None:
    body = """
        real = worker.run
        def run(task):
            result = real(task)
            if not task["memory"] and task["replay"]["allocator"] == "caching":
                result["digests"]["steady"] = str(os.getpid())
            return result
        worker.run = run
        worker.main()
    """
    session = replay_traces(
        [str(make_trace())],
        ["caching", "direct"],
        tmp_path / "out",
        Options(repeat=2, worker_command=stub(tmp_path, body)),
    )
    assert len(session.errors) == 1
    assert "caching on simulated" in session.errors[0]
    assert "steady state" in session.errors[0]
    assert [result.info["allocator"]["name"] for result in session.results] == ["direct"]
    assert len(load_results([tmp_path / "out"])) == 1


def test_a_slow_cell_is_timed_in_fewer_processes_unless_their_number_is_given(
    make_trace: MakeTrace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job, "ENOUGH_SECONDS", 0.0)
    trace = str(make_trace())
    (fewer,) = replay_traces([trace], ["direct"], tmp_path / "a", Options()).results
    assert fewer.info["processes"] == job.LEAST_REPEAT
    assert any("in 3 processes instead of 10" in text for text in fewer.info["warnings"])
    (asked,) = replay_traces([trace], ["direct"], tmp_path / "b", Options(repeat=4)).results
    assert asked.info["processes"] == 4
    assert not any("instead of" in text for text in asked.info["warnings"])


def test_processes_that_differ_widely_are_reported() -> None:
    cell = Cell("t", "cpu", AllocatorSpec("direct"), "cpu", "host", Capacity(None, "unlimited"))
    steady = {"cold": {"ns_per_event": {"samples": [100.0, 101.0]}}}
    noisy = {**steady, "steady": {"ns_per_event": {"samples": [100.0, 200.0, 100.0]}}}
    assert spread_warnings(cell, steady) == []
    (warning,) = spread_warnings(cell, noisy)
    assert "direct on host: processes differ by 100% (steady)" in warning


def test_a_worker_killed_from_outside_is_a_row(make_trace: MakeTrace, tmp_path: Path) -> None:
    marker = tmp_path / "pid"
    body = f"""
        with open({str(marker)!r} + ".part", "w") as file:
            file.write(str(os.getpid()))
        os.replace({str(marker)!r} + ".part", {str(marker)!r})
        time.sleep(600)
    """

    def kill() -> None:
        while not marker.exists():
            threading.Event().wait(0.02)
        os.kill(int(marker.read_text()), signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    session = replay_traces(
        [str(make_trace())],
        ["direct"],
        tmp_path / "out",
        Options(repeat=1, worker_command=stub(tmp_path, body)),
    )
    killer.join()
    assert session.results[0].info["outcome"]["status"] == "crashed"


def test_an_interrupted_call_leaves_no_worker(tmp_path: Path) -> None:
    marker = tmp_path / "pid"
    command = stub(
        tmp_path,
        f"open({str(marker)!r}, 'w').write(str(os.getpid()))\n"
        "os.kill(os.getppid(), signal.SIGINT)\ntime.sleep(600)",
    )
    folder = tmp_path / "run"
    folder.mkdir()
    with pytest.raises(KeyboardInterrupt):
        run_worker({}, folder, 60, command)
    with pytest.raises(ProcessLookupError):
        os.kill(int(marker.read_text()), 0)


def test_a_replay_module_in_the_current_folder_does_not_matter(
    make_trace: MakeTrace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trace = make_trace()
    for name in ("replay.py", "reports.py", "workbench.py", "numpy.py", "json.py"):
        (tmp_path / name).write_text("raise SystemExit('the wrong module')")
    monkeypatch.chdir(tmp_path)
    session = replay_traces([str(trace)], ["direct"], tmp_path / "out", Options(repeat=1))
    assert session.results[0].info["outcome"]["status"] == "ok"


def test_a_worker_needs_nothing_but_numpy_and_the_engine(tmp_path: Path) -> None:
    script = (
        "import sys, workbench.replay.worker\n"
        "heavy = {'pyarrow', 'pandas', 'rich', 'typer', 'plotly', 'torch', 'psutil'}\n"
        "sys.exit(' '.join(heavy & set(sys.modules)) or 0)"
    )
    folder = tmp_path / "run"
    folder.mkdir()
    outcome = run_worker({}, folder, 60, (sys.executable, "-P", "-c", script))
    assert outcome.reason == "a run ended with exit code 0 and no result"
    assert WORKER_COMMAND[1:] == ("-P", "-m", "workbench.replay.worker")


@pytest.mark.parametrize(
    ("options", "allocators", "message"),
    [
        (Options(), [], "no allocator is named"),
        (Options(), ["cachin"], "did you mean 'caching'"),
        (Options(), ["caching:no_such:1"], "no_such"),
        (Options(backend="hots"), ["direct"], "did you mean 'host'"),
        (Options(device="cuda:9"), ["direct"], "it has cpu"),
        (Options(completion="soon"), ["direct"], "delay:N"),
        (Options(after_oom="panic"), ["direct"], "stop or continue"),
        (Options(repeat=0), ["direct"], "1 or more"),
        (Options(timeout=0), ["direct"], "seconds above 0"),
        (Options(timeout=float("nan")), ["direct"], "seconds above 0"),
    ],
)
def test_wrong_use_is_refused_before_anything_runs(
    options: Options, allocators: list[str], message: str, make_trace: MakeTrace, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=message):
        replay_traces([str(make_trace())], allocators, tmp_path / "out", options)


def test_traces_of_one_name_are_refused(make_trace: MakeTrace, tmp_path: Path) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
    traces = [str(make_trace(name="a/run")), str(make_trace([], name="b/run"))]
    with pytest.raises(UsageError, match="the same name"):
        replay_traces(traces, ["direct"], tmp_path / "out", QUICK)


def test_a_result_of_another_trace_is_refused_before_anything_runs(
    make_trace: MakeTrace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    replay_traces([str(make_trace())], ["direct"], tmp_path / "out", Options(repeat=1))
    trace = str(make_trace([("alloc", 0, 8)]))
    with monkeypatch.context() as patch:
        patch.setattr(runner, "run_worker", None)
        with pytest.raises(UsageError, match=r"another fingerprint.*--force"):
            replay_traces([trace], ["direct"], tmp_path / "out", Options(repeat=1))
    forced = replay_traces([trace], ["direct"], tmp_path / "out", Options(repeat=1, force=True))
    assert forced.results[0].info["trace"]["events"] == 1


def test_what_is_no_trace_is_a_broken_file(tmp_path: Path) -> None:
    (tmp_path / "run.parquet").write_text("not Parquet")
    with pytest.raises(BrokenFileError, match=r"run\.parquet"):
        replay_traces([str(tmp_path / "run.parquet")], ["direct"], tmp_path / "out", QUICK)


def test_an_allocator_that_cannot_run_here_is_left_out_of_all_and_a_row_by_name(
    make_trace: MakeTrace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = [
        {**info, "available": False, "reason": "there is no GPU"}
        if info["name"] == "caching"
        else info
        for info in _engine.allocators()
    ]
    monkeypatch.setattr(_engine, "allocators", lambda: known)
    trace = str(make_trace())
    every = replay_traces([trace], ["all"], tmp_path / "all", Options(repeat=1))
    # What of PyTorch's own can run depends on the torch that is installed.
    assert [one for one in every.left_out if one[0] not in references()] == [
        ("caching", "there is no GPU"),
        ("pluggable", "name one: pluggable:LIB.so"),
    ]
    assert every.failed == []
    assert "caching" not in {result.info["allocator"]["name"] for result in every.results}
    named = replay_traces([trace], ["caching"], tmp_path / "named", Options(repeat=1))
    assert named.results[0].info["outcome"]["status"] == "unavailable"
    assert named.results[0].info["outcome"]["reason"] == "there is no GPU"
    assert named.failed == [named.results[0].folder.name]


def test_a_full_scratch_disk_is_one_sentence(
    make_trace: MakeTrace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device", "events.npy")

    monkeypatch.setattr(np, "save", full)
    with pytest.raises(RunError, match=r"events\.npy \(No space left on device\).*TMPDIR"):
        replay_traces([str(make_trace())], ["direct"], tmp_path / "out", QUICK)


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_peak_live_and_devices_are_those_of_the_trace(
    data: st.DataObject, make_trace: MakeTrace
) -> None:
    sizes = data.draw(st.lists(st.integers(1, 10**12), max_size=30))
    rows, live, peak, total = [], {}, 0, 0
    for number, size in enumerate(sizes):
        rows.append(("alloc", number, size))
        live[number] = size
        total += size
        peak = max(peak, sum(live.values()))
        for old in data.draw(st.lists(st.sampled_from(sorted(live)), unique=True, max_size=2)):
            rows += [("free", old, live.pop(old))]
    (loaded,) = load_trace(str(make_trace(rows)))
    traffic = loaded.traffic("cpu")
    assert traffic.peak_live_bytes == peak
    assert loaded.bytes_by_device == ({"cpu": total} if sizes else {})
    assert traffic.row.tolist() == list(range(len(rows)))
    assert traffic.ids.tolist() == [id_ for _, id_, _ in rows]
    # No two ids that are live together share a slot.
    held: dict[int, int] = {}
    for (event, id_, _), slot in zip(rows, traffic.slot.tolist(), strict=True):
        if event == "alloc":
            assert slot not in held
            held[slot] = id_
        else:
            assert held.pop(slot) == id_


def test_events_the_engine_does_not_know_are_passed_over(make_trace: MakeTrace) -> None:
    rows = [("alloc", 0, 8), ("mark", -1, 0), ("sample", -1, 0), ("free", 0, 8)]
    (loaded,) = load_trace(str(make_trace(rows)))
    assert loaded.traffic("cpu").row.tolist() == [0, 3]
    assert loaded.rows == 4


def test_the_python_call_gives_frames_tables_and_html(
    make_trace: MakeTrace, tmp_path: Path
) -> None:
    from rich.console import Console

    result = workbench.replay(make_trace(), ["direct", "caching"], repeat=2, capacity="1GiB")
    assert len(result) == 2
    assert "caching" in repr(result[1])
    frame = result.to_pandas()
    assert frame["allocator"].tolist() == ["direct", "caching"]
    assert frame["capacity_bytes"].tolist() == [2**30, 2**30]
    assert (frame["steady_alloc_p50_ns"] <= frame["steady_alloc_max_ns"]).all()
    console = Console(width=160, record=True, file=open(os.devnull, "w"))  # noqa: SIM115
    console.print(result)
    console.file.close()
    text = console.export_text()
    for words in ("peak reserved", "as-if replay", "is a model", "our own implementation"):
        assert words in text
    html = result._repr_html_()
    assert html.count("<tr") == 3
    assert "as-if" in html
    folder = result[0].folder
    assert folder.exists()
    del result
    assert not folder.exists()


def test_results_of_the_python_call_can_be_kept(make_trace: MakeTrace, tmp_path: Path) -> None:
    workbench.replay(str(make_trace()), "direct", repeat=1, output=tmp_path / "kept")
    assert len(load_results([tmp_path / "kept"])) == 1


def test_the_machine_is_written_into_every_result(make_trace: MakeTrace, tmp_path: Path) -> None:
    session = replay_traces([str(make_trace())], ["direct"], tmp_path / "out", Options(repeat=1))
    info = json.loads((session.results[0].folder / "cell.json").read_text())
    assert info["machine"]["cores"] >= 1
    assert info["versions"]["workbench"] == workbench.__version__
    assert set(noise_warnings(info["machine"])) <= set(info["warnings"])
    assert processes.WORKER_COMMAND[0] == sys.executable
