"""From a snapshot's columns to a history: the state before the first entry, by undoing them all.

A ``free_completed`` undone makes its block live again, an ``alloc`` undone frees it; segments come
and go likewise. Which blocks were split or merged follows from what is live, since free neighbours
are always merged.
"""

from __future__ import annotations

import re
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from workbench.recorders.importers._snapshot_file import MARK, NOT_TOLD, Entries, Segments
from workbench.recorders.trace.history import ACTIONS, SIZE_NOT_TOLD, STATES, History, State

Array = npt.NDArray[Any]

ALLOC, REQUESTED, COMPLETED, MADE, GONE, MAPPED, UNMAPPED, OOM = range(len(ACTIONS))
_INACTIVE, _ALLOCATED, _PENDING = range(len(STATES))
_SMALL_SEGMENT: Final = 2 << 20
LARGEST_SMALL: Final = 1 << 20
_UNIT: Final = 512
_LEAST_LARGE: Final = 10 << 20
# No device has more memory.
_MOST_MEMORY: Final = 1 << 46
_NONE: Final = 255


class NotReconstructible(Exception):
    """The entries and the final state contradict each other; the message says how."""


def build_history(
    device: str,
    entries: Entries,
    final: Segments,
    streams: Array,
    settings: str,
    settings_told: bool,
) -> History:
    """The history of a device whose entries begin in mid-run.

    Args:
        device: its name in the trace.
        entries: without marks or with them; marks are left out.
        final: segments and blocks after the last entry.
        streams: all pointers of streams, in order; a stream's number is its place here.
        settings: in the syntax of ``PYTORCH_ALLOC_CONF``.
        settings_told: whether the file has them.

    Raises:
        NotReconstructible: no allocator can have written this.
    """
    kept = entries.action != MARK
    action, address, size = entries.action[kept], entries.address[kept], entries.size[kept]
    _check_units(action, address, final)
    _check_final(final)
    number_of_stream = np.searchsorted(streams, entries.stream[kept]).astype(np.int32)
    pool = entries.pool[kept]
    lives = _Lives(action, address, np.flatnonzero(kept))
    after = _state_after(final, streams)
    if not lives.asks_first:
        # Then it is not known which of those allocated here the program has freed already.
        made = lives.address[lives.last == ALLOC]
        after.blocks["state"][np.isin(after.blocks["address"], made)] = _ALLOCATED
    segments = _segments_before(
        after.segments, action, address, size, number_of_stream, pool, lives.place,
        _large_page(settings),
    )  # fmt: skip
    fixed = ~segments["is_expandable"]
    _check_kinds(segments["address"][fixed], segments["size"][fixed], segments["is_small"][fixed])
    before = State(segments, _blocks_before(after.blocks, lives, size))
    _check_inside(before)
    impossible = np.flatnonzero(
        (action == OOM) & ((address > _MOST_MEMORY) & (address != NOT_TOLD))
    )
    if impossible.size:
        raise NotReconstructible(
            f"entry {int(np.flatnonzero(kept)[impossible[0]])}: the device has "
            f"{int(address[impossible[0]]):,} free bytes, more than there are"
        )
    return History(
        device=device,
        action=action,
        address=address,
        size=size,
        stream=number_of_stream,
        pool=_pools_of_entries(action, address, pool, segments, after.segments),
        before=before,
        after=after,
        settings=settings,
        settings_told=settings_told,
        place=np.flatnonzero(kept),
    )


