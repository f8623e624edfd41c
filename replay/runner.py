"""Runs cells: every run in a process of its own, interleaved, then one result for each cell."""

from __future__ import annotations

import random
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from workbench.common.errors import RunError, UsageError
from workbench.common.units import format_bytes
from workbench.replay import _engine, measurement
from workbench.replay.cell import (
    AllocatorSpec,
    Cell,
    check_completion,
    choose_backend,
    choose_capacity,
    choose_device,
    device_kind,
    parse_allocator,
    trace_name,
)
from workbench.replay.events import LoadedTrace, Traffic, load_trace
from workbench.replay.machine import describe_machine, noise_warnings, package_versions
from workbench.replay.plans import PlanOfCell, plan_in_file
from workbench.replay.processes import WORKER_COMMAND, RunOutcome, run_worker, scratch_folder
from workbench.replay.result_writer import check_free, prepare_output, write_result
from workbench.replay.results import FORMAT_VERSION, CellResult

REPEAT = 10
LEAST_REPEAT = 3
ENOUGH_SECONDS = 20.0
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Options:
    """How to replay; the options of ``wb replay`` of the same names.

    Args:
        device: the device in the trace; None for the allocator's own kind, or the busiest.
        backend: None for `host` for CPU memory, else a device or its simulation.
        capacity: bytes; None for what the trace says was left, or a default.
        completion: when work on a stream completes.
        after_oom: ``stop`` or ``continue``.
        repeat: timed processes for each cell; None for `REPEAT`, or fewer (at least
            `LEAST_REPEAT`) for a cell whose processes have taken `ENOUGH_SECONDS` together.
        timeout: seconds that one process may take.
        force: replace whatever is in a result's folder.
        seed: of the order of runs and of the bootstrap.
        command: what the user ran, for the result.
        worker_command: how to start a worker.
    """

    device: str | None = None
    backend: str | None = None
    capacity: int | None = None
    completion: str = "recorded"
    after_oom: str = "stop"
    repeat: int | None = None
    timeout: float = 600.0
    force: bool = False
    seed: int = 0
    command: str = ""
    worker_command: Sequence[str] = WORKER_COMMAND


@dataclass
class Session:
    """What came of a replay.

    Args:
        results: one for each cell.
        left_out: allocators of `all` that cannot run here, each with its reason.
        failed: the cells asked for by name that could not run, or crashed or hung.
        errors: one sentence for each cell whose numbers cannot be trusted; it has no result.
    """

    results: list[CellResult] = field(default_factory=list)
    left_out: list[tuple[str, str]] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)


@dataclass
class _Job:
    """One cell on its way: what it needs and what its processes have measured."""

    cell: Cell
    loaded: LoadedTrace
    traffic: Traffic
    events: Path
    folder: Path
    unavailable: str | None
    plan: PlanOfCell | None = None
    memory: dict[str, Any] | None = None
    arrays: Path | None = None
    runs: list[dict[str, Any]] = field(default_factory=list)
    seconds: float = 0.0
    broken: RunOutcome | None = None

    @property
    def key(self) -> dict[str, Any]:
        return self.cell.key(self.traffic.fingerprint)


def replay_traces(
    traces: Sequence[str],
    allocators: Sequence[str],
    output: Path,
    options: Options = Options(),
    progress: Progress = lambda what, done, total: None,
) -> Session:
    """Measure every cell of `traces` x `allocators` and write the results into `output`.

    Args:
        traces: files, folders of ranks, or URLs.
        allocators: ``NAME[:key:value,…]``, or ``all``.
        output: a folder, made if need be.
        options: see `Options`.
        progress: called with what is being done, how far it is and how far it goes.

    Raises:
        UsageError: a wrong name or value, or a folder in the way.
        BrokenFileError: not a trace.
        RunError: a result could not be written.
    """
    _check(options)
    specs, left_out = choose_allocators(allocators, options.backend)
    prepare_output(output)
    session = Session(left_out=left_out)
    machine = describe_machine()
    with scratch_folder() as scratch:
        jobs = _make_jobs(traces, specs, output, options, scratch, progress)
        _run(jobs, options, scratch, progress)
        for job in jobs:
            try:
                info, tables = _result(job, options, machine)
            except RunError as error:
                session.errors.append(str(error))
                continue
            write_result(job.folder, info, tables, force=options.force)
            session.results.append(CellResult(job.folder))
            if info["outcome"]["status"] in ("crashed", "timed_out", "unavailable"):
                session.failed.append(job.folder.name)
    return session


def _check(options: Options) -> None:
    check_completion(options.completion)
    if options.after_oom not in ("stop", "continue"):
        raise UsageError(f"--after-oom {options.after_oom!r} is not known; write stop or continue")
    if options.repeat is not None and options.repeat < 1:
        raise UsageError(f"--repeat {options.repeat} is not a number of processes; write 1 or more")
    if not options.timeout > 0:
        raise UsageError(f"--timeout {options.timeout:g} is not a time; write seconds above 0")


