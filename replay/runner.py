"""Runs cells: every run in a process of its own, interleaved, then one result for each cell."""

from __future__ import annotations

import random
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from workbench.common.errors import RunError, UsageError
from workbench.replay.allocators import reference_of
from workbench.replay.cell import check_completion, check_order, check_timeout
from workbench.replay.cell_result import cell_result
from workbench.replay.choice import choose_allocators
from workbench.replay.job import REPEAT, Job, Options, Progress, make_jobs
from workbench.replay.machine import describe_machine
from workbench.replay.processes import RunOutcome, run_worker, scratch_folder
from workbench.replay.profiles import find_profile
from workbench.replay.result_writer import prepare_output, write_result
from workbench.replay.results import CellResult

# How a cell ends that has no numbers to compare, or none that can be trusted.
FAILED = ("crashed", "timed_out", "library_fault", "unavailable")


@dataclass
class Session:
    """What came of a replay.

    Args:
        results: one for each cell.
        left_out: allocators of `all` that cannot run here, each with its reason.
        failed: the cells asked for by name that could not run, and those that crashed or hung;
            of the references only those asked for by name.
        errors: one sentence for each cell whose numbers cannot be trusted; it has no result.
    """

    results: list[CellResult] = field(default_factory=list)
    left_out: list[tuple[str, str]] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)


def replay_traces(
    traces: Sequence[str],
    allocators: Sequence[str],
    output: Path,
    options: Options | None = None,
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
    options = options or Options()
    _check(options)
    choice = choose_allocators(allocators, options.backend, progress)
    prepare_output(output)
    session = Session(left_out=choice.left_out)
    machine = describe_machine()
    with scratch_folder() as scratch:
        jobs = make_jobs(traces, choice.specs, output, options, scratch, progress)
        _run(jobs, options, scratch, progress)
        for job in jobs:
            try:
                info, tables = cell_result(job, options, machine)
            except RunError as error:
                session.errors.append(str(error))
                continue
            info["left_out"] = [{"name": name, "reason": why} for name, why in choice.left_out]
            write_result(job.folder, info, tables, force=options.force)
            session.results.append(CellResult(job.folder))
            spec, status = job.cell.allocator, info["outcome"]["status"]
            # A known defect of a reference is no failure of a comparison that came with it unasked;
            # nor is what only the replay could find out, that the system does not let it run.
            asked = spec in choice.named or (reference_of(spec) is None and status != "unavailable")
            if asked and status in FAILED:
                session.failed.append(job.folder.name)
    return session


def _check(options: Options) -> None:
    check_completion(options.completion)
    check_order(options.order)
    if options.after_oom not in ("stop", "continue"):
        raise UsageError(f"--after-oom {options.after_oom!r} is not known; write stop or continue")
    if options.repeat is not None and options.repeat < 1:
        raise UsageError(f"--repeat {options.repeat} is not a number of processes; write 1 or more")
    check_timeout(options.timeout)
    if options.profile is not None:
        find_profile(options.profile)


def _run(jobs: Sequence[Job], options: Options, scratch: Path, progress: Progress) -> None:
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
            if job.unavailable is None and job.broken is None and not job.is_enough(options):
                _run_once(job, options, scratch, memory=number == 0)
    progress("Replaying", total, total)


def _run_once(job: Job, options: Options, scratch: Path, *, memory: bool) -> None:
    folder = Path(tempfile.mkdtemp(prefix="run-", dir=scratch))
    replay = {
        "allocator": job.allocator,
        "settings": job.settings,
        "backend": job.cell.backend,
        "capacity": job.cell.capacity.bytes,
        "completion": job.cell.completion,
        "after_oom": job.cell.after_oom,
        "order": job.cell.order,
    }
    profile = job.cell.profile
    task = {
        "events": str(job.events),
        "slot_count": job.traffic.slot_count,
        "replay": replay,
        "memory": memory,
        "prices": profile and profile.prices(),
        "plan": job.plan and str(job.plan.file),
        "library": job.library and job.library.path,
    }
    if memory and job.library is not None and job.library.problem is not None:
        job.broken = RunOutcome("library_fault", job.library.fault(), None)
        return
    if memory and job.library is not None:
        # Before anything is measured, and in a process of its own: what it takes would be counted.
        checked = Path(tempfile.mkdtemp(prefix="check-", dir=scratch))
        checks = {**task, "check": True, "replay": {**replay, "order": "global"}}
        outcome = _of_one_library(
            job, run_worker(checks, checked, options.timeout, options.worker_command)
        )
        if outcome.result is None:
            job.broken = outcome
            return
    started = time.monotonic()
    outcome = run_worker(task, folder, options.timeout, options.worker_command)
    outcome = _of_one_library(job, outcome)
    if outcome.result is None:
        job.broken = outcome
        return
    if memory:
        job.memory = outcome.result
        job.arrays = folder / "arrays.npz"
    else:
        job.runs.append(outcome.result)
        job.seconds += time.monotonic() - started


def _of_one_library(job: Job, outcome: RunOutcome) -> RunOutcome:
    """`outcome`, unless the library's file is no longer the one that the replay began with."""
    fault = None if job.library is None else job.library.fault()
    return outcome if fault is None else RunOutcome("library_fault", fault, None)