def _check_final(final: Segments) -> None:
    """Blocks must lie side by side and fill their segments."""
    segments, blocks = final.segments, final.blocks
    begin = segments["address"].astype(np.int64)
    end = begin + segments["size"]
    if len(begin) and (overlap := np.flatnonzero(begin[1:] < end[:-1])).size:
        raise NotReconstructible(f"two segments overlap at address {int(begin[overlap[0] + 1]):#x}")
    filled = np.zeros(len(begin), dtype=np.int64)
    np.add.at(filled, blocks["segment"], blocks["size"])
    first = blocks["address"].astype(np.int64)
    last = first + blocks["size"]
    inside = (first >= begin[blocks["segment"]]) & (last <= end[blocks["segment"]])
    wrong = np.flatnonzero(filled != segments["size"])
    if wrong.size or not inside.all():
        place = int(wrong[0] if wrong.size else blocks["segment"][~inside][0])
        raise NotReconstructible(
            f"the blocks of {max(int(wrong.size), 1):,} of {len(begin):,} segments do not fill "
            f"them: of that at {int(begin[place]):#x}, {int(filled[place]):,} of "
            f"{int(segments['size'][place]):,} bytes"
        )
    if len(first) and (first[1:] < last[:-1]).any():
        raise NotReconstructible("blocks overlap at the end")
    free = blocks["state"] == _INACTIVE
    same = blocks["segment"][1:] == blocks["segment"][:-1]
    if len(first) and (apart := np.flatnonzero(free[1:] & free[:-1] & same)).size:
        raise NotReconstructible(
            f"two free blocks lie side by side at {int(first[apart[0]]):#x}, and free neighbours "
            "are always merged"
        )
    _check_totals(segments, blocks)
    fixed = ~segments["is_expandable"]
    _check_kinds(segments["address"][fixed], segments["size"][fixed], segments["is_small"][fixed])


def _check_totals(segments: dict[str, Array], blocks: dict[str, Array]) -> None:
    """What a segment says of itself must be the sum over its blocks."""
    for name, states in (("allocated", [_ALLOCATED]), ("active", [_ALLOCATED, _PENDING])):
        counted = np.zeros(len(segments["address"]), dtype=np.int64)
        chosen = np.isin(blocks["state"], states)
        np.add.at(counted, blocks["segment"][chosen], blocks["size"][chosen])
        wrong = np.flatnonzero((segments[name] >= 0) & (segments[name] != counted))
        if wrong.size:
            at = wrong[0]
            raise NotReconstructible(
                f"the segment at {int(segments['address'][at]):#x} says that "
                f"{int(segments[name][at]):,} of its bytes are {name}, and its blocks "
                f"{int(counted[at]):,}"
            )


def _check_kinds(address: Array, size: Array, is_small: Array) -> None:
    """Segments that are not expandable have the sizes that their pools take."""
    large = (size % _SMALL_SEGMENT == 0) & (size >= _LEAST_LARGE)
    wrong = np.flatnonzero(np.where(is_small, size != _SMALL_SEGMENT, ~large))
    if wrong.size:
        at = wrong[0]
        raise NotReconstructible(
            f"the {'small' if is_small[at] else 'large'} segment at {int(address[at]):#x} has "
            f"{int(size[at]):,} bytes, which no allocator takes for it"
        )


def _check_units(action: Array, address: Array, final: Segments) -> None:
    placed = address[(action != OOM) & (action <= UNMAPPED)]
    odd = int((placed % _UNIT != 0).sum()) + int((final.blocks["address"] % _UNIT != 0).sum())
    if odd:
        raise NotReconstructible(
            f"{odd:,} of {len(placed) + len(final.blocks['address']):,} addresses are no multiples "
            f"of {_UNIT}, as all of PyTorch's are: the file was made up"
        )