def choose_allocators(
    texts: Sequence[str], backend: str | None = None
) -> tuple[list[AllocatorSpec], list[tuple[str, str]]]:
    """The allocators named by `texts`, and those that `all` leaves out, each with its reason.

    Raises:
        UsageError: none named, an unknown one, or a setting that it does not take.
    """
    if not texts:
        raise UsageError("no allocator is named; add --allocator NAME, or --allocator all")
    infos = {info["name"]: info for info in _engine.allocators()}
    specs: dict[AllocatorSpec, None] = {}
    left_out = []
    for text in texts:
        if text == "all":
            for name, info in infos.items():
                if info["available"]:
                    specs[AllocatorSpec(name)] = None
                else:
                    left_out.append((name, str(info["reason"])))
            continue
        spec = parse_allocator(text, list(infos))
        info = infos[spec.name]
        chosen = choose_backend(info["kind"], _engine.backends(), backend)
        if info["available"] and chosen["available"]:
            _check_settings(text, spec, chosen["name"])
        specs[spec] = None
    return list(specs), left_out


def _check_settings(text: str, spec: AllocatorSpec, backend: str) -> None:
    """Have the engine read the settings, on no events, before any process is started."""
    import numpy as np

    none = {"op": "u1", "slot": "i4", "size": "i8", "stream": "i4", "thread": "i4"}
    columns = {name: np.empty(0, dtype=dtype) for name, dtype in none.items()}
    try:
        events = _engine.Events(**columns, slot_count=0)
        plan = plan_in_file(spec)
        _engine.Replay(events, spec.name, spec.settings, backend=backend, plan=plan).memory(1)
    except ValueError as error:
        raise UsageError(f"--allocator {text}: {error}") from None


def _make_jobs(
    traces: Sequence[str],
    specs: Sequence[AllocatorSpec],
    output: Path,
    options: Options,
    scratch: Path,
    progress: Progress,
) -> list[_Job]:
    infos = {info["name"]: info for info in _engine.allocators()}
    backends = _engine.backends()
    jobs: list[_Job] = []
    for trace in traces:
        for loaded in load_trace(trace, lambda done, total: progress("Reading", done, total)):
            prepared: dict[str, tuple[Traffic, Path]] = {}
            devices = loaded.metadata.get("devices", {})
            for spec in specs:
                info = infos[spec.name]
                kind = info["kind"]
                device = choose_device(kind, loaded.bytes_by_device, options.device)
                backend = choose_backend(kind, backends, options.backend)
                cell = Cell(
                    trace=loaded.path,
                    device=device,
                    allocator=spec,
                    kind=kind,
                    backend=backend["name"],
                    capacity=choose_capacity(kind, device, devices.get(device), options.capacity),
                    completion=options.completion,
                    after_oom=options.after_oom,
                    backend_is_model=backend["is_model"],
                    latency_source=info["latency_source"],
                )
                if device not in prepared:
                    folder = scratch / f"events-{len(jobs)}"
                    prepared[device] = _prepare(loaded, device, folder)
                reasons = [one["reason"] for one in (info, backend) if not one["available"]]
                traffic, events = prepared[device]
                jobs.append(
                    _Job(
                        cell=cell,
                        loaded=loaded,
                        traffic=traffic,
                        events=events,
                        folder=output / cell.name(trace_name(loaded.path)),
                        unavailable=reasons[0] if reasons else None,
                        plan=PlanOfCell.make(traffic, spec, scratch / f"plan-{len(jobs)}.npz")
                        if info["runs_plan"] and not reasons
                        else None,
                    )
                )
    _check_folders(jobs, options)
    return jobs


def _prepare(loaded: LoadedTrace, device: str, folder: Path) -> tuple[Traffic, Path]:
    traffic = loaded.traffic(device)
    folder.mkdir()
    traffic.save(folder)
    return traffic, folder


def _check_folders(jobs: Sequence[_Job], options: Options) -> None:
    taken: dict[Path, str] = {}
    for job in jobs:
        other = taken.setdefault(job.folder, job.cell.trace)
        if other != job.cell.trace:
            raise UsageError(
                f"{other} and {job.cell.trace} have the same name, so their results would too; "
                "rename one, or replay them into different folders with -o"
            )
        check_free(job.folder, job.key, force=options.force)


def _run(jobs: Sequence[_Job], options: Options, scratch: Path, progress: Progress) -> None:
    """All runs of all cells: in each round one of every cell, in random order.

    The first round makes the memory passes, the others the timed ones.
    """
    order = random.Random(options.seed)
    rounds = (REPEAT if options.repeat is None else options.repeat) + 1
    total = rounds * len(jobs)
    for number in range(rounds):
        round_ = list(jobs)
        order.shuffle(round_)
        for place, job in enumerate(round_):
            progress("Replaying", number * len(jobs) + place, total)
            # A cell that broke would break again, at the price of a timeout each.
            if job.unavailable is None and job.broken is None and not _is_enough(job, options):
                _run_once(job, options, scratch, memory=number == 0)
    progress("Replaying", total, total)


