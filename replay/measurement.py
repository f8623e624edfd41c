"""From what the processes of one cell measured to the fields and tables of its result."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from workbench.common.errors import RunError
from workbench.replay.cell import Cell
from workbench.replay.events import Traffic
from workbench.replay.lanes import pool_names
from workbench.replay.results import BOUNDS, SERIES
from workbench.replay.statistics import bucket_edges, interval, intervals, spread

STATES = ("cold", "steady")
SLOWEST = 20
# Processes that differ by more than this share of their median are reported.
NOISY_SPREAD = 0.3
RESERVED_MEANING = {
    "direct": "bytes held, each block rounded up to 512 on a device",
    "async": "bytes that the driver's pool holds",
    "cpu-caching": "all bytes taken from the system",
    "caching": "bytes of all segments taken from the device",
    "host-pinned": "all bytes pinned, in use or cached",
    "plan": "the arena and what is held beside it",
    "pluggable": "what the library reports",
}

Tables = dict[str, dict[str, Any]]


def check_digests(
    cell: Cell, memory: Mapping[str, Any] | None, runs: Sequence[Mapping[str, Any]]
) -> dict[str, str]:
    """The digest of every decision, one for each state, the same in all passes and processes.

    Empty where several threads replayed: what they decide depends on their race.

    Raises:
        RunError: two passes of the same state decided differently.
    """
    digests: dict[str, str] = {}
    if memory is not None and memory["digest"] is not None:
        digests["cold"] = memory["digest"]
    for process, run in enumerate(runs):
        for state, digest in run["digests"].items():
            if digest is None:
                continue
            # A library of the user's is free to decide by addresses, or by the clock.
            if digests.setdefault(state, digest) != digest and cell.latency_source != "library":
                raise RunError(
                    f"{cell.allocator.label} on {cell.backend} with {cell.trace}: timed process "
                    f"{process} made other decisions in the {state} state than those before, so "
                    "its numbers cannot be trusted; report this as a defect"
                )
    return digests


def latency_fields(
    runs: Sequence[Mapping[str, Any]], traffic: Traffic, source: str, seed: int
) -> dict[str, Any]:
    """The field ``latency``: quantiles over processes, causes, the slowest calls, threads."""
    states: dict[str, Any] = {}
    threads: dict[str, Any] = {}
    slowest: list[dict[str, Any]] = []
    for state in STATES:
        # A pass that did not come to its end has none.
        by_process = {
            process: run["states"][state]
            for process, run in enumerate(runs)
            if state in run["states"]
        }
        measured = list(by_process.values())
        if not measured:
            continue
        fields: dict[str, Any] = {}
        for kind in dict.fromkeys(kind for of in measured for kind in of["kinds"]):
            rows = [of["kinds"][kind] for of in measured if kind in of["kinds"]]
            fields[kind] = _over_processes(rows, seed)
        fields["causes"] = {
            cause: {
                "count": _median(measured, cause, "count"),
                "total_ns": _median(measured, cause, "total_ns"),
            }
            for cause in sorted(
                {cause for of_process in measured for cause in of_process["causes"]}
            )
        }
        states[state] = fields
        threads[state] = {
            number: _thread_fields([of["threads"].get(number, {}) for of in measured], seed)
            for number in dict.fromkeys(number for of in measured for number in of["threads"])
        }
        calls = [
            {**_slow_call(call, traffic), "process": process, "state": state}
            for process, of_process in by_process.items()
            for call in of_process["slowest"]
        ]
        slowest += sorted(calls, key=lambda call: -call["ns"])[:SLOWEST]
    found: dict[str, Any] = {"source": source, "states": states, "slowest": slowest}
    if any(threads.values()):
        found["threads"] = threads
    return found


def _over_processes(rows: Sequence[Mapping[str, Any]], seed: int) -> dict[str, Any]:
    quantiles = [{name: row[name] for name in row if name != "count"} for row in rows]
    return {"count": rows[0]["count"], **intervals(quantiles, seed)}


def _thread_fields(measured: Sequence[Mapping[str, Any]], seed: int) -> dict[str, Any]:
    """One recorded thread's latencies; a race that ran out of memory may have left it out."""
    fields: dict[str, Any] = {}
    for kind in ("alloc", "free"):
        rows = [of[kind] for of in measured if kind in of]
        if rows:
            fields[kind] = _over_processes(rows, seed)
    waits = [of["lock_wait"] for of in measured if of]
    fields["lock_wait"] = {
        name: float(np.median([wait[name] for wait in waits])) for name in ("count", "total_ns")
    }
    return fields