class _Lives:
    """Which entries are about the same block: those of one address, in order of time.

    Attributes:
        first: by address that entries name, its first action; `last`, its last.
        address: those addresses, ascending.
        first_entry, last_entry: places of those entries.
    """

    def __init__(self, action: Array, address: Array, place: Array) -> None:
        self.place = place  # of each entry in the file
        of_blocks = np.flatnonzero(action <= COMPLETED)
        order = of_blocks[np.argsort(address[of_blocks], kind="stable")]
        ordered, what = address[order], action[order]
        starts = np.ones(len(order), dtype=bool)
        starts[1:] = ordered[1:] != ordered[:-1]
        before = np.empty(len(order), dtype=np.uint8)
        before[1:] = what[:-1]
        before[starts] = _NONE
        # Old files have no free_requested: then what is completed was live.
        allowed = {
            ALLOC: (COMPLETED, _NONE),
            REQUESTED: (ALLOC, _NONE),
            COMPLETED: (REQUESTED, _NONE) if (what == REQUESTED).any() else (ALLOC, _NONE),
        }
        words = {ALLOC: "is allocated", REQUESTED: "is freed", COMPLETED: "completes its free"}
        for code, good in allowed.items():
            wrong = np.flatnonzero((what == code) & ~np.isin(before, good))
            if wrong.size:
                at = wrong[np.argmin(order[wrong])]
                last = "nothing" if before[at] == _NONE else ACTIONS[before[at]]
                raise NotReconstructible(
                    f"entry {int(place[order[at]])}: address {int(ordered[at]):#x} {words[code]} "
                    f"after its last entry was {last}"
                )
        ends = np.roll(starts, -1) if len(starts) else starts
        self.address = ordered[starts]
        self.first, self.first_entry = what[starts], order[starts]
        self.last, self.last_entry = what[ends], order[ends]
        self.asks_first = bool((what == REQUESTED).any())


def _check_inside(state: State) -> None:
    """Every block must lie in a segment."""
    segments, blocks = state.segments, state.blocks
    if not len(blocks["address"]):
        return
    place = np.searchsorted(segments["address"], blocks["address"], side="right") - 1
    outside = place < 0
    if len(segments["address"]):
        at = np.maximum(place, 0)
        end = segments["address"][at] + segments["size"][at].astype(np.uint64)
        outside |= blocks["address"] >= end
    if outside.any():
        raise NotReconstructible(
            f"{int(outside.sum()):,} of the blocks that were in use before the first entry lie "
            f"outside the segments, as that at {int(blocks['address'][outside][0]):#x}"
        )


def _state_after(final: Segments, streams: Array) -> State:
    segments = {name: values for name, values in final.segments.items() if name not in _TOTALS}
    segments["stream"] = np.searchsorted(streams, segments["stream"]).astype(np.int32)
    active = final.blocks["state"] != _INACTIVE
    blocks = {
        name: final.blocks[name][active] for name in ("address", "size", "requested", "state")
    }
    return State(segments, blocks)


def _blocks_before(final: dict[str, Array], lives: _Lives, size: Array) -> dict[str, Array]:
    """The blocks that were active before the first entry."""
    place = np.searchsorted(lives.address, final["address"])
    place = np.minimum(place, max(len(lives.address) - 1, 0))
    named = np.zeros(len(place), dtype=bool)
    if len(lives.address):
        named = lives.address[place] == final["address"]
        _check_ends(final, lives, place, named)
    untouched = {name: values[~named] for name, values in final.items()}
    freed = lives.first != ALLOC
    state = np.where(
        lives.asks_first & (lives.first[freed] == COMPLETED), _PENDING, _ALLOCATED
    ).astype(np.uint8)
    # One that is still waiting to be completed at the end is among the blocks there.
    sizes = np.full(len(lives.address), SIZE_NOT_TOLD, dtype=np.int64)
    if len(lives.address):
        one_entry = lives.first_entry == lives.last_entry
        waiting = named & (final["state"] == _PENDING) & one_entry[place]
        sizes[place[waiting]] = final["size"][waiting]
    gone = {
        "address": lives.address[freed],
        "size": sizes[freed],
        "requested": size[lives.first_entry[freed]],
        "state": state,
    }
    both = {name: np.concatenate([untouched[name], gone[name]]) for name in gone}
    order = np.argsort(both["address"], kind="stable")
    return {name: values[order] for name, values in both.items()}


