"""One run of a cell, in a process of its own: ``python -m workbench.replay.worker``.

The task comes as JSON on standard input; what was measured goes to ``arrays.npz`` and then
``result.json`` in the folder that the task names, each written beside and renamed, so that a result
that is there is whole. Only numpy and the engine are imported: a process for each run is affordable
because it starts quickly.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import numpy as np

from workbench.replay import _engine, last_words
from workbench.replay.events import ENGINE_COLUMNS, LANE_COLUMNS
from workbench.replay.statistics import histogram, summary_of_calls

STATES = ("cold", "steady")
TIMELINE_BUCKETS = 20_000
SLOWEST = 20
THREADS = 64
# A short trace is passed through several times, so that starting a pass does not count.
_LEAST_THROUGHPUT_NS = 2e7
_MOST_THROUGHPUT_PASSES = 20
_SMALL_SHARE = 0.01
_PR_SET_PDEATHSIG = 1


def die_with_parent() -> None:
    """Have the kernel end this process when the runner is killed: nothing else would."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def load_events(folder: Path, slot_count: int) -> tuple[Any, dict[str, np.ndarray]]:
    """The engine's events in `folder`, and their columns, mapped from what `Traffic.save` wrote."""
    columns = {
        name: np.load(folder / f"{name}.npy", mmap_mode="r")
        for name in (*ENGINE_COLUMNS, *LANE_COLUMNS)
        if (folder / f"{name}.npy").exists()
    }
    for column in columns.values():
        # Bring the pages in now: their faults belong to no call.
        column.max(initial=0)
    return _engine.Events(**columns, slot_count=slot_count), columns


def load_plan(path: Path) -> _engine.Plan:
    """A plan that `save_plan` wrote."""
    with np.load(path) as file:
        steps = tuple(file["steps"].tolist()) or None
        return _engine.Plan(
            file["size"],
            file["end"],
            file["offset"],
            alignment=int(file["alignment"]),
            thread=int(file["thread"]),
            steps=steps,
        )


def save_plan(plan: _engine.Plan, path: Path) -> None:
    """Write what is needed to run `plan`; `path` ends in ``.npz``."""
    np.savez(
        path,
        size=plan.size,
        end=plan.end,
        offset=plan.offset,
        alignment=plan.alignment,
        thread=plan.thread,
        steps=np.array(plan.steps or (), dtype=np.int64),
    )


def _latency(timed: _engine.TimedResult, columns: dict[str, np.ndarray]) -> dict[str, Any]:
    """Quantiles, histograms and totals of one timed pass, and its slowest calls."""
    ticks = timed["ticks"]
    called = np.flatnonzero(ticks)
    nanoseconds = ticks[called] * float(timed["ns_per_tick"])
    ops = columns["op"][called]
    causes = timed["cause"][called]
    kinds: dict[str, Any] = {}
    totals: dict[str, dict[str, float]] = {}
    buckets: list[dict[str, Any]] = []
    for kind, op in _engine.OPS.items():
        of_kind = ops == op
        if not of_kind.any():
            continue
        count = int(of_kind.sum())
        kinds[kind] = {"count": count, **summary_of_calls(nanoseconds[of_kind])}
        for number in np.unique(causes[of_kind]).tolist():
            cause = timed["causes"][number]
            chosen = nanoseconds[of_kind & (causes == number)]
            total = totals.setdefault(cause, {"count": 0, "total_ns": 0.0})
            total["count"] += len(chosen)
            total["total_ns"] += float(chosen.sum())
            numbers, counts = histogram(chosen)
            buckets.append({"kind": kind, "cause": cause, "buckets": numbers, "counts": counts})
    names = {op: kind for kind, op in _engine.OPS.items()}
    order = np.argsort(nanoseconds, kind="stable")[::-1][:SLOWEST]
    slowest = [
        {
            "index": int(called[at]),
            "kind": names[int(ops[at])],
            "size": int(columns["size"][called[at]]),
            "cause": timed["causes"][int(causes[at])],
            "ns": float(nanoseconds[at]),
        }
        for at in order
    ]
    threads = _by_thread(timed, columns["thread"], columns["op"])
    return {
        "kinds": kinds,
        "causes": totals,
        "histogram": buckets,
        "slowest": slowest,
        "threads": threads,
    }


def _by_thread(
    timed: _engine.TimedResult, thread: np.ndarray, op: np.ndarray
) -> dict[str, dict[str, Any]]:
    """Quantiles of the busiest threads, by number; empty where the trace has one thread."""
    called = np.flatnonzero(timed["ticks"])
    numbers, counts = np.unique(thread[called], return_counts=True)
    if len(numbers) < 2:
        return {}
    nanoseconds = timed["ticks"][called] * float(timed["ns_per_tick"])
    waited = timed["cause"][called] == timed["causes"].index("lock wait")
    found: dict[str, dict[str, Any]] = {}
    for number in sorted(numbers[np.argsort(-counts, kind="stable")][:THREADS].tolist()):
        own = thread[called] == number
        found[str(number)] = {
            kind: {"count": int(chosen.sum()), **summary_of_calls(nanoseconds[chosen])}
            for kind in ("alloc", "free")
            if (chosen := own & (op[called] == _engine.OPS[kind])).any()
        }
        found[str(number)]["lock_wait"] = {
            "count": int((own & waited).sum()),
            "total_ns": float(nanoseconds[own & waited].sum()),
        }
    return found


