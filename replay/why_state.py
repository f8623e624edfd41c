"""The moment that ``wb why`` explains: what failed, and segments and blocks as they were."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from workbench.common.errors import RunError, UsageError
from workbench.recorders.trace.history import ACTIONS, STATES, History
from workbench.replay import _engine
from workbench.replay.alloc_conf import RecordedSettings
from workbench.replay.events import Array, LoadedTrace
from workbench.replay.lanes import pool_names
from workbench.replay.replayed_again import snapshot_of, stacks_of
from workbench.replay.self_check import CheckedState, Verdict, state_after
from workbench.replay.snapshot import Snapshot
from workbench.replay.subjects import Subject


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


def recorded_request(loaded: LoadedTrace, device: str) -> Request | None:
    """The last request of `device` that failed while it was recorded."""
    rows = loaded.refused(device)
    if not rows.size:
        return None
    row = int(rows[-1])
    return _request_at(loaded, row, _value(loaded, row), int(rows.size))


def _request_at(loaded: LoadedTrace, row: int, device_free: int | None, count: int) -> Request:
    columns = loaded.columns
    scope = int(columns["scope"][row])
    return Request(
        row=row,
        size=int(columns["size"][row]),
        device_free=device_free,
        stack=stacks_of(loaded, np.array([row]))[0],
        step=int(columns["step"][row]),
        phase=loaded.texts["phase"][int(columns["phase"][row])],
        scope=loaded.texts["scope"][scope] if scope >= 0 else None,
        count=count,
    )


def _value(loaded: LoadedTrace, row: int) -> int | None:
    from workbench.recorders.trace import open_trace

    (file,) = open_trace(loaded.path).files
    for batch in file.read_rows(row, row + 1, columns=["value"]):
        found = batch.column("value")[0].as_py()
        return None if found is None else int(found)
    return None


def recorded_snapshot(
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
                "pool": pool_names(
                    np.where(segments["is_small"], "small", "large"), segments["pool"]
                ),
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


def replayed_snapshot(
    loaded: LoadedTrace,
    subject: Subject,
    recorded: RecordedSettings,
    left: int | None,
    request: Request | None,
) -> tuple[Snapshot, Request | None]:
    """The state of a replay under the recorded settings where it fails, or at its peak.

    Args:
        loaded: the trace.
        subject: the traffic.
        recorded: settings.
        left: bytes of the device; None for no limit.
        request: what failed in the recording, if anything did.

    Returns:
        The state, and the request that fails: the recorded one, or the replay's own.
    """
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
        index = max(found["peaks"]["reserved"]["event"] or 0, 0)
    blocks = replay.memory(1, blocks_at=index)["blocks"]
    if blocks is None:
        raise RunError(f"{loaded.path}: its replay did not come to event {index}; report this")
    label = f"a replay ({settings or 'default settings'})"
    if oom is not None and request is None:
        request = _request_at(loaded, int(traffic.row[index]), oom["device_free"], 0)
    return snapshot_of(loaded, traffic, index, blocks, label), request
