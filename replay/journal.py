"""What PyTorch's caching allocator would have written into its history, had it run a trace."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np

from workbench.common.errors import UsageError
from workbench.recorders.trace.history import ACTIONS, STATES, History, State
from workbench.recorders.trace.origins import Origins
from workbench.replay import _engine
from workbench.replay.cell import AllocatorSpec
from workbench.replay.events import Array, LoadedTrace, Traffic
from workbench.replay.stacks import read_stacks

Progress = Callable[[int, int], object]
_NO_ENTRY = -1
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True)
class ReplayedHistory:
    """A replay's history up to one event, and its state there.

    Args:
        history: from a fresh allocator on.
        origins: times, and the stacks and scopes of the trace.
        event: the row of the trace after which the state is.
        out_of_memory: whether the replay ended there because a request was refused.
        unread: rows of the trace that come after it.
    """

    history: History
    origins: Origins
    event: int
    out_of_memory: bool
    unread: int


def replay_history(
    loaded: LoadedTrace,
    device: str,
    settings: str = "",
    *,
    capacity: int | None = None,
    completion: str = "recorded",
    at: str | int = "end",
    progress: Progress = lambda done, total: None,
) -> ReplayedHistory:
    """Replay the traffic of `device` against `caching` on a simulated device.

    Args:
        loaded: the trace.
        device: a device of it.
        settings: of the allocator.
        capacity: bytes of the device; None for unlimited.
        completion: when work on a stream completes, as for a replay.
        at: ``end``: after the last event, or where the replay runs out of memory; ``peak``: at the
            peak of reserved memory; ``oom``: where it runs out; or a row of the trace.
        progress: called with events done and events in all.

    Raises:
        UsageError: the trace has no event of `device`, a setting is not one, `at` is not reached.
    """
    traffic = loaded.traffic(device)
    if not len(traffic.op):
        raise UsageError(f"{loaded.path} holds no event of {device!r}; there is nothing to replay")
    replay = _replay(traffic, settings, capacity, completion)
    index = _index(at, replay, loaded, traffic)
    found = replay.memory(1, blocks_at=index, journal=True, progress=progress)
    oom = found["oom"]
    if oom is not None and oom["event"] < index:
        if at != "end":
            raise UsageError(
                f"--at {at} is not reached: the replay ran out of memory at event "
                f"{traffic.row[oom['event']]}; take the state there with --at oom, or give more "
                "memory with --capacity"
            )
        index = oom["event"]
        found = replay.memory(1, blocks_at=index, journal=True)
    journal, blocks = found["journal"], found["blocks"]
    assert blocks is not None  # `index` was reached
    row = int(traffic.row[index])
    chosen = journal["event"] <= index
    after, of_blocks = _state(blocks)
    history = _history(device, journal, chosen, after, settings)
    return ReplayedHistory(
        history,
        _origins(loaded, traffic, index, journal["event"][chosen], history, of_blocks),
        row,
        oom is not None and oom["event"] == index,
        loaded.rows - 1 - row,
    )


def _replay(
    traffic: Traffic, settings: str, capacity: int | None, completion: str
) -> _engine.Replay:
    try:
        return _engine.Replay(
            traffic.events(),
            "caching",
            settings,
            backend="simulated",
            capacity=capacity,
            completion=completion,
        )
    except ValueError as error:
        raise UsageError(str(error)) from None


def _index(at: str | int, replay: _engine.Replay, loaded: LoadedTrace, traffic: Traffic) -> int:
    """Which of the engine's events `at` means."""
    if at == "end":
        return len(traffic.row) - 1
    if isinstance(at, str):
        found = replay.memory(1)
        if at == "peak":
            return max(found["peaks"]["reserved"]["event"] or 0, 0)
        if found["oom"] is None:
            raise UsageError(
                "--at oom: the replay does not run out of memory; give --at peak, or less memory "
                "with --capacity"
            )
        return found["oom"]["event"]
    index = int(np.searchsorted(traffic.row, at, side="right")) - 1
    if index < 0 or at >= loaded.rows:
        raise UsageError(
            f"--at {at} is outside the replay; its events are the rows of the trace, here "
            f"{traffic.row[0]} to {loaded.rows - 1}"
        )
    return index


def _history(
    device: str, journal: _engine.JournalColumns, chosen: Array, after: State, settings: str
) -> History:
    # The engine's codes, by name, as places in ACTIONS.
    codes = np.zeros(256, dtype=np.uint8)
    for name, code in _engine.JOURNAL_ACTIONS.items():
        codes[code] = ACTIONS.index(name)
    # A rule set is a setting of ours, which PyTorch would not know.
    keys = AllocatorSpec("caching", settings).settings_by_key()
    rules = keys.pop("rules", "2.13")
    empty: dict[str, Array] = {name: column[:0] for name, column in after.segments.items()}
    return History(
        device=device,
        action=codes[journal["action"][chosen]],
        address=journal["address"][chosen],
        size=journal["size"][chosen],
        stream=journal["stream"][chosen],
        pool=journal["pool"][chosen],
        before=State(empty, {name: column[:0] for name, column in after.blocks.items()}),
        after=after,
        settings=",".join(f"{key}:{value}" for key, value in keys.items()),
        settings_told=True,
        rules=(rules,),
    )