def _throughput_of_timed(timed: _engine.TimedResult, events: int) -> dict[str, float] | None:
    """Throughput read off a timed pass of one thread; None where the clock is more than a hundredth
    of it.
    """
    ticks = timed["ticks"]
    total = float(ticks.sum(dtype=np.float64)) * float(timed["ns_per_tick"])
    clock = np.count_nonzero(ticks) * float(timed["clock_cost_ns"])
    if not events or timed["outcome"] != "ok" or clock > _SMALL_SHARE * total:
        return None
    return {"events_per_s": 1e9 * events / total, "ns_per_event": total / events}


def _throughput(replay: Any, state: str) -> dict[str, float] | None:
    """One number from this process: the median over its passes."""
    first = replay.throughput(state, 1)
    if not first["events"] or first["outcome"] != "ok":
        return None
    passes = [float(time) for time in first["ns"]]
    more = int(min(_LEAST_THROUGHPUT_NS / max(passes[0], 1.0), _MOST_THROUGHPUT_PASSES))
    if more > 1:
        again = replay.throughput(state, more)
        if again["outcome"] == "ok":
            passes += again["ns"]
    per_event = float(np.median(passes)) / first["events"]
    return {"events_per_s": 1e9 / per_event, "ns_per_event": per_event}


def _memory(replay: Any, folder: Path) -> dict[str, Any]:
    """The memory pass; its timeline and blocks go to ``arrays.npz``."""
    found = replay.memory(TIMELINE_BUCKETS)
    arrays = {f"timeline.{name}": column for name, column in found.pop("timeline").items()}
    moments = {"peak": found["peaks"]["reserved"]["event"]}
    if found["oom"] is not None:
        moments["oom"] = found["oom"]["event"]
    for moment, event in moments.items():
        if event is None or event < 0:
            continue
        if replay.threads > 1:  # another pass would find another state
            break
        blocks = replay.memory(1, blocks_at=event)["blocks"]
        # Another pass may end earlier: a library may decide otherwise, and memory may be short.
        for table, columns in (blocks or {}).items():
            arrays.update({f"{moment}.{table}.{name}": value for name, value in columns.items()})
    part = folder / "arrays.part.npz"
    np.savez(part, **arrays)
    part.replace(folder / "arrays.npz")
    return {name: value for name, value in found.items() if name != "blocks"}


def run(task: dict[str, Any]) -> dict[str, Any]:
    """Measure what `task` asks for.

    Args:
        task: ``events`` (folder), ``slot_count``, ``replay`` (arguments of the engine's Replay),
            ``plan`` (file, where the allocator runs one: every process the same), ``prices`` (of
            driver calls, where they have some),
            ``memory`` (whether to make the memory pass or the timed ones), ``output`` (folder);
            ``library`` (of the user's; what it does is kept in the file of last words), ``check``
            (instead of measuring, only see what memory it hands out).
            The memory pass has a process of its own: what timed passes leave in the heap would
            hide the growth of resident memory, and what it leaves would warm their cold state.
    """
    if task.get("library"):
        _engine.keep_last_words(str(Path(task["output"]) / last_words.FILE))
    events, columns = load_events(Path(task["events"]), task["slot_count"])
    plan = load_plan(Path(task["plan"])) if task.get("plan") else None
    prices = _engine.DriverPrices(task["prices"]) if task.get("prices") else None
    replay = _engine.Replay(events, **task["replay"], plan=plan, prices=prices)
    if task.get("check"):
        replay.memory(1, ranges=True, verify=replay.has_bytes)
        return {}
    if task["memory"]:
        idle = _throughput(_engine.Replay(events, "null", backend="simulated"), "cold")
        memory = _memory(replay, Path(task["output"]))
        return {**memory, "harness_ns_per_event": idle["ns_per_event"] if idle else 0.0}
    result: dict[str, Any] = {"outcomes": {}, "states": {}, "throughput": {}, "digests": {}}
    for state in STATES:
        timed = replay.timed(state)
        result["outcomes"][state] = timed["outcome"]
        result["digests"][state] = timed["digest"]
        result["clock_cost_ns"] = float(timed["clock_cost_ns"])
        if timed["outcome"] != "ok":
            continue  # calls of a part of the trace compare with nothing
        result["states"][state] = _latency(timed, columns)
        whole = _throughput_of_timed(timed, len(columns["op"]))
        if whole is not None and replay.threads == 1:
            result["throughput"][state] = whole
    for state in STATES:
        measured = result["throughput"].get(state)
        # What is left in the process from the passes before would warm a cold state.
        if measured is None and (state != "cold" or replay.starts_afresh):
            measured = _throughput(replay, state)
        if measured is not None:
            result["throughput"][state] = measured
    return result


def main() -> None:
    """Read the task, measure, leave the result, end."""
    die_with_parent()
    task = json.load(sys.stdin)
    folder = Path(task["output"])
    try:
        result = run(task)
    except _engine.UnavailableError as error:
        result = {"unavailable": str(error)}
    except (ValueError, RuntimeError, SystemError, MemoryError, OSError) as error:
        result = {"error": f"{type(error).__name__}: {error}"}
        if task.get("library") and isinstance(error, (_engine.LibraryFault, _engine.DamagedBlock)):
            result["library_fault"] = str(error)
    # What goes wrong from here on is not a library's.
    (folder / last_words.FILE).unlink(missing_ok=True)
    part = folder / f"result.{os.getpid()}.part"
    part.write_text(json.dumps(result), encoding="utf-8")
    part.replace(folder / "result.json")
    # The result is there: nothing that a library does at the end of a process may take it away.
    os._exit(0)


if __name__ == "__main__":
    main()