def _check_ends(final: dict[str, Array], lives: _Lives, place: Array, named: Array) -> None:
    """What the entries leave behind must be what the file says is there at the end."""
    wanted = np.where(lives.last == ALLOC, _ALLOCATED, _INACTIVE)
    if lives.asks_first:
        wanted[lives.last == REQUESTED] = _PENDING
    left = wanted[place[named]] != final["state"][named]
    if left.any():
        at = int(final["address"][named][left][0])
        raise NotReconstructible(
            f"after the last entry the block at {at:#x} is "
            f"{STATES[wanted[place[named]][left][0]]}, and the file says "
            f"{STATES[final['state'][named][left][0]]}"
        )
    missing = (wanted != _INACTIVE) & ~np.isin(lives.address, final["address"])
    if missing.any():
        entry = int(lives.place[lives.last_entry[missing][0]])
        raise NotReconstructible(
            f"{int(missing.sum()):,} allocations are live after the last entry and are not among "
            f"the blocks at the end, the first of them at {int(lives.address[missing][0]):#x} "
            f"(entry {entry})"
        )


def _segments_before(
    final: dict[str, Array],
    action: Array,
    address: Array,
    size: Array,
    stream: Array,
    pool: Array,
    place: Array,
    large_page: int,
) -> dict[str, Array]:
    """The segments there were before the first entry."""
    fixed: dict[int, tuple[Any, ...]] = {}
    pieces: list[tuple[Any, ...]] = []
    rows = zip(*(final[name].tolist() for name in _SEGMENT_COLUMNS), strict=True)
    for row in rows:
        if row[5]:
            pieces.append(row)
        else:
            fixed[row[0]] = row
    mapped = _Ranges(pieces)
    for entry in reversed(np.flatnonzero((action >= MADE) & (action <= UNMAPPED)).tolist()):
        at, bytes_, kind = int(address[entry]), int(size[entry]), int(action[entry])
        where = f"entry {int(place[entry])}: {ACTIONS[kind]} at {at:#x}"
        row = (at, bytes_, int(stream[entry]), max(int(pool[entry]), 0), False, False)
        if kind == MADE:
            found = fixed.pop(at, None)
            if found is None or found[1] != bytes_:
                raise NotReconstructible(f"{where}, and no such segment is there afterwards")
        elif kind == GONE:
            if at in fixed:
                raise NotReconstructible(f"{where}, and that segment is still there afterwards")
            fixed[at] = (*row[:4], bytes_ == _SMALL_SEGMENT, False)
        elif kind == MAPPED:
            if not mapped.remove(at, bytes_):
                raise NotReconstructible(f"{where}, and that memory is not there afterwards")
        elif not mapped.add(row, _small_inside(action, address, size, entry, at, at + bytes_)):
            raise NotReconstructible(f"{where}, and that memory is still there afterwards")
    mapped.guess_small(large_page)
    columns = zip(*sorted([*fixed.values(), *mapped.rows()]), strict=True)
    made = list(columns) or [()] * len(_SEGMENT_COLUMNS)
    types = ("u8", "i8", "i4", "i4", "?", "?")
    return {
        name: np.array(values, dtype=dtype)
        for name, values, dtype in zip(_SEGMENT_COLUMNS, made, types, strict=True)
    }


_TOTALS: Final = ("allocated", "active")
_SEGMENT_COLUMNS: Final = ("address", "size", "stream", "pool", "is_small", "is_expandable")


def _small_inside(
    action: Array, address: Array, size: Array, before: int, begin: int, end: int
) -> bool | None:
    """Whether what was allocated or freed in a piece, before it was unmapped, was small."""
    inside = (address[:before] >= begin) & (address[:before] < end) & (action[:before] <= COMPLETED)
    found = np.flatnonzero(inside)
    return bool(size[found[-1]] <= LARGEST_SMALL) if found.size else None


def _large_page(settings: str) -> int:
    found = re.search(r"large_segment_size_mb:(\d{1,6})\b", settings)
    return int(found[1]) << 20 if found and int(found[1]) else 20 << 20