def _is_enough(job: _Job, options: Options) -> bool:
    """Whether a slow cell has been measured often enough, where the user leaves that to us."""
    return options.repeat is None and len(job.runs) >= LEAST_REPEAT and job.seconds > ENOUGH_SECONDS


def _run_once(job: _Job, options: Options, scratch: Path, *, memory: bool) -> None:
    folder = Path(tempfile.mkdtemp(prefix="run-", dir=scratch))
    task = {
        "events": str(job.events),
        "slot_count": job.traffic.slot_count,
        "replay": {
            "allocator": job.cell.allocator.name,
            "settings": job.cell.allocator.settings,
            "backend": job.cell.backend,
            "capacity": job.cell.capacity.bytes,
            "completion": job.cell.completion,
            "after_oom": job.cell.after_oom,
        },
        "memory": memory,
        "plan": job.plan and str(job.plan.file),
    }
    started = time.monotonic()
    outcome = run_worker(task, folder, options.timeout, options.worker_command)
    if outcome.result is None:
        job.broken = outcome
        return
    if memory:
        job.memory = outcome.result
        job.arrays = folder / "arrays.npz"
    else:
        job.runs.append(outcome.result)
        job.seconds += time.monotonic() - started


def _result(
    job: _Job, options: Options, machine: dict[str, Any]
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
            "peak_live_bytes": traffic.peak_live_bytes,
        },
        "allocator": {
            "name": cell.allocator.name,
            "settings": cell.allocator.settings_by_key(),
            "kind": cell.kind,
            "latency_source": cell.latency_source,
        },
        "backend": {"name": cell.backend, "is_model": cell.backend_is_model},
        "as_if": cell.as_if,
        "capacity": {"bytes": cell.capacity.bytes, "source": cell.capacity.source},
        "completion": cell.completion,
        "after_oom": cell.after_oom,
        "outcome": _outcome(job, memory),
        "plan": job.plan and {**job.plan.facts, "served": dict(memory["plan"]) if memory else None},
        "memory": memory
        and measurement.memory_fields(memory, tables.get("blocks", {}), cell, traffic),
        "latency": measurement.latency_fields(job.runs, traffic, cell.latency_source, options.seed)
        if job.runs
        else None,
        "throughput": throughput,
        "harness": measurement.harness_fields(memory, job.runs) if memory and job.runs else None,
        "digests": digests,
        "processes": len(job.runs),
        "seed": options.seed,
        "machine": machine,
        "versions": package_versions(),
        "warnings": _warnings(job, options, machine)
        + measurement.spread_warnings(cell, throughput),
        "command": options.command,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    return info, tables


def _outcome(job: _Job, memory: dict[str, Any] | None) -> dict[str, Any]:
    oom = measurement.out_of_memory_fields(memory, job.traffic) if memory else None
    if job.unavailable is not None:
        return {"status": "unavailable", "reason": job.unavailable, "oom": None}
    if job.broken is not None:
        return {"status": job.broken.status, "reason": job.broken.reason, "oom": oom}
    if oom is not None:
        left = oom["device_free"]
        reason = (
            f"out of memory at row {oom['event']} of the trace: it asked for "
            f"{format_bytes(oom['requested'])} with {format_bytes(oom['allocated'])} allocated, "
            f"{format_bytes(oom['reserved'])} reserved, the largest free block "
            f"{format_bytes(oom['largest_free'])}"
            + ("" if left is None else f", {format_bytes(left)} left on the device")
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
    return {"status": "ok", "reason": None, "oom": None}


def _warnings(job: _Job, options: Options, machine: dict[str, Any]) -> list[str]:
    warnings = noise_warnings(machine)
    cell, metadata = job.cell, job.loaded.metadata
    warnings += [
        f"{cell.allocator.label}: {sentence}."
        for sentence in (job.memory or {}).get("warnings", ())
    ]
    if cell.as_if:
        warnings.append(
            f"As-if replay: {cell.device} traffic through an allocator for {cell.kind} memory; "
            "shown for study, not to recommend from."
        )
    if cell.backend_is_model:
        warnings.append(f"The backend {cell.backend!r} is a model: no real memory was taken.")
    if not metadata.get("complete", True):
        warnings.append(
            f"The trace is incomplete: {metadata.get('lost_events', 0)} events were lost "
            "while recording."
        )
    if job.broken is None and _is_enough(job, options) and len(job.runs) < REPEAT:
        warnings.append(
            f"{cell.allocator.label} on {cell.backend} was timed in {len(job.runs)} processes "
            f"instead of {REPEAT}, because they took {job.seconds:.0f} s; --repeat says how many."
        )
    if not len(job.traffic.op):
        warnings.append("The trace has no event to replay on this device.")
    return warnings