def _state(found: _engine.Blocks) -> tuple[State, Array]:
    """Segments and blocks in order of addresses, and the index of the event behind each block.

    PyTorch lists each stretch of an expandable segment that has memory as a segment of its own.
    """
    of, columns = found["segments"], found["blocks"]
    home = np.searchsorted(of["number"], columns["segment"])
    address = of["address"].astype(np.uint64)[home] + columns["offset"].astype(np.uint64)
    order = np.argsort(address, kind="stable")
    home, address, size = home[order], address[order], columns["size"][order]
    ends = address[:-1] + size[:-1].astype(np.uint64)
    apart = (home[1:] != home[:-1]) | (address[1:] != ends)
    first = np.flatnonzero(np.append(True, apart)) if len(order) else np.zeros(0, dtype=np.int64)
    of_run = home[first]
    names = columns["state"][order]
    states = np.zeros(len(order), dtype=np.uint8)
    for code, name in enumerate(STATES):
        states[names == name] = code
    used = states != STATES.index("inactive")
    state = State(
        segments={
            "address": address[first],
            "size": np.add.reduceat(size, first) if len(first) else size,
            "stream": of["stream"][of_run],
            "pool": of["private_pool"][of_run],
            "is_small": (of["pool"] == "small")[of_run],
            "is_expandable": of["expandable"].astype(bool)[of_run],
        },
        blocks={
            "address": address[used],
            "size": size[used],
            "requested": columns["requested"][order][used],
            "state": states[used],
        },
    )
    return state, columns["slot_event"][order][used]


def _origins(
    loaded: LoadedTrace,
    traffic: Traffic,
    index: int,
    event: Array,
    history: History,
    of_blocks: Array,
) -> Origins:
    """Times and stacks of the entries of `event`s, of the segments and of the blocks."""
    numbers, stacks = _stacks_of_events(loaded, traffic)
    numbers = np.append(numbers, np.int32(-1))  # which -1 finds: of what no event made
    time_us = _start_us(loaded.metadata.get("start_wall_clock")) + traffic.time_ns // 1000
    return Origins(
        time_us=time_us[event],
        stack=numbers[event],
        segment_stack=numbers[_made_by(history, event)],
        block_stack=numbers[of_blocks],
        stacks=stacks,
        annotations=_annotations(traffic, time_us, index),
    )


def _made_by(history: History, event: Array) -> Array:
    """For each segment at the end the event that made it, -1 where none made just that."""
    made = np.isin(
        history.action, [ACTIONS.index(name) for name in ("segment_alloc", "segment_map")]
    )
    # Of an address that was taken more than once, the last time counts: the first from behind.
    address, place = np.unique(history.address[made][::-1], return_index=True)
    events = event[made][::-1][place]
    wanted = history.after.segments["address"]
    at = np.minimum(np.searchsorted(address, wanted), max(len(address) - 1, 0))
    if not len(address):
        return np.full(len(wanted), _NO_ENTRY)
    return np.where(address[at] == wanted, events[at], _NO_ENTRY)


def _stacks_of_events(loaded: LoadedTrace, traffic: Traffic) -> tuple[Array, list[str]]:
    """For each event a place in the list, or -1: its stack, its scope as the innermost frame."""
    of_rows, folded = read_stacks(loaded)
    scopes = [text.replace(";", ":") for text in traffic.scopes]
    pair = (of_rows[traffic.row].astype(np.int64) + 1) * (len(scopes) + 1) + traffic.scope + 1
    values, places = np.unique(pair, return_inverse=True)
    texts = []
    for value in values.tolist():
        stack, scope = divmod(value, len(scopes) + 1)
        parts = (folded[stack - 1] if stack else "", scopes[scope - 1] if scope else "")
        texts.append(";".join(filter(None, parts)))
    # Events without either have no stack.
    number = np.array([place if text else -1 for place, text in enumerate(texts)], dtype=np.int32)
    found: Array = number[places]
    return found, texts


def _annotations(traffic: Traffic, time_us: Array, index: int) -> list[tuple[str, bool, int]]:
    """The phases up to an event, as annotations that begin and end."""
    phase = traffic.phase[: index + 1]
    changes = np.flatnonzero(np.append(True, phase[1:] != phase[:-1])).tolist()
    found = []
    for start, end in zip(changes, [*changes[1:], index], strict=True):
        name = traffic.phases[phase[start]] if phase[start] >= 0 else "other"
        if name != "other":
            found += [(name, True, int(time_us[start])), (name, False, int(time_us[end]))]
    return found


def _start_us(wall_clock: Any) -> int:
    """Microseconds since 1970 of a trace's time 0; 0 where it is not known."""
    try:
        return (datetime.fromisoformat(wall_clock) - _EPOCH) // timedelta(microseconds=1)
    except (TypeError, ValueError):
        return 0
