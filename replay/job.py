"""A cell on its way from the trace to its result: what it needs, and what was measured so far."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from workbench.common.errors import MissingPartError, UsageError
from workbench.replay import _engine
from workbench.replay.allocators import known_allocators, runs_as, unfit_backend
from workbench.replay.cell import (
    AllocatorSpec,
    Cell,
    choose_backend,
    choose_capacity,
    choose_device,
    is_hardware,
    trace_name,
)
from workbench.replay.events import LoadedTrace, Traffic, load_trace
from workbench.replay.library_file import LibraryFile
from workbench.replay.plans import PlanOfCell
from workbench.replay.processes import WORKER_COMMAND, RunOutcome
from workbench.replay.profiles import find_profile
from workbench.replay.result_writer import check_free

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
        order: in which order recorded threads make their calls.
        profile: name or file of what driver calls cost, for cells on `simulated`.
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
    order: str = "global"
    profile: str | None = None
    repeat: int | None = None
    timeout: float = 600.0
    force: bool = False
    seed: int = 0
    command: str = ""
    worker_command: Sequence[str] = WORKER_COMMAND


@dataclass
class Job:
    """One cell on its way: what it needs and what its processes have measured.

    `allocator` and `settings` are what the engine is told: of a reference, the library it is
    compiled into. `library` is the user's own, where that is the allocator.
    """

    cell: Cell
    allocator: str
    settings: str
    loaded: LoadedTrace
    traffic: Traffic
    events: Path
    folder: Path
    unavailable: str | None
    plan: PlanOfCell | None = None
    library: LibraryFile | None = None
    memory: dict[str, Any] | None = None
    arrays: Path | None = None
    runs: list[dict[str, Any]] = field(default_factory=list)
    seconds: float = 0.0
    broken: RunOutcome | None = None

    @property
    def key(self) -> dict[str, Any]:
        return self.cell.key(self.traffic.fingerprint)

    def is_enough(self, options: Options) -> bool:
        """Whether a slow cell has been timed often enough, where the user leaves that to us."""
        return (
            options.repeat is None
            and len(self.runs) >= LEAST_REPEAT
            and self.seconds > ENOUGH_SECONDS
        )


def make_jobs(
    traces: Sequence[str],
    specs: Sequence[AllocatorSpec],
    output: Path,
    options: Options,
    scratch: Path,
    progress: Progress,
) -> list[Job]:
    infos = known_allocators()
    backends = _engine.backends()
    profile = None if options.profile is None else find_profile(options.profile)
    jobs: list[Job] = []
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
                    capacity=choose_capacity(
                        kind,
                        device,
                        devices.get(device),
                        options.capacity,
                        is_hardware=is_hardware(backend),
                    ),
                    completion=options.completion,
                    after_oom=options.after_oom,
                    order=options.order,
                    profile=profile if _is_priced(info, backend) else None,
                    backend_is_model=backend["is_model"],
                    latency_source=_latency_source(info, backend),
                    is_model=info["is_model"] and not is_hardware(backend),
                )
                if device not in prepared:
                    folder = scratch / f"events-{len(jobs)}"
                    prepared[device] = _prepare(loaded, device, folder)
                traffic, events = prepared[device]
                threads = 1 if options.order == "global" else traffic.thread_count
                allocator, settings, unavailable = _engine_cell(
                    cell.replayed, info, backend, threads
                )
                jobs.append(
                    Job(
                        cell=cell,
                        allocator=allocator,
                        settings=settings,
                        loaded=loaded,
                        traffic=traffic,
                        events=events,
                        folder=output / cell.name(trace_name(loaded.path)),
                        unavailable=unavailable,
                        plan=PlanOfCell.make(traffic, spec, scratch / f"plan-{len(jobs)}.npz")
                        if info["runs_plan"] and unavailable is None
                        else None,
                        library=_library(allocator, settings) if info["needs_library"] else None,
                    )
                )
    if profile is not None and all(job.cell.profile is None for job in jobs):
        raise UsageError(
            f"--profile {options.profile!r} would price nothing: prices are for the workbench's "
            "own allocators on the backend simulated; add --backend simulated, or leave it out"
        )
    _check_folders(jobs, options)
    return jobs


def _is_priced(info: Mapping[str, Any], backend: Mapping[str, Any]) -> bool:
    """Whether a profile says what the driver calls of an allocator would cost.

    Those of a library, and PyTorch's own binary is one here, pass our interface and not a driver.
    """
    return bool(backend["name"] == "simulated" and info["latency_source"] == "ours")


def _latency_source(info: Mapping[str, Any], backend: Mapping[str, Any]) -> str:
    """Whose latency is measured: of calls that are the driver's, the device's."""
    is_devices = is_hardware(backend) and info.get("passes_calls_on", False)
    return "hardware" if is_devices else str(info["latency_source"])


def _engine_cell(
    spec: AllocatorSpec, info: Mapping[str, Any], backend: Mapping[str, Any], threads: int
) -> tuple[str, str, str | None]:
    """The engine's allocator and settings for `spec`, and why it cannot run, or None."""
    reasons = [one["reason"] for one in (info, backend) if not one["available"]]
    reasons += [unfit_backend(spec, backend["name"])]
    if threads > 1 and not info.get("several_threads", True):
        reasons.append(
            "it takes no locks, so one thread at a time may call it; replay it with --order global"
        )
    if any(reasons):
        return spec.name, spec.settings, next(filter(None, reasons))
    try:
        return *runs_as(spec, backend["name"]), None
    except MissingPartError as error:
        return spec.name, spec.settings, str(error)


def _library(allocator: str, settings: str) -> LibraryFile:
    return LibraryFile.look_at(AllocatorSpec(allocator, settings).settings_by_key()["library"])


def _prepare(loaded: LoadedTrace, device: str, folder: Path) -> tuple[Traffic, Path]:
    traffic = loaded.traffic(device)
    folder.mkdir()
    traffic.save(folder)
    return traffic, folder


def _check_folders(jobs: Sequence[Job], options: Options) -> None:
    taken: dict[Path, str] = {}
    for job in jobs:
        other = taken.setdefault(job.folder, job.cell.trace)
        if other != job.cell.trace:
            raise UsageError(
                f"{other} and {job.cell.trace} have the same name, so their results would too; "
                "rename one, or replay them into different folders with -o"
            )
        check_free(job.folder, job.key, force=options.force)
