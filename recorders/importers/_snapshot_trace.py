"""From a history to the rows of a trace: what the program asked for, and where it was put."""

from __future__ import annotations

from bisect import bisect_right, insort
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from workbench.recorders.importers._snapshot_file import MARK, Annotation, Entries, Segments
from workbench.recorders.importers._snapshot_history import (
    ALLOC,
    COMPLETED,
    GONE,
    LARGEST_SMALL,
    MADE,
    MAPPED,
    OOM,
    REQUESTED,
    UNMAPPED,
)
from workbench.recorders.trace.history import STATES, History, State
from workbench.recorders.trace.schema import PHASES

Array = npt.NDArray[Any]

EVENTS: Final = (
    "alloc",
    "free",
    "free_completed",
    "segment_alloc",
    "segment_free",
    "segment_map",
    "segment_unmap",
    "oom",
    "live",
    "record_stream",
    "empty_cache",
    "mark",
)
"""Names by the codes of the column ``event``; the first are those of entries."""

_LIVE, _RECORD_STREAM, _EMPTY_CACHE, _MARK = range(8, 12)
FIELDS: Final = {
    "order": "i8",
    "event": "u1",
    "owner": "i8",
    "size": "i8",
    "stream": "i4",
    "pool": "i4",
    "segment": "i4",
    "offset": "i8",
    "stack": "i4",
    "value": "i8",
    "label": "i4",
}
"""Columns of rows that are being made; -1 stands for none. ``order`` is twice the entry's place in
the file, and a little before or after it; ``owner`` is the number of the allocation in this
device."""


