"""Why a program ran out of memory, or what held its memory at the peak; and what would help."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from workbench.common.errors import RunError, UsageError
from workbench.common.units import format_bytes
from workbench.recorders.trace.history import ACTIONS, STATES, History
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
from workbench.replay.events import Array, LoadedTrace, load_trace
from workbench.replay.fit import run_searches, smallest_device
from workbench.replay.fitting import Fit
from workbench.replay.processes import scratch_folder
from workbench.replay.replayed_again import snapshot_of, stacks_of
from workbench.replay.search import Candidate, Outcome, Pool, Progress
from workbench.replay.self_check import CheckedState, Verdict, state_after
from workbench.replay.snapshot import Snapshot
from workbench.replay.subjects import Subject, load_subjects

# Settings whose smallest device is searched for, besides the recorded ones.
_FITTED = 3
# A peak less than this share below the recorded settings' is no help.
_ENOUGH = 0.01
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
class Request:
    """The request that failed; bytes are bytes.

    Args:
        row: of the trace.
        size: asked for.
        device_free: what the device had left.
        stack: folded, or None.
        step, phase, scope: where the program was; scope may be None.
        count: requests that failed in the whole file.
    """

    row: int
    size: int
    device_free: int | None
    stack: str | None
    step: int
    phase: str
    scope: str | None
    count: int


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
    choices: list[Choice]
    assumptions: list[str] = field(default_factory=list)

    @property
    def held_by_others(self) -> int | None:
        """Bytes of the device that PyTorch could not have; None where not known."""
        if self.device_memory is None or self.left is None:
            return None
        return max(self.device_memory - self.left, 0)

    @property
    def helping(self) -> list[Choice]:
        """Choices that serve what failed, or hold the program in clearly less; best first."""
        if self.request is not None and self.left is not None:
            return [one for one in self.choices if one.outcome.completed]
        enough = (1 - _ENOUGH) * self.recorded.outcome.peak_reserved
        return [
            one
            for one in self.choices
            if one.outcome.completed and one.outcome.peak_reserved < enough
        ]

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
    request = _request(loaded, subject.device)
    snapshot, verdict = None, None
    if history is not None:
        progress("Checking", 0, 1)
        snapshot, verdict = _recorded_snapshot(loaded, history, recorded)
    reproduced = snapshot is not None
    if snapshot is None:
        snapshot, request, left = _replayed_snapshot(loaded, subject, recorded, left, request)
    own, choices = _choices(subject, recorded, left, progress)
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
        choices=choices,
        assumptions=_assumptions(loaded, subject, reproduced, left, request),
    )


def _device_of(loaded: LoadedTrace) -> str:
    devices = loaded.bytes_by_device
    if not devices:
        raise UsageError(f"{loaded.path}: nothing is allocated in it; record a longer run")
    failed = [name for name in devices if len(loaded.refused(name))]
    return failed[0] if failed else choose_device("device", devices, None)


def _request(loaded: LoadedTrace, device: str) -> Request | None:
    rows = loaded.refused(device)
    if not rows.size:
        return None
    row = int(rows[-1])
    columns = loaded.columns
    scope = int(columns["scope"][row])
    return Request(
        row=row,
        size=int(columns["size"][row]),
        device_free=_value(loaded, row),
        stack=stacks_of(loaded, np.array([row]))[0],
        step=int(columns["step"][row]),
        phase=loaded.texts["phase"][int(columns["phase"][row])],
        scope=loaded.texts["scope"][scope] if scope >= 0 else None,
        count=int(rows.size),
    )


def _value(loaded: LoadedTrace, row: int) -> int | None:
    from workbench.recorders.trace import open_trace

    (file,) = open_trace(loaded.path).files
    for batch in file.read_rows(row, row + 1, columns=["value"]):
        found = batch.column("value")[0].as_py()
        return None if found is None else int(found)
    return None


def _recorded_snapshot(
    loaded: LoadedTrace, history: History, recorded: RecordedSettings
) -> tuple[Snapshot | None, Verdict]:
    """The recorded allocator's own state at the moment in question, where it is reproduced."""
    entry = _moment(history)
    verdict, state = state_after(history, entry)
    if state is None:
        return None, verdict
    rows = _rows_of_entries(loaded, history)
    label = f"the recorded allocator ({recorded.own or 'default settings'})"
    return _with_origins(loaded, history, state, rows, entry, label), verdict


def _moment(history: History) -> int:
    """The last failed request, or the entry with most in use of those with most reserved."""
    failed = np.flatnonzero(history.action == ACTIONS.index("oom"))
    if failed.size:
        return int(failed[-1])
    sign = np.zeros(len(ACTIONS) + 1, dtype=np.int64)
    sign[[ACTIONS.index(name) for name in ("segment_alloc", "segment_map")]] = 1
    sign[[ACTIONS.index(name) for name in ("segment_free", "segment_unmap")]] = -1
    reserved = np.cumsum(sign[history.action] * history.size)
    used = np.zeros(len(ACTIONS) + 1, dtype=np.int64)
    used[ACTIONS.index("alloc")] = 1
    used[ACTIONS.index("free_completed")] = -1
    live = np.cumsum(used[history.action] * history.size)
    if not len(reserved):
        return 0
    highest = np.flatnonzero(reserved == reserved.max())
    return int(highest[np.argmax(live[highest])])