class _Ranges:
    """The parts of expandable segments that have memory, each with its stream and pool."""

    def __init__(self, pieces: list[tuple[Any, ...]]) -> None:
        # By address: end, stream, pool, is_small (None: not known yet).
        self._parts: dict[int, tuple[int, int, int, bool | None]] = {
            row[0]: (row[0] + row[1], row[2], row[3], bool(row[4])) for row in pieces
        }

    def _holding(self, at: int) -> int | None:
        starts = [start for start, part in self._parts.items() if start <= at < part[0]]
        return starts[0] if starts else None

    def remove(self, at: int, size: int) -> bool:
        """Take a mapped piece away; False where it is not all there."""
        start = self._holding(at)
        if start is None or self._parts[start][0] < at + size:
            return False
        end, stream, pool, small = self._parts.pop(start)
        if start < at:
            self._parts[start] = (at, stream, pool, small)
        if at + size < end:
            self._parts[at + size] = (end, stream, pool, small)
        return True

    def add(self, row: tuple[Any, ...], small: bool | None) -> bool:
        """Put a piece back, as one with its neighbours; False where a part of it is there."""
        at, end, stream, pool = row[0], row[0] + row[1], row[2], row[3]
        if any(start < end and at < part[0] for start, part in self._parts.items()):
            return False
        for start, part in list(self._parts.items()):
            if part[1:3] == (stream, pool) and (part[0] == at or start == end):
                at, end, small = (
                    min(at, start),
                    max(end, part[0]),
                    part[3] if small is None else small,
                )
                del self._parts[start]
        self._parts[at] = (end, stream, pool, small)
        return True

    def guess_small(self, large_page: int) -> None:
        """Give pieces a pool of which nothing tells: the large one's come in whole pages."""
        for start, (end, stream, pool, told) in self._parts.items():
            if told is None:
                self._parts[start] = (end, stream, pool, (end - start) % large_page > 0)

    def rows(self) -> list[tuple[Any, ...]]:
        """As `_SEGMENT_COLUMNS`, neighbours joined."""
        joined: list[list[Any]] = []
        for start, (end, stream, pool, small) in sorted(self._parts.items()):
            last = joined[-1] if joined else None
            if last is not None and last[0] + last[1] == start and last[2:5] == [
                stream, pool, small,
            ]:  # fmt: skip
                last[1] += end - start
            else:
                joined.append([start, end - start, stream, pool, small, True])
        return [tuple(row) for row in joined]


def _pools_of_entries(
    action: Array, address: Array, told: Array, before: dict[str, Array], after: dict[str, Array]
) -> Array:
    """The pool of each entry: as told, else that of the segment around its address."""
    pools = np.maximum(told, 0).astype(np.int32)
    unknown = (told < 0) & (action != OOM)
    entries = np.arange(len(action))
    for segments, is_before in ((before, True), (after, False)):
        if not (segments["pool"] > 0).any() or not unknown.any():
            continue
        place = np.searchsorted(segments["address"], address, side="right") - 1
        at = np.maximum(place, 0)
        within = address < segments["address"][at] + segments["size"][at].astype(np.uint64)
        # Addresses are used again: a segment before lasts until it is released, one after began
        # when it was made.
        moment = np.full(len(segments["address"]), len(action) if is_before else -1)
        changes = np.flatnonzero(action == (GONE if is_before else MADE))
        index = np.searchsorted(segments["address"], address[changes])
        index = np.minimum(index, len(moment) - 1)
        same = segments["address"][index] == address[changes]
        order = changes[same][::-1] if is_before else changes[same]
        moment[index[same][::-1] if is_before else index[same]] = order  # the last one holds
        lasts = entries <= moment[at] if is_before else entries >= moment[at]
        chosen = unknown & (place >= 0) & within & lasts
        pools[chosen] = segments["pool"][at[chosen]]
        unknown &= ~chosen
    return pools