class DeviceRows:
    """The rows of one device, in order.

    Args:
        history: see `build_history`.
        entries: as in the file, marks included.
        final: blocks at the end, for their stacks.

    Attributes:
        columns: those of `FIELDS`, and ``time_us``.
        labels: texts that ``label`` numbers.
        live: allocations there were before the first entry.
        waits: streams that delayed frees must have waited for, which the file does not name; they
            are numbered from `streams` on.
    """

    def __init__(self, history: History, entries: Entries, final: Segments, streams: int) -> None:
        self._history = history
        self._entries = entries
        self._streams = streams
        self.labels: list[str] = []
        self._parts: list[dict[str, Array]] = []
        self._places = np.arange(len(history.action)) if history.place is None else history.place
        self._blocks = _Owners(history)
        self.live = len(history.before.blocks["address"])
        self._segment, self._offset, base = _locations(history)
        self._add_before(final, base)
        self._add_entries()
        self.waits = self._add_waits()
        self._add_flushes()
        self._add_marks()
        joined = {name: np.concatenate([part[name] for part in self._parts]) for name in FIELDS}
        order = np.argsort(joined["order"], kind="stable")
        self.columns = {name: values[order] for name, values in joined.items()}
        self.columns["time_us"] = self._times(self.columns["order"])

    def _add(self, **given: Any) -> None:
        count = len(given["order"])
        self._parts.append(
            {
                name: np.broadcast_to(
                    np.asarray(given.get(name, 0 if name in _ZERO else -1), dtype=dtype), (count,)
                )
                for name, dtype in FIELDS.items()
            }
        )

    def _add_before(self, final: Segments, base: dict[int, tuple[int, int]]) -> None:
        before: State = self._history.before
        segments, blocks = before.segments, before.blocks
        first = np.full(len(segments["address"]), -3, dtype=np.int64)
        numbers = [base[int(address)] for address in segments["address"]]
        label = self._label("before") if len(numbers) else -1
        self._add(
            order=first,
            event=np.where(segments["is_expandable"], MAPPED, MADE),
            size=segments["size"],
            stream=segments["stream"],
            pool=segments["pool"],
            segment=np.array([number for number, _ in numbers], dtype=np.int32),
            offset=np.array([offset for _, offset in numbers], dtype=np.int64),
            label=label,
        )
        count = self.live
        if not count:
            return
        place = np.searchsorted(segments["address"], blocks["address"], side="right") - 1
        place = np.maximum(place, 0)
        within = blocks["address"].astype(np.int64) - segments["address"][place].astype(np.int64)
        self.live_stream = segments["stream"][place]
        # Of the blocks that are still there at the end, the file tells the stack.
        at_end = np.searchsorted(final.blocks["address"], blocks["address"])
        at_end = np.minimum(at_end, max(len(final.blocks["address"]) - 1, 0))
        told = blocks["size"] > 0
        stack = np.full(count, -1, dtype=np.int32)
        if len(final.blocks["address"]):
            stack[told] = final.blocks["stack"][at_end[told]]
        self._add(
            order=np.full(count, -2, dtype=np.int64),
            event=_LIVE,
            owner=np.arange(count),
            size=blocks["requested"],
            stream=self.live_stream,
            pool=segments["pool"][place],
            segment=np.array([numbers[at][0] for at in place], dtype=np.int32),
            offset=within + np.array([numbers[at][1] for at in place], dtype=np.int64),
            stack=stack,
            value=np.where(told, blocks["size"], -1),
        )
        pending = np.flatnonzero(blocks["state"] == STATES.index("active_pending_free"))
        self._add(
            order=np.full(len(pending), -1, dtype=np.int64),
            event=REQUESTED,
            owner=pending,
            size=blocks["requested"][pending],
            stream=self.live_stream[pending],
            pool=segments["pool"][place[pending]],
        )

    def _add_entries(self) -> None:
        history, owners = self._history, self._blocks
        action = history.action
        event = action.copy()
        keep = np.ones(len(action), dtype=bool)
        if owners.asks_first:
            keep &= (action != COMPLETED) | owners.delayed
        else:
            event[action == COMPLETED] = REQUESTED
        chosen = np.flatnonzero(keep)
        size = history.size.copy()
        frees = (action == REQUESTED) | (action == COMPLETED)
        size[frees] = owners.size[frees]
        size[owners.delayed & (action == COMPLETED)] = 0
        self._add(
            order=2 * self._places[chosen],
            event=event[chosen],
            owner=owners.owner[chosen],
            size=size[chosen],
            stream=history.stream[chosen],
            pool=history.pool[chosen],
            segment=self._segment[chosen],
            offset=self._offset[chosen],
            stack=self._entries.stack[self._places[chosen]],
            value=np.where(action == OOM, history.address.astype(np.int64), -1)[chosen],
        )

    def _add_waits(self) -> int:
        """A ``record_stream`` for each delayed free, on streams that explain their order."""
        owners = self._blocks
        pending = np.flatnonzero(
            self._history.before.blocks["state"] == STATES.index("active_pending_free")
        )
        asked = np.flatnonzero(owners.is_delayed_request)
        freed = np.concatenate([np.full(len(pending), -1, dtype=np.int64), asked])
        owner = np.concatenate([pending, owners.owner[asked]])
        last = len(self._history.action)
        done = np.full(int(owners.count), last, dtype=np.int64)
        completed = np.flatnonzero(owners.delayed)
        done[owners.owner[completed]] = completed
        # On one stream the work that was submitted first is done first.
        numbers = _queues(done[owner])
        self._add(
            order=np.where(freed < 0, -2, 2 * self._places[np.maximum(freed, 0)] - 1)
            if last
            else np.full(len(freed), -2),
            event=_RECORD_STREAM,
            owner=owner,
            stream=self._streams + numbers,
        )
        return int(numbers.max(initial=-1)) + 1

    def _add_flushes(self) -> None:
        """Runs of released segments with no request behind them: the program emptied the cache."""
        history = self._history
        action = history.action
        releases = ((action == GONE) | (action == UNMAPPED)) & (history.pool == 0)
        starts = np.flatnonzero(releases & ~np.concatenate([[False], releases[:-1]]))
        ends = np.flatnonzero(releases & ~np.concatenate([releases[1:], [False]]))
        behind = np.append(action, MARK)[ends + 1]
        takes = np.isin(behind, (MADE, MAPPED))
        # A device that had room for more at another time would not have refused this much.
        sign = np.isin(action, (MADE, MAPPED)).astype(np.int64) - releases
        reserved = history.before.reserved + np.cumsum(sign * history.size)
        before = np.concatenate([[history.before.reserved], reserved])
        wanted = before[starts] + np.append(history.size, 0)[ends + 1]
        had_room = takes & (wanted <= before.max())
        explicit = starts[had_room | ~(takes | (behind == OOM))]
        self._add(order=2 * self._places[explicit] - 1, event=_EMPTY_CACHE)

    def _add_marks(self) -> None:
        places = np.array(sorted(self._entries.labels), dtype=np.int64)
        self._add(
            order=2 * places,
            event=_MARK,
            label=np.array(
                [self._label(self._entries.labels[place]) for place in places.tolist()],
                dtype=np.int32,
            ),
        )

    def _label(self, text: str) -> int:
        if text not in self.labels:
            self.labels.append(text)
        return self.labels.index(text)

    def _times(self, order: Array) -> Array:
        """Microseconds; where the file has none, as many as entries came before."""
        told = self._entries.time_us
        if told is None:
            counted: Array = np.maximum(order + 1, 0) // 2
            return counted
        if not len(told):
            return np.zeros(len(order), dtype=np.int64)
        rising = np.maximum.accumulate(told)
        # A row a little before an entry has that entry's time.
        found: Array = rising[np.clip((order + 1) // 2, 0, len(rising) - 1)]
        return np.where(order < 0, rising[0], found)


_ZERO: Final = ("size", "stream", "pool")


def _queues(ends: Array) -> Array:
    """The fewest queues whose members end in the order in which they came; each one's number."""
    last: list[tuple[int, int]] = []  # (end, queue), in order
    numbers = np.empty(len(ends), dtype=np.int32)
    for at, end in enumerate(ends.tolist()):
        place = bisect_right(last, (end, 1 << 31)) - 1
        queue = last.pop(place)[1] if place >= 0 else len(last)
        insort(last, (end, queue))
        numbers[at] = queue
    return numbers


class _Owners:
    """Which allocation each entry is about.

    Attributes:
        owner: by entry, the number of its allocation; those there were before come first, the
            others in order; -1 for entries about none.
        size: by entry, the requested bytes of its allocation.
        delayed: completed frees that came later than directly behind their request.
        is_delayed_request: frees whose completion came later, or never.
        count: of allocations.
        asks_first: whether frees have two entries.
    """

    def __init__(self, history: History) -> None:
        action, blocks = history.action, history.before.blocks
        count = len(action)
        live = len(blocks["address"])
        of_blocks = np.flatnonzero(action <= COMPLETED)
        order = of_blocks[np.argsort(history.address[of_blocks], kind="stable")]
        what = action[order]
        self.asks_first = bool((what == REQUESTED).any())
        made = np.zeros(count, dtype=np.int64)
        allocs = np.flatnonzero(action == ALLOC)
        made[allocs] = live + np.arange(len(allocs))
        last = np.maximum.accumulate(np.where(what == ALLOC, np.arange(len(order)), -1))
        address = history.address[order]
        same = np.zeros(len(order), dtype=bool)
        known = last >= 0
        same[known] = address[last[known]] == address[known]
        before = np.searchsorted(blocks["address"], address)
        self.owner = np.full(count, -1, dtype=np.int64)
        self.owner[order] = np.where(same, made[order[np.maximum(last, 0)]], before)
        requested = np.concatenate([blocks["requested"], history.size[allocs]])
        self.count = live + len(allocs)
        self.size = np.zeros(count, dtype=np.int64)
        self.size[order] = requested[self.owner[order]]
        entries = np.arange(count)
        self.delayed = np.zeros(count, dtype=bool)
        self.is_delayed_request = np.zeros(count, dtype=bool)
        if self.asks_first:
            asked = np.full(self.count, -2, dtype=np.int64)
            asked[self.owner[action == REQUESTED]] = entries[action == REQUESTED]
            done = action == COMPLETED
            self.delayed[done] = asked[self.owner[done]] != entries[done] - 1
            at_once = np.zeros(self.count, dtype=bool)
            at_once[self.owner[done & ~self.delayed]] = True
            asks = action == REQUESTED
            self.is_delayed_request[asks] = ~at_once[self.owner[asks]]


def _locations(history: History) -> tuple[Array, Array, dict[int, tuple[int, int]]]:
    """Segment number and offset of each entry, and of each segment before by its address.

    The pieces of a stream's expandable segment have one number: it is one range of addresses.
    """
    action = history.action
    segment = np.full(len(action), -1, dtype=np.int32)
    offset = np.full(len(action), -1, dtype=np.int64)
    before = history.before.segments
    ranges: dict[tuple[int, int, bool], tuple[int, int]] = {}
    starts: list[int] = []  # of the fixed segments there are, sorted
    sizes: dict[int, tuple[int, int]] = {}  # by start: number, size
    base: dict[int, tuple[int, int]] = {}
    numbers = 0

    def range_of(stream: int, pool: int, small: bool, address: int) -> tuple[int, int]:
        nonlocal numbers
        key = (stream, pool, small)
        if key not in ranges:
            ranges[key] = (numbers, address)
            numbers += 1
        number, start = ranges[key]
        return number, max(address - start, 0)

    columns = ("address", "size", "stream", "pool", "is_small", "is_expandable")
    for row in zip(*(before[name].tolist() for name in columns), strict=True):
        address, size, stream, pool, small, expandable = row
        if expandable:
            base[address] = range_of(stream, pool, small, address)
        else:
            base[address] = (numbers, 0)
            starts.append(address)
            sizes[address] = (numbers, size)
            numbers += 1
    rows = zip(
        np.flatnonzero((action == ALLOC) | ((action >= MADE) & (action <= UNMAPPED))).tolist(),
        strict=False,
    )
    addresses, entry_sizes = history.address.tolist(), history.size.tolist()
    streams, pools, actions = history.stream.tolist(), history.pool.tolist(), action.tolist()
    for (entry,) in rows:
        address, what = addresses[entry], actions[entry]
        if what == ALLOC:
            place = bisect_right(starts, address) - 1
            start = starts[place] if place >= 0 else -1
            if start >= 0 and address < start + sizes[start][1]:
                segment[entry], offset[entry] = sizes[start][0], address - start
            elif ranges:
                small = entry_sizes[entry] <= LARGEST_SMALL
                segment[entry], offset[entry] = range_of(
                    streams[entry], pools[entry], small, address
                )
        elif what == MADE:
            insort(starts, address)
            sizes[address] = (numbers, entry_sizes[entry])
            segment[entry], offset[entry] = numbers, 0
            numbers += 1
        elif what == GONE:
            if address in sizes:
                starts.remove(address)
                segment[entry], offset[entry] = sizes.pop(address)[0], 0
        else:
            near = _next_alloc(actions, entry_sizes, entry)
            segment[entry], offset[entry] = range_of(streams[entry], pools[entry], near, address)
    return segment, offset, base


def _next_alloc(actions: list[int], sizes: list[int], entry: int) -> bool:
    """Whether a piece was mapped for a small request; one that is taken away: by its size."""
    if actions[entry] == UNMAPPED:
        return sizes[entry] % (20 << 20) != 0
    for later in range(entry + 1, len(actions)):
        if actions[later] in (ALLOC, OOM):
            return sizes[later] <= LARGEST_SMALL
    return False


def phases_and_steps(annotations: list[Annotation], time_us: Array) -> tuple[Array, Array]:
    """Code of the phase (place in `PHASES`) and number of the step at each time.

    The innermost annotation that names a phase tells it. Steps are counted at the end of each
    ``Optimizer.step``; -1 where there is none.
    """
    inner: list[tuple[str, int]] = []
    times, phases, steps = [np.iinfo(np.int64).min], [0], [0]
    step, seen = 0, False
    for one in sorted(annotations, key=lambda annotation: annotation.time_us):
        phase = _phase_of(one.name)
        if one.begins:
            if phase is not None:
                inner.append((one.name, phase))
        else:
            at = next((at for at in reversed(range(len(inner))) if inner[at][0] == one.name), None)
            if at is not None:
                inner.pop(at)
            if one.name.startswith("Optimizer.step"):
                step, seen = step + 1, True
        times.append(one.time_us)
        phases.append(inner[-1][1] if inner else 0)
        steps.append(step)
    place = np.searchsorted(np.array(times), time_us, side="right") - 1
    numbers = np.array(steps, dtype=np.int32)[place] if seen else np.full(len(place), -1, "i4")
    return np.array(phases, dtype=np.int8)[place], numbers


def _phase_of(name: str) -> int | None:
    lowered = name.lower()
    for word, phase in (
        ("forward", "forward"),
        ("backward", "backward"),
        ("optimizer", "optimizer"),
        ("dataloader", "data"),
    ):
        if word in lowered:
            return PHASES.index(phase)
    return None