def _rows_of_entries(loaded: LoadedTrace, history: History) -> Array:
    """The rows of the trace that allocate on the history's device, in order.

    Blocks that were there before come first, in order of their addresses; then the allocations.
    """
    code = loaded.texts["device"].index(history.device)
    made = np.isin(loaded.columns["event"], [_engine.OPS["alloc"], _engine.OPS["live"]])
    rows: Array = np.flatnonzero(made & (loaded.columns["device"] == code))
    return rows


def _with_origins(
    loaded: LoadedTrace,
    history: History,
    state: CheckedState,
    rows: Array,
    entry: int,
    label: str,
) -> Snapshot:
    order = np.argsort(state.segments["address"], kind="stable")
    segments = {name: values[order] for name, values in state.segments.items()}
    by_address = np.argsort(state.blocks["address"], kind="stable")
    blocks = {name: values[by_address] for name, values in state.blocks.items()}
    home = np.searchsorted(segments["address"], blocks["address"], side="right") - 1
    # Which allocation of the device: those before first, then by entry.
    allocs = np.append(np.cumsum(history.action == ACTIONS.index("alloc")) - 1, 0)
    live = len(history.before.blocks["address"])
    made_by = blocks["entry"]
    number = np.where(
        made_by >= 0, live + allocs[np.maximum(made_by, 0)], -1 - np.minimum(made_by, -1)
    )
    used = blocks["state"] != STATES.index("inactive")
    row = np.where(used, rows[np.where(used, number, 0)], -1)
    columns = loaded.columns

    def of_row(values: Array) -> Array:
        chosen: Array = np.append(values, values.dtype.type(-1))[row]
        return chosen

    def texts(names: list[str], codes: Array) -> pd.Series[Any]:
        return pd.Series(np.array([*names, None], dtype=object)[of_row(codes)], dtype=object)

    at = int(rows[min(live + int(allocs[entry]), len(rows) - 1)]) if len(history.action) else 0
    return Snapshot(
        label,
        at,
        pd.DataFrame(
            {
                "segment": np.arange(len(order)),
                "address": segments["address"].astype(np.int64),
                "size": segments["size"],
                "stream": segments["stream"],
                "pool": np.where(segments["is_small"], "small", "large").astype(object),
                "expandable": segments["is_expandable"].astype(bool),
            }
        ),
        pd.DataFrame(
            {
                "segment": home,
                "offset": (blocks["address"] - segments["address"][home]).astype(np.int64),
                "size": blocks["size"],
                "requested": blocks["requested"],
                "state": np.array(STATES, dtype=object)[blocks["state"]],
                "id": of_row(columns["id"]),
                "alloc_event": row,
                "age": np.where(row < 0, -1, at - row),
                "thread": of_row(columns["thread"]),
                "step": of_row(columns["step"]),
                "phase": texts(loaded.texts["phase"], columns["phase"]),
                "scope": texts(loaded.texts["scope"], columns["scope"]),
                "stack": pd.Series(stacks_of(loaded, row), dtype=object),
            }
        ),
    )


def _replayed_snapshot(
    loaded: LoadedTrace,
    subject: Subject,
    recorded: RecordedSettings,
    left: int | None,
    request: Request | None,
) -> tuple[Snapshot, Request | None, int | None]:
    """The state of a replay under the recorded settings where it fails, or at its peak."""
    traffic = subject.traffic
    settings = recorded.replayed(recorded.own)
    try:
        replay = _engine.Replay(
            traffic.events(), "caching", settings, backend="simulated", capacity=left
        )
    except ValueError as error:
        raise UsageError(f"{loaded.path}: the settings it ran with: {error}") from None
    found = replay.memory(1)
    oom = found["oom"]
    if oom is not None:
        index = oom["event"]
    elif request is not None:
        index = int(np.searchsorted(traffic.row, request.row))
    else:
        index = max(found["peaks"]["reserved"]["event"], 0)
    blocks = replay.memory(1, blocks_at=index)["blocks"]
    if blocks is None:
        raise RunError(f"{loaded.path}: its replay did not come to event {index}; report this")
    label = f"a replay ({settings or 'default settings'})"
    if oom is not None and request is None:
        row = int(traffic.row[index])
        scope = int(loaded.columns["scope"][row])
        request = Request(
            row=row,
            size=oom["requested"],
            device_free=oom["device_free"],
            stack=stacks_of(loaded, np.array([row]))[0],
            step=int(loaded.columns["step"][row]),
            phase=loaded.texts["phase"][int(loaded.columns["phase"][row])],
            scope=loaded.texts["scope"][scope] if scope >= 0 else None,
            count=0,
        )
    return snapshot_of(loaded, traffic, index, blocks, label), request, left


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
        fitted = [recorded.own, *(text for text, _ in tried[:_FITTED])]
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


def _cost(outcome: Outcome, own: Outcome) -> tuple[float, ...]:
    """What sorts choices: served at all, retries, memory and device calls in coarse steps."""
    if not outcome.completed:
        return (1, -float(outcome.oom["event"]) if outcome.oom else 0, 0, 0)
    step = max(own.peak_reserved * _ENOUGH, 1)
    calls = max(own.device_calls * _MANY_CALLS, 1)
    return (0, outcome.retries, outcome.peak_reserved // step, outcome.device_calls // calls)


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
