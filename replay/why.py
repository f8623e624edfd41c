"""Why a program ran out of memory, or what held its memory at the peak; and what would help."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from workbench.common.errors import RunError, UsageError
from workbench.common.units import format_bytes
from workbench.recorders.trace.history import History
from workbench.replay import _engine
from workbench.replay.alloc_conf import (
    RecordedSettings,
    Space,
    export_line,
    grid,
    simplicity,
    unknown_keys,
)
from workbench.replay.cell import AllocatorSpec, choose_device
from workbench.replay.events import LoadedTrace, load_trace
from workbench.replay.fit import run_searches, smallest_device
from workbench.replay.fitting import Fit
from workbench.replay.processes import scratch_folder
from workbench.replay.search import Candidate, Outcome, Pool, Progress
from workbench.replay.self_check import Verdict
from workbench.replay.snapshot import Snapshot
from workbench.replay.subjects import Subject, load_subjects
from workbench.replay.why_state import (
    Request,
    recorded_request,
    recorded_snapshot,
    replayed_snapshot,
)

# Settings that are shown, and whose smallest device is searched for, besides the recorded ones.
SHOWN = 4
# A peak less than this share below the recorded settings' is no help.
ENOUGH = 0.01
# Device calls that differ by less than this share count as equal.
_MANY_CALLS = 0.1


@dataclass(frozen=True)
class Choice:
    """Settings, and what a replay of the program's requests needs under them.

    Args:
        settings: in the syntax of ``PYTORCH_ALLOC_CONF``; empty for the defaults.
        export: the line for a shell.
        outcome: of the replay on the device as it was, where that is known, else without limit.
        fit: the smallest device, for the best few.
    """

    settings: str
    export: str
    outcome: Outcome
    fit: Fit | None = None

    def document(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "settings": self.settings,
            "export": self.export,
            "status": self.outcome.status,
            "peak_reserved_bytes": self.outcome.peak_reserved,
            "retries": self.outcome.retries,
            "device_calls": self.outcome.device_calls,
            "smallest_device_bytes": self.fit.capacity if self.fit else None,
            "smallest_device_without_retry_bytes": self.fit.roomy if self.fit else None,
            "warnings": self.outcome.warnings,
        }


@dataclass(frozen=True)
class Why:
    """The answer; see docs/troubleshooting.md for how to read it.

    Args:
        path: what was asked about.
        device: in the trace.
        events: of the program's that were replayed.
        request: what failed; None where nothing did.
        snapshot: segments and blocks at that moment, or at the peak of reserved memory.
        reproduced: whether `snapshot` is the recorded state, reproduced; else it is a replay's.
        verdict: of the self-check; None where the file has nothing to check.
        left: bytes that PyTorch could have; None where not known.
        device_memory: bytes of the whole device; None where not known.
        peak_live: bytes, the failed request included.
        recorded: under the settings that were in force.
        as_if: whether memory of another kind is replayed through the caching allocator.
        settings_known: whether the file says which settings were in force.
        choices: others, the cheapest first of those that serve everything; then the rest.
        assumptions: what the answer rests on, in sentences.
    """

    path: str
    device: str
    events: int
    request: Request | None
    snapshot: Snapshot
    reproduced: bool
    verdict: Verdict | None
    left: int | None
    device_memory: int | None
    peak_live: int
    recorded: Choice
    as_if: bool
    settings_known: bool
    choices: list[Choice]
    assumptions: list[str] = field(default_factory=list)

    @property
    def held_by_others(self) -> int | None:
        """Bytes of the device that PyTorch could not have; None where not known."""
        if self.device_memory is None or self.left is None:
            return None
        return max(self.device_memory - self.left, 0)

    @property
    def failure_is_missed(self) -> bool:
        """Whether a replay from a fresh start serves what failed in the recording.

        What was stranded between blocks from before the history is then what failed.
        """
        if self.request is None or not self.request.count or self.left is None:
            return False
        return self.recorded.outcome.completed

    @property
    def helping(self) -> list[Choice]:
        """Choices that serve what failed, or hold the program in clearly less; best first."""
        if self.request is not None and self.left is not None:
            return [one for one in self.choices if one.outcome.completed]
        enough = (1 - ENOUGH) * self.recorded.outcome.peak_reserved
        return [
            one
            for one in self.choices
            if one.outcome.completed and one.outcome.peak_reserved < enough
        ]

    @property
    def shown(self) -> list[Choice]:
        """A few that differ in what they do: of those that do the same the simplest."""
        found: dict[tuple[Any, ...], Choice] = {}
        for one in self.helping or self.choices:
            found.setdefault(_numbers(one.outcome), one)
        return list(found.values())[:SHOWN]

    @property
    def fragmentation_is_to_blame(self) -> bool | None:
        """Whether what was live and asked for would have fitted; None where not known."""
        if self.request is None or self.left is None:
            return None
        parts = self.snapshot.waterfall
        return parts["live_requested"] + parts["pending"] + self.request.size <= self.left

    def __rich_console__(self, console: Any, options: Any) -> Any:
        from rich.text import Text

        from workbench.replay.why_summary import parts

        for part in parts(self):
            yield Text(part) if isinstance(part, str) else part

    def _repr_html_(self) -> str:
        from workbench.replay.why_summary import html

        return html(self)

    def document(self) -> dict[str, Any]:
        """For JSON: everything."""
        return {
            "file": self.path,
            "device": self.device,
            "events": self.events,
            "out_of_memory": None if self.request is None else dict(self.request.__dict__),
            "at_row": self.snapshot.event,
            "state": "recorded" if self.reproduced else "replayed",
            "reserved_bytes": self.snapshot.reserved,
            "waterfall": self.snapshot.waterfall,
            "largest_free_bytes": self.snapshot.largest_free,
            "left_to_pytorch_bytes": self.left,
            "held_by_others_bytes": self.held_by_others,
            "peak_live_bytes": self.peak_live,
            "fragmentation_is_to_blame": self.fragmentation_is_to_blame,
            "pinned_by": self.snapshot.pinned_by().to_dict("records"),
            "recorded_settings": self.recorded.document(),
            "choices": [one.document() for one in self.choices],
            "failure_is_missed": self.failure_is_missed,
            "as_if": self.as_if,
            "helping": [one.settings for one in self.helping],
            "self_check": self.verdict.to_json() if self.verdict else None,
            "assumptions": self.assumptions,
        }


def why_trace(
    trace: str,
    histories: Sequence[History] = (),
    *,
    shown: str | None = None,
    device: str | None = None,
    capacity: int | None = None,
    device_memory: int | None = None,
    progress: Progress = lambda what, done, total: None,
) -> Why:
    """Explain the last out-of-memory of a trace; where there is none, its peak.

    Args:
        trace: one file.
        histories: of its devices, where it was imported just now.
        shown: what to call it.
        device: whose memory; None for where memory ran out, else the busiest device.
        capacity: bytes that PyTorch could have; None for what the trace says.
        device_memory: bytes of the whole device; None for what the trace says.
        progress: called with what is being done, how far it is and how far it goes.

    Raises:
        UsageError: several files, or nothing was allocated on `device`.
        BrokenFileError: not a trace.
    """
    loaded_files = load_trace(trace, lambda done, total: progress("Reading", done, total))
    if len(loaded_files) > 1:
        raise UsageError(
            f"{trace}: holds {len(loaded_files)} files; name one of them, such as "
            f"{loaded_files[0].path}"
        )
    (loaded,) = loaded_files
    chosen = device or _device_of(loaded)
    (subject,) = load_subjects(trace, ["device"], chosen, capacity, lambda done, total: None)[
        "device"
    ]
    about = loaded.metadata.get("devices", {}).get(subject.device) or {}
    left = subject.capacity.bytes if subject.capacity.source != "default" else None
    total = device_memory or about.get("capacity")
    history = next((one for one in histories if one.device == subject.device), None)
    recorded = RecordedSettings.of(loaded.metadata)
    request = recorded_request(loaded, subject.device)
    snapshot, verdict = None, _verdict_at_import(loaded, subject.device)
    if history is not None:
        progress("Checking", 0, 1)
        snapshot, verdict = recorded_snapshot(loaded, history, recorded)
    reproduced = snapshot is not None
    if snapshot is None:
        snapshot, request = replayed_snapshot(loaded, subject, recorded, left, request)
    if device_memory is not None and device_memory < max(snapshot.reserved, left or 0):
        raise UsageError(
            f"--device-memory is less than the {format_bytes(max(snapshot.reserved, left or 0))} "
            "that PyTorch had of it; give the memory of the whole device"
        )
    own, choices = _choices(subject, recorded, left, progress)
    if not own.outcome.measured:
        raise RunError(
            f"{shown or trace}: cannot be replayed under its own settings: {own.outcome.reason}"
        )
    return Why(
        path=shown or trace,
        device=subject.device,
        events=subject.events,
        request=request,
        snapshot=snapshot,
        reproduced=reproduced,
        verdict=verdict,
        left=left,
        device_memory=total,
        peak_live=subject.peak_live,
        recorded=own,
        as_if=subject.as_if,
        settings_known=(loaded.metadata.get("allocator") or {}).get("settings") is not None,
        choices=choices,
        assumptions=_assumptions(loaded, subject, reproduced, left, request),
    )


def _verdict_at_import(loaded: LoadedTrace, device: str) -> Verdict | None:
    """What the self-check found when the trace was imported."""
    imported = loaded.metadata.get("imported")
    checks = imported.get("checks") if isinstance(imported, dict) else None
    for check in checks if isinstance(checks, list) else ():
        if isinstance(check, dict) and check.get("device") == device:
            try:
                return Verdict.from_json(check)
            except TypeError:
                return None  # of a later version, or changed by hand
    return None


def _device_of(loaded: LoadedTrace) -> str:
    devices = loaded.bytes_by_device
    if not devices:
        raise UsageError(f"{loaded.path}: nothing is allocated in it; record a longer run")
    failed = [name for name in devices if len(loaded.refused(name))]
    return failed[0] if failed else choose_device("device", devices, None)


def _choices(
    subject: Subject, recorded: RecordedSettings, left: int | None, progress: Progress
) -> tuple[Choice, list[Choice]]:
    """The recorded settings, and others, the best first."""
    space = Space(unknown_keys(subject.metadata, recorded.rules))
    texts = [text for text in dict.fromkeys(("", *grid(space))) if text != recorded.own]
    with scratch_folder() as scratch, Pool({subject.name: subject.traffic}, scratch) as pool:
        outcomes = pool.run(
            [
                Candidate(subject.name, "caching", recorded.replayed(text), left)
                for text in (recorded.own, *texts)
            ],
            lambda done: progress("Replaying", done, len(texts) + 1),
        )
        own = outcomes[0]
        tried = sorted(
            zip(texts, outcomes[1:], strict=True),
            key=lambda one: (*_cost(one[1], own), simplicity(one[0])),
        )
        different = {_numbers(outcome): text for text, outcome in reversed(tried)}
        fitted = [recorded.own, *list(different.values())[::-1][:SHOWN]]
        fits = run_searches(
            [
                smallest_device(subject, AllocatorSpec("caching", text), "recorded")
                for text in fitted
            ],
            pool,
            lambda what, done, total: progress("Fitting", done, total),
        )
    fit_of = dict(zip(fitted, fits, strict=True))
    made = [
        Choice(text, export_line(text, recorded.kept), outcome, fit_of.get(text))
        for text, outcome in ((recorded.own, own), *tried)
    ]
    return made[0], made[1:]


def _numbers(outcome: Outcome) -> tuple[Any, ...]:
    """What is shown of a replay: settings that do the same have the same."""
    return (outcome.status, outcome.peak_reserved, outcome.retries, outcome.device_calls)


def _cost(outcome: Outcome, own: Outcome) -> tuple[float, ...]:
    """What sorts choices: served at all, retries, memory and device calls in coarse steps."""
    if not outcome.completed:
        return (1, -float(outcome.oom["event"]) if outcome.oom else 0, 0, 0)
    step = max(own.peak_reserved * ENOUGH, 1)
    calls = max(own.device_calls * _MANY_CALLS, 1)
    return (0, outcome.known_retries, outcome.peak_reserved // step, outcome.device_calls // calls)


def _assumptions(
    loaded: LoadedTrace,
    subject: Subject,
    reproduced: bool,
    left: int | None,
    request: Request | None,
) -> list[str]:
    made = loaded.columns["event"] == _engine.OPS["live"]
    live = int(made.sum())
    found = [
        "Other settings are replayed with the same requests in the same order; a program that "
        "reacts to its allocator could ask otherwise."
    ]
    if live:
        size = int(loaded.columns["size"][made].sum())
        found.append(
            f"{live:,} blocks ({format_bytes(size)}) were live before the history begins; other "
            "settings place them afresh, so what was stranded between them is not in their numbers."
        )
    if left is None:
        found.append(
            "How much memory PyTorch could have is not in the file: settings are compared by what "
            "they hold, and --capacity SIZE says what there was."
        )
    if not reproduced:
        found.append("The state is that of a replay, not the recorded one.")
    if request is not None and request.count > 1:
        found.append(
            f"{request.count:,} requests failed; the last is shown, and the others are freed at "
            "once in replays."
        )
    if subject.as_if:
        found.append(
            f"{subject.device} is no device of the caching allocator's: all of this is as-if."
        )
    return found
