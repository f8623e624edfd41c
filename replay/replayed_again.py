"""Replays a cell once more, in this process, to see its state after an event."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from typing import Any, SupportsIndex

import numpy as np
import pandas as pd

from workbench.common.errors import BrokenFileError, RunError, UsageError
from workbench.replay import _engine
from workbench.replay.cell import AllocatorSpec, quoted
from workbench.replay.events import Array, LoadedTrace, Traffic, load_trace
from workbench.replay.lanes import pool_names
from workbench.replay.plans import plan_in_file
from workbench.replay.snapshot import Snapshot
from workbench.replay.stacks import read_stacks


class ReplayedAgain:
    """A cell whose trace has been read again, for snapshots of its replay.

    Args:
        info: the cell's ``cell.json``.

    Raises:
        UsageError: the cell's memory pass did not end.
        BrokenFileError: the trace is not where it was, or is another one.
    """

    def __init__(self, info: Mapping[str, Any]) -> None:
        self._info = info
        if info["memory"] is None:
            raise UsageError(
                f"{info['label']} has no snapshot: its replay ended as "
                f"{info['outcome']['status'].replace('_', ' ')} ({info['outcome']['reason']})"
            )
        if info["allocator"].get("latency_source") in ("library", "reference"):
            raise UsageError(
                f"{info['label']} has no snapshot: a library does not tell where its blocks lie"
            )
        order = info.get("order", "global")
        self._loaded, self._traffic = _trace_of(info)
        if order != "global" and self._traffic.thread_count > 1:
            raise UsageError(
                f"{info['label']} was replayed by several threads (--order {order}), whose state "
                "is another every time; take a snapshot of a replay in the order global"
            )
        of_profile = (info.get("profile") or {}).get("settings", {})
        settings = of_profile | info["allocator"]["settings"]
        text = ",".join(f"{key}:{quoted(value)}" for key, value in settings.items())
        self._replay = _engine.Replay(
            self._traffic.events(),
            info["allocator"]["name"],
            text,
            backend=info["backend"]["name"],
            capacity=info["capacity"]["bytes"],
            completion=info["completion"],
            after_oom=info.get("after_oom", "stop"),
            plan=plan_in_file(AllocatorSpec(info["allocator"]["name"], text)),
        )

    def at(self, event: SupportsIndex | str) -> Snapshot:
        """The state after `event`; see `CellResult.snapshot_at`."""
        info, traffic = self._info, self._traffic
        row = self._row(event)
        index = int(np.searchsorted(traffic.row, row, side="right")) - 1
        if index < 0 or not row < self._loaded.rows:
            rows = f"{traffic.row[0]} to {self._loaded.rows - 1}" if len(traffic.row) else "none"
            raise UsageError(
                f"event {row} is outside the replay of {info['label']}; its events are the rows of "
                f"the trace, here {rows}"
            )
        found = self._replay.memory(1, blocks_at=index)
        if found["digest"] != info["digests"].get("cold", found["digest"]):
            raise RunError(
                f"{info['label']} decides otherwise here than when {info['name']} was measured (by "
                f"workbench {info['versions'].get('workbench')}); replay the trace again"
            )
        if found["blocks"] is None:
            outcome = info["outcome"]
            ended = outcome["oom"] or outcome.get("mismatch")
            raise UsageError(
                f"event {row} was not reached: the replay of {info['label']} ended "
                f"{'out of memory' if outcome['oom'] else 'in a plan mismatch'} at event "
                f"{ended['event']}"
            )
        return snapshot_of(self._loaded, self._traffic, index, found["blocks"], self._info["label"])

    def _row(self, event: SupportsIndex | str) -> int:
        label = self._info["label"]
        if event == "peak":
            row = self._info["memory"]["peaks"]["reserved"]["event"]
            if row is None:
                raise UsageError(f"{label} has no peak: it reserved nothing")
        elif event == "oom":
            oom = self._info["outcome"]["oom"]
            if oom is None:
                raise UsageError(
                    f"{label} did not run out of memory; take the snapshot at 'peak' or an event"
                )
            row = oom["event"]
        else:
            try:
                if isinstance(event, bool):
                    raise TypeError
                return operator.index(event)  # type: ignore[arg-type]
            except TypeError:
                raise UsageError(
                    f"snapshot_at({event!r}): give 'peak', 'oom' or the number of an event"
                ) from None
        return int(row)


def snapshot_of(
    loaded: LoadedTrace, traffic: Traffic, index: int, found: _engine.Blocks, label: str
) -> Snapshot:
    """The state that a replay of `traffic` listed after its event `index`."""
    columns, made = found["blocks"], found["blocks"]["slot_event"]
    of_segments = found["segments"]
    segments = pd.DataFrame(
        {
            "segment": of_segments["number"].astype(np.int64),
            "address": of_segments["address"].astype(np.int64),
            "size": of_segments["size"],
            "stream": of_segments["stream"],
            "pool": pool_names(of_segments["pool"], of_segments["private_pool"]),
            "expandable": of_segments["expandable"].astype(bool),
        }
    )

    def of_event(values: Array) -> Array:
        # Blocks that no event made have index -1, which finds the last entry: -1.
        chosen: Array = np.append(values, values.dtype.type(-1))[made]
        return chosen

    def texts(all_texts: list[str], codes: Array) -> pd.Series[Any]:
        listed = np.array([*all_texts, None], dtype=object)
        # Left to itself, pandas makes NaN of None.
        return pd.Series(listed[of_event(codes)], dtype=object)

    event = int(traffic.row[index])
    rows = of_event(traffic.row)
    blocks = pd.DataFrame(
        {
            **{name: columns[name] for name in ("segment", "offset", "size", "requested")},
            "state": columns["state"].astype(object),
            "id": of_event(traffic.ids),
            "alloc_event": rows,
            "age": np.where(rows < 0, -1, event - rows),
            "thread": of_event(traffic.thread),
            "step": of_event(traffic.step),
            "phase": texts(traffic.phases, traffic.phase),
            "scope": texts(traffic.scopes, traffic.scope),
            "stack": pd.Series(stacks_of(loaded, rows), dtype=object),
        }
    )
    return Snapshot(label, event, segments, blocks)


def _trace_of(info: Mapping[str, Any]) -> tuple[LoadedTrace, Traffic]:
    path = info["trace"]["path"]
    remedy = "put the trace back where it was, or replay it again"
    try:
        (loaded,) = load_trace(path)
    except BrokenFileError as error:
        problem = f"the trace, which a snapshot replays again, {error.problem}"
        raise BrokenFileError(path, problem, remedy) from None
    traffic = loaded.traffic(info["trace"]["device"])
    if traffic.fingerprint != info["trace"]["fingerprint"]:
        problem = f"the trace, which a snapshot replays again, is not that of {info['name']}"
        raise BrokenFileError(path, problem, remedy)
    return loaded, traffic


def stacks_of(loaded: LoadedTrace, rows: Array) -> Array:
    """The folded stacks of `rows` of the trace; None where none was recorded, and for row -1."""
    numbers, stacks = read_stacks(loaded)
    chosen = np.where(rows < 0, -1, np.append(numbers, -1)[rows])
    # The last entry stands for none: -1 as an index reaches it.
    found: Array = np.array([*stacks, None], dtype=object)[chosen]
    return found
