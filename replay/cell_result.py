"""From a measured cell to its result: the content of ``cell.json`` and of the tables."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

from workbench.common.units import format_bytes
from workbench.replay import measurement
from workbench.replay.allocators import reference_of
from workbench.replay.cell import device_kind
from workbench.replay.job import REPEAT, Job, Options
from workbench.replay.last_words import in_rows, sizes_told
from workbench.replay.machine import noise_warnings, package_versions
from workbench.replay.plans import threads_of
from workbench.replay.results import FORMAT_VERSION, takes_memory_itself


def cell_result(
    job: Job, options: Options, machine: dict[str, Any]
) -> tuple[dict[str, Any], measurement.Tables]:
    """The content of ``cell.json`` and of the tables.

    Raises:
        RunError: passes or processes decided differently.
    """
    cell, loaded, traffic, memory = job.cell, job.loaded, job.traffic, job.memory
    digests = measurement.check_digests(cell, memory, job.runs)
    tables: measurement.Tables = {}
    if job.arrays is not None:
        tables = measurement.memory_tables(job.arrays, traffic)
    if job.runs:
        tables["latency"] = measurement.latency_table(job.runs)
    throughput = measurement.throughput_fields(job.runs, options.seed)
    info = {
        "format_version": FORMAT_VERSION,
        "name": job.folder.name,
        "label": cell.allocator.label,
        "key": job.key,
        "trace": {
            "path": cell.trace,
            "fingerprint": traffic.fingerprint,
            "program": loaded.metadata.get("program", []),
            "events": len(traffic.op),
            "rows": loaded.rows,
            "device": cell.device,
            "recorded_kind": device_kind(cell.device),
            "complete": loaded.metadata.get("complete", True),
            "lost_events": loaded.metadata.get("lost_events", 0),
            "duration_ns": loaded.duration_ns,
            "step_count": loaded.step_count,
            "threads": traffic.thread_count,
            "peak_live_bytes": traffic.peak_live_bytes,
        },
        "allocator": {
            "name": cell.allocator.name,
            "settings": cell.allocator.settings_by_key(),
            "kind": cell.kind,
            "latency_source": cell.latency_source,
            "is_model": cell.is_model,
            **({} if job.library is None else {"library": job.library.document()}),
        },
        "backend": {"name": cell.backend, "is_model": cell.backend_is_model},
        "as_if": cell.as_if,
        "capacity": {"bytes": cell.capacity.bytes, "source": cell.capacity.source},
        "completion": cell.completion,
        "after_oom": cell.after_oom,
        "order": cell.order,
        "profile": cell.profile and cell.profile.document(cell.profile_settings),
        "outcome": _outcome(job, memory),
        "plan": job.plan and {**job.plan.facts, "served": dict(memory["plan"]) if memory else None},
        "memory": memory and measurement.memory_fields(memory, cell, traffic),
        "latency": measurement.latency_fields(job.runs, traffic, cell.latency_source, options.seed)
        if any(run["states"] for run in job.runs)
        else None,
        "throughput": throughput,
        "harness": measurement.harness_fields(memory, job.runs) if memory and job.runs else None,
        "digests": digests,
        "processes": len(job.runs),
        "seed": options.seed,
        "machine": machine,
        "versions": package_versions() | _reference_versions(job),
        "warnings": _warnings(job, options, machine)
        + measurement.spread_warnings(cell, throughput),
        "command": options.command,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    return info, tables


_UNFINISHED = {"out_of_memory": "ran out of memory", "plan_mismatch": "did not keep to the plan"}


def _outcome(job: Job, memory: dict[str, Any] | None) -> dict[str, Any]:
    oom = measurement.out_of_memory_fields(memory, job.traffic) if memory else None
    if job.unavailable is not None:
        return {"status": "unavailable", "reason": job.unavailable, "oom": None}
    if job.broken is not None:
        reason = sizes_told(in_rows(job.broken.reason or "", job.traffic.row.tolist()))
        return {"status": job.broken.status, "reason": reason, "oom": oom}
    if oom is not None:
        told = [
            f"{format_bytes(oom[name])} {words}" if before else f"{words} {format_bytes(oom[name])}"
            for name, words, before in (
                ("live_requested", "live", True),
                ("allocated", "allocated", True),
                ("reserved", "reserved", True),
                ("largest_free", "the largest free block", False),
                ("device_free", "left on the device", True),
            )
            # What the program has live says no more where the allocator tells what it allocated.
            if oom[name] is not None and (name != "live_requested" or oom["allocated"] is None)
        ]
        reason = (
            f"out of memory at row {oom['event']} of the trace: it asked for "
            f"{format_bytes(oom['requested'])} with {', '.join(told)}"
            + (f" (its error: {oom['message']})" if "message" in oom else "")
        )
        return {"status": "out_of_memory", "reason": reason, "oom": oom}
    mismatch = measurement.mismatch_fields(memory, job.traffic) if memory else None
    if mismatch is not None:
        reason = (
            f"plan mismatch at row {mismatch['event']} of the trace: of id {mismatch['id']} the "
            f"plan expects {mismatch['expected']}, and the trace has {mismatch['got']}; "
            "on_mismatch:fallback goes on and counts"
        )
        return {"status": "plan_mismatch", "reason": reason, "oom": None, "mismatch": mismatch}
    for status, words in _UNFINISHED.items():
        unfinished, passes = measurement.unfinished_passes(job.runs)
        if status in unfinished:
            reason = (
                f"{unfinished[status]} of {passes} timed passes {words}, and the memory pass did "
                "not; the times are of those that came to their end"
            )
            return {"status": status, "reason": reason, "oom": None}
    return {"status": "ok", "reason": None, "oom": None}


def _warnings(job: Job, options: Options, machine: dict[str, Any]) -> list[str]:
    warnings = noise_warnings(machine)
    cell, metadata = job.cell, job.loaded.metadata
    warnings += [
        f"{cell.allocator.label}: {sentence}."
        for sentence in (job.memory or {}).get("warnings", ())
    ]
    ignored = ((job.memory or {}).get("counters") or {}).get("ignored_record_streams")
    if ignored:
        warnings.append(
            f"{cell.allocator.label}: {ignored:,} calls of record_stream went nowhere, because it "
            "has no function for them: on several streams it is unsafe."
        )
    warnings += [f"{cell.allocator.label}: {sentence}." for sentence in _idle_settings(job)]
    if cell.capacity.source in ("option", "trace") and takes_memory_itself(job.memory):
        warnings.append(
            f"{cell.allocator.label}: a capacity of {format_bytes(cell.capacity.bytes or 0)} does "
            "not hold it: it takes its memory from the system itself."
        )
    unfinished, passes = measurement.unfinished_passes(job.runs)
    came_to_end = passes - sum(unfinished.values())
    stopped = job.memory and job.memory["outcome"] != "ok" and cell.after_oom == "stop"
    if stopped and came_to_end:
        warnings.append(
            f"{cell.allocator.label}: {came_to_end} of {passes} timed passes came to their end, as "
            "the memory pass did not; the times are of those."
        )
    if cell.as_if:
        warnings.append(
            f"As-if replay: {cell.device} traffic through an allocator for {cell.kind} memory; "
            "shown for study, not to recommend from."
        )
    if cell.profile is not None and cell.profile_settings:
        warnings.append(
            f"{cell.allocator.label}: of the model of the driver's pool, "
            f"{', '.join(cell.profile_settings)} are as the profile {cell.profile.name} has them, "
            f"measured on {cell.profile.device}."
        )
    if cell.backend_is_model:
        warnings.append(f"The backend {cell.backend!r} is a model: no real memory was taken.")
    if not metadata.get("complete", True):
        warnings.append(
            f"The trace is incomplete: {metadata.get('lost_events', 0)} events were lost "
            "while recording."
        )
    if job.broken is None and job.is_enough(options) and len(job.runs) < REPEAT:
        warnings.append(
            f"{cell.allocator.label} on {cell.backend} was timed in {len(job.runs)} processes "
            f"instead of {REPEAT}, because they took {job.seconds:.0f} s; --repeat says how many."
        )
    if cell.order != "global":
        warnings += _order_warnings(job, machine)
    if not len(job.traffic.op):
        warnings.append("The trace has no event to replay on this device.")
    return warnings


def _idle_settings(job: Job) -> Iterator[str]:
    """Settings that this traffic leaves without an effect."""
    settings, traffic = job.cell.allocator.settings_by_key(), job.traffic
    thread = settings.get("guard_thread", "")
    if thread.isdecimal() and len(traffic.op) and int(thread) not in traffic.thread:
        yield (
            f"guard_thread:{thread} is no thread of this trace, so nothing is cached; "
            f"{threads_of(traffic)}"
        )
    steps = job.plan and job.plan.facts["steps"]
    if steps and settings.get("rearm") == "step" and traffic.step.max(initial=0) < steps[1]:
        yield (
            f"rearm:step never began the plan of steps {steps[0]}:{steps[1]} again: the trace ends "
            f"in step {traffic.step.max(initial=0)}"
        )


def _reference_versions(job: Job) -> dict[str, str]:
    """Of what a reference was compiled from and with."""
    reference = reference_of(job.cell.allocator)
    return {} if reference is None else reference.versions()


def _order_warnings(job: Job, machine: dict[str, Any]) -> list[str]:
    threads = job.traffic.thread_count
    if threads < 2:
        return [
            f"--order {job.cell.order} changes nothing: the traffic of {job.cell.device} was "
            "recorded of one thread."
        ]
    warnings = [
        f"Replayed by {threads} threads in the order {job.cell.order}: who comes first is a race, "
        "so no two passes need decide alike, and none is held against another."
    ]
    if threads > machine["cores"]:
        warnings.append(
            f"{threads} threads on {machine['cores']} cores: latencies include waiting for a core."
        )
    return warnings