def _median(measured: Sequence[Mapping[str, Any]], cause: str, name: str) -> float:
    return float(np.median([of["causes"].get(cause, {}).get(name, 0) for of in measured]))


def _slow_call(call: Mapping[str, Any], traffic: Traffic) -> dict[str, Any]:
    index = call["index"]
    return {
        "event": int(traffic.row[index]),
        "kind": call["kind"],
        "size": call["size"],
        "scope": _text(traffic.scopes, int(traffic.scope[index])),
        "cause": call["cause"],
        "ns": call["ns"],
    }


def _text(texts: Sequence[str], code: int) -> str | None:
    return texts[code] if code >= 0 else None


def latency_table(runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The columns of ``latency.parquet``: histograms of all processes together."""
    counts: dict[tuple[str, str, str, int], int] = {}
    for run in runs:
        for state in STATES:
            for part in run["states"].get(state, {}).get("histogram", ()):
                for bucket, count in zip(part["buckets"], part["counts"], strict=True):
                    key = (state, part["kind"], part["cause"], bucket)
                    counts[key] = counts.get(key, 0) + count
    keys = sorted(counts)
    edges = [bucket_edges(key[3]) for key in keys]
    return {
        "state": [key[0] for key in keys],
        "kind": [key[1] for key in keys],
        "cause": [key[2] for key in keys],
        "bucket_low_ns": np.array([low for low, _ in edges], dtype=np.float64),
        "bucket_high_ns": np.array([high for _, high in edges], dtype=np.float64),
        "count": np.array([counts[key] for key in keys], dtype=np.int64),
    }


def throughput_fields(runs: Sequence[Mapping[str, Any]], seed: int) -> dict[str, Any]:
    """The field ``throughput``; without a state that no process could measure."""
    fields = {}
    for state in STATES:
        rows = [run["throughput"][state] for run in runs if state in run["throughput"]]
        if rows:
            fields[state] = intervals(rows, seed)
    return fields


def spread_warnings(cell: Cell, throughput: Mapping[str, Any]) -> list[str]:
    """A sentence where processes differ widely."""
    shares = {state: spread(of["ns_per_event"]["samples"]) for state, of in throughput.items()}
    wide = [f"{share:.0%} ({state})" for state, share in shares.items() if share > NOISY_SPREAD]
    if not wide:
        return []
    return [
        f"{cell.allocator.label} on {cell.backend}: processes differ by {' and '.join(wide)} of "
        "their median throughput, so small differences in time mean nothing."
    ]


def memory_fields(memory: Mapping[str, Any], cell: Cell, traffic: Traffic) -> dict[str, Any]:
    """The field ``memory``; events are rows of the trace, and what was not reported is null."""
    active, reserved = memory["active_at_peak"], memory["peaks"]["reserved"]["bytes"]
    waterfall = memory["waterfall"]
    return {
        "peaks": {
            name: {"bytes": peak["bytes"], **_moment(peak["event"], traffic)}
            for name, peak in memory["peaks"].items()
        },
        "finals": dict(memory["finals"]),
        "waterfall": waterfall
        and {
            "event": _moment(memory["peaks"]["reserved"]["event"], traffic)["event"],
            **waterfall,
        },
        "unused_share": 1 - active / reserved if reserved and active is not None else None,
        "reserved_meaning": _reserved_meaning(cell),
        "driver_calls": dict(memory["driver_calls"]),
        "driver_time": _driver_time(memory["driver_time"], cell),
        "counters": dict(memory["counters"]),
        "torch_statistics": dict(memory["torch_statistics"]),
        **{name: memory.get(name) for name in ("rss_growth_bytes", "minor_faults", "major_faults")},
    }


def _driver_time(kinds: Mapping[str, Any] | None, cell: Cell) -> dict[str, Any] | None:
    """What the driver's calls took, or would have cost; None where nobody knows."""
    if kinds is None:
        return None
    return {
        "source": "hardware" if cell.profile is None else "model",
        "profile": cell.profile and cell.profile.name,
        "kinds": dict(kinds),
    }


def _reserved_meaning(cell: Cell) -> str:
    meaning = RESERVED_MEANING.get(cell.allocator.name.removeprefix("torch-"), "not reported")
    return meaning + (", of which it is a model" if cell.is_model else "")


def out_of_memory_fields(memory: Mapping[str, Any], traffic: Traffic) -> dict[str, Any] | None:
    """The field ``outcome.oom``; its event is a row of the trace."""
    oom = memory["oom"]
    if oom is None:
        return None
    return {**oom, **_moment(oom["event"], traffic), "count": memory["ooms"]}


def unfinished_passes(runs: Sequence[Mapping[str, Any]]) -> tuple[dict[str, int], int]:
    """How many timed passes did not come to their end, by their outcome; and how many there are."""
    outcomes = [outcome for run in runs for outcome in run["outcomes"].values()]
    return dict(Counter(outcome for outcome in outcomes if outcome != "ok")), len(outcomes)


def mismatch_fields(memory: Mapping[str, Any], traffic: Traffic) -> dict[str, Any] | None:
    """The field ``outcome.mismatch``; its event is a row of the trace."""
    mismatch = memory["mismatch"]
    if mismatch is None:
        return None
    return {**mismatch, **_moment(mismatch["event"], traffic)}


def _moment(index: int | None, traffic: Traffic) -> dict[str, int | None]:
    if index is None or index < 0:
        return {"event": None, "time_ns": None}
    return {"event": int(traffic.row[index]), "time_ns": int(traffic.time_ns[index])}


def memory_tables(arrays: Path, traffic: Traffic) -> Tables:
    """The columns of ``timeline.parquet`` and ``blocks.parquet`` from a worker's arrays."""
    import pyarrow as pa

    with np.load(arrays) as file:
        found = {name: file[name] for name in file.files}
    timeline = {
        name.removeprefix("timeline."): column
        for name, column in found.items()
        if name.startswith("timeline.")
    }
    tables: Tables = {}
    if len(timeline["event_first"]):
        first, last = timeline.pop("event_first"), timeline.pop("event_last")
        phases = traffic.phase[first].tolist()
        series = [f"{name}_{bound}" for name in (*SERIES, "largest_free") for bound in BOUNDS]
        not_reported = pa.nulls(len(first), pa.int64())
        tables["timeline"] = {
            "event_first": traffic.row[first],
            "event_last": traffic.row[last],
            "time_ns": traffic.time_ns[first],
            **{name: timeline.get(name, not_reported) for name in series},
            "phase": [_text(traffic.phases, code) for code in phases],
            "step": traffic.step[first],
        }
    parts = [
        _blocks(moment, found, traffic)
        for moment in ("peak", "oom")
        if f"{moment}.blocks.size" in found
    ]
    if parts:
        tables["blocks"] = {
            name: np.concatenate([part[name] for part in parts]) for name in parts[0]
        }
    return tables


def _blocks(moment: str, found: Mapping[str, Any], traffic: Traffic) -> dict[str, Any]:
    """One row for each block at `moment`, with the segment it lies in."""
    segments = {
        name: found[f"{moment}.segments.{name}"]
        for name in ("number", "address", "size", "stream", "pool", "private_pool")
    }
    blocks = {
        name: found[f"{moment}.blocks.{name}"]
        for name in ("segment", "offset", "size", "requested", "state", "slot_event")
    }
    order = np.argsort(segments["number"], kind="stable")
    home = order[np.searchsorted(segments["number"][order], blocks["segment"])]
    # Blocks that no event of the trace made have index -1, which finds the last entry: -1.
    made = blocks["slot_event"]
    rows = np.append(traffic.row, -1)[made]
    ids = np.append(traffic.ids, -1)[made]
    scopes = np.append(traffic.scope, -1)[made].tolist()
    count = len(made)
    return {
        "moment": np.full(count, moment, dtype=object),
        "segment": blocks["segment"].astype(np.int64),
        "segment_address": segments["address"][home].astype(np.int64),
        "segment_size": segments["size"][home],
        "stream": segments["stream"][home],
        "pool": pool_names(segments["pool"], segments["private_pool"])[home],
        "offset": blocks["offset"].astype(np.int64),
        "size": blocks["size"],
        "requested": blocks["requested"],
        "state": blocks["state"].astype(object),
        "alloc_event": rows,
        "id": ids,
        "scope": np.array([_text(traffic.scopes, code) for code in scopes], dtype=object),
        "stack": np.full(count, None, dtype=object),
    }


def harness_fields(
    memory: Mapping[str, Any], runs: Sequence[Mapping[str, Any]]
) -> dict[str, float]:
    """The field ``harness``: what measuring itself costs."""
    return {
        "clock_cost_ns": interval([run["clock_cost_ns"] for run in runs], 0)["median"],
        "ns_per_event": memory["harness_ns_per_event"],
    }
