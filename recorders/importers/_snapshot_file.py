"""From the plain containers of a PyTorch memory snapshot to columns, whatever release wrote it.

What is read, and which shapes there are: docs/importing.md. Keys that are not asked for are never
looked at, so that those of later releases do no harm.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from workbench.recorders.trace.history import ACTIONS, STATES

Array = npt.NDArray[Any]

MARK: Final = len(ACTIONS)
"""Code of entries that allocate and free nothing, as ``snapshot`` and ``annotate``."""

NOT_TOLD: Final = (1 << 64) - 1
"""Free bytes of a device, where an ``oom`` does not tell them."""

_CODES: Final = {name: code for code, name in enumerate(ACTIONS)}
_OOM: Final = _CODES["oom"]
_STATE_CODES: Final = {
    **{name: code for code, name in enumerate(STATES)},
    "active_awaiting_free": STATES.index("active_pending_free"),
}
_NO_FILE: Final = ("", "??")


_SEGMENT_TYPES: Final = {
    "address": "u8",
    "size": "i8",
    "stream": "u8",
    "pool": "i4",
    "is_small": "?",
    "is_expandable": "?",
    "allocated": "i8",
    "active": "i8",
}


class ShapeError(Exception):
    """The containers are not those of a memory snapshot; the message says which and where."""


@dataclass
class Entries:
    """The entries of one device; arrays of equal length.

    Args:
        action: codes of `ACTIONS`, or `MARK`.
        address: as in the file; of an ``oom``, the device's free bytes.
        size: bytes.
        stream: as in the file: a pointer.
        pool: places in `SnapshotFile.pools`; -1 where the file does not say.
        time_us: None where the file has none.
        stack: places in `SnapshotFile.stacks`; -1 for none.
        labels: by place of a `MARK`, what it says.
    """

    action: Array
    address: Array
    size: Array
    stream: Array
    pool: Array
    time_us: Array | None
    stack: Array
    labels: dict[int, str]

    def __len__(self) -> int:
        return len(self.action)


@dataclass
class Segments:
    """Segments and blocks of one device at the end; arrays of equal length, by address.

    Args:
        segments: ``address``, ``size``, ``stream``, ``pool``, ``is_small``, ``is_expandable``,
            and what it says is ``allocated`` and ``active`` of it, in bytes, -1 where it does not.
        blocks: ``segment`` (place in `segments`), ``address``, ``size``, ``requested``, ``state``
            (codes of `STATES`), ``stack``.
    """

    segments: dict[str, Array]
    blocks: dict[str, Array]


@dataclass
class Annotation:
    """One end of a span that the program named."""

    time_us: int
    name: str
    begins: bool


@dataclass
class SnapshotFile:
    """What a snapshot holds.

    Args:
        devices: by number, entries and final state of each device that has any.
        host: the same of pinned host memory, where the file has it.
        stacks: folded, outermost frame first.
        pools: pairs of numbers that name memory pools; the first is the default one.
        annotations: by device.
        settings: None where the file has none.
    """

    devices: dict[int, tuple[Entries, Segments]] = field(default_factory=dict)
    host: tuple[Entries, Segments] | None = None
    stacks: list[str] = field(default_factory=list)
    pools: list[tuple[int, int]] = field(default_factory=lambda: [(0, 0)])
    annotations: dict[int, list[Annotation]] = field(default_factory=dict)
    settings: Mapping[str, Any] | None = None


def read_snapshot(data: Any, most_entries: int) -> SnapshotFile:
    """The columns of the containers in `data`.

    Args:
        data: what was pickled.
        most_entries: more entries or blocks than this are a lie: lists may share their items.

    Raises:
        ShapeError: they are not those of a memory snapshot.
    """
    return _Reader(most_entries).read(data)


class _Reader:
    def __init__(self, most: int) -> None:
        self._left = most
        self._file = SnapshotFile()
        self._stack_by_list: dict[int, int] = {}
        self._stack_by_text: dict[str, int] = {}
        self._frames: dict[int, str] = {}
        self._pools: dict[Any, int] = {(0, 0): 0, None: -1}

    def read(self, data: Any) -> SnapshotFile:
        if isinstance(data, list):  # as memory_snapshot() gives them: segments and nothing else
            data = {"segments": data}
        if not isinstance(data, dict) or not ("segments" in data or "device_traces" in data):
            raise ShapeError("holds neither segments nor device_traces")
        settings = data.get("allocator_settings")
        if settings is not None:
            self._file.settings = _object(settings, "allocator_settings")
        by_device: dict[int, list[Any]] = {}
        for place, segment in enumerate(self._list(data.get("segments", []), "segments")):
            at = f"segments[{place}]"
            number = _whole(_object(segment, at).get("device", 0), f"{at}['device']", 1 << 15)
            by_device.setdefault(number, []).append((at, segment))
        traces = self._list(data.get("device_traces", []), "device_traces")
        for number, trace in enumerate(traces):
            at = f"device_traces[{number}]"
            if len(self._list(trace, at)) or number in by_device:
                self._file.devices[number] = (
                    self._entries(trace, at),
                    self._segments(by_device.pop(number, [])),
                )
        for number, segments in by_device.items():
            self._file.devices[number] = (self._entries([], ""), self._segments(segments))
        if data.get("host_traces") or data.get("host_segments"):
            self._file.host = self._host(data)
        self._read_annotations(data.get("external_annotations") or [])
        return self._file

    def _host(self, data: Mapping[str, Any]) -> tuple[Entries, Segments]:
        entries = self._list(data.get("host_traces") or [], "host_traces")
        if entries and isinstance(entries[0], list):
            entries = entries[0]
        segments = self._list(data.get("host_segments") or [], "host_segments")
        listed = [(f"host_segments[{place}]", one) for place, one in enumerate(segments)]
        return self._entries(entries, "host_traces"), self._segments(listed)

    def _list(self, value: Any, at: str) -> list[Any]:
        if not isinstance(value, list | tuple):
            raise ShapeError(f"{at} is {_kind(value)}, not a list")
        self._left -= len(value)
        if self._left < 0:
            raise ShapeError(f"{at} claims more items than the file has bytes")
        return value  # type: ignore[return-value]

    def _entries(self, trace: Sequence[Any], at: str) -> Entries:
        for place, entry in enumerate(trace):
            if type(entry) is not dict:
                raise ShapeError(f"{at}[{place}] is {_kind(entry)}, not an object")
        names = [entry.get("action") for entry in trace]
        try:
            codes = {name: _CODES.get(name, MARK) for name in dict.fromkeys(names)}
        except TypeError:
            raise ShapeError(f"{at}: an entry's 'action' is not text") from None
        if not all(isinstance(name, str) for name in codes):
            raise ShapeError(f"{at}: an entry has no 'action'")
        action = np.array([codes[name] for name in names], dtype=np.uint8)
        address = _numbers([entry.get("addr", 0) for entry in trace], f"{at}[…]['addr']", "u8")
        for place in np.flatnonzero(action == _OOM).tolist():
            free = trace[place].get("device_free", trace[place].get("addr"))
            told = NOT_TOLD if free is None else _whole(free, f"{at}[{place}]['device_free']")
            address[place] = told
        times = [entry.get("time_us") for entry in trace]
        timed = bool(times) and None not in times
        marks = np.flatnonzero(action == MARK).tolist()
        return Entries(
            action=action,
            address=address,
            size=_numbers([entry.get("size", 0) for entry in trace], f"{at}[…]['size']", "i8"),
            stream=_numbers([entry.get("stream", 0) for entry in trace], f"{at}[…]['stream']"),
            pool=np.array(
                [self._pool(entry.get("pool_id", entry.get("segment_pool_id"))) for entry in trace],
                dtype=np.int32,
            ),
            time_us=_numbers(times, f"{at}[…]['time_us']", "i8") if timed else None,
            stack=self._stacks([entry.get("frames") for entry in trace], at),
            labels={place: str(names[place])[:200] for place in marks},
        )

    def _segments(self, listed: Sequence[tuple[str, Any]]) -> Segments:
        columns: dict[str, list[Any]] = {name: [] for name in _SEGMENT_TYPES}
        blocks: dict[str, list[Any]] = {
            name: [] for name in ("segment", "address", "size", "requested", "state", "stack")
        }
        for place, (at, value) in enumerate(listed):
            segment = _object(value, at)
            size = _whole(segment.get("total_size", segment.get("size")), f"{at}['total_size']")
            address = _whole(segment.get("address"), f"{at}['address']")
            columns["address"].append(address)
            columns["size"].append(size)
            columns["stream"].append(_whole(segment.get("stream", 0), f"{at}['stream']"))
            pool = self._pool(segment.get("segment_pool_id", segment.get("pool_id")))
            columns["pool"].append(max(pool, 0))
            columns["is_small"].append(segment.get("segment_type") == "small")
            columns["is_expandable"].append(bool(segment.get("is_expandable", False)))
            for name in ("allocated", "active"):
                said = segment.get(f"{name}_size")
                columns[name].append(-1 if said is None else _whole(said, f"{at}['{name}_size']"))
            for number, block in enumerate(
                self._list(segment.get("blocks", []), f"{at}['blocks']")
            ):
                address = self._add_block(
                    blocks, place, address, _object(block, f"{at}['blocks'][{number}]"),
                    f"{at}['blocks'][{number}]",
                )  # fmt: skip
        order = np.argsort(np.array(columns["address"], dtype=np.uint64), kind="stable")
        rank = np.empty(len(order), dtype=np.int64)
        rank[order] = np.arange(len(order))
        made = {
            name: np.array(values, dtype=dtype)[order]
            for (name, values), dtype in zip(columns.items(), _SEGMENT_TYPES.values(), strict=True)
        }
        kept = {
            name: np.array(values, dtype=dtype)
            for (name, values), dtype in zip(
                blocks.items(), ("i8", "u8", "i8", "i8", "u1", "i4"), strict=True
            )
        }
        kept["segment"] = rank[kept["segment"]]
        by_address = np.argsort(kept["address"], kind="stable")
        return Segments(made, {name: values[by_address] for name, values in kept.items()})

    def _add_block(
        self,
        columns: dict[str, list[Any]],
        segment: int,
        expected: int,
        block: Mapping[str, Any],
        at: str,
    ) -> int:
        """Add one block; the address behind it."""
        size = _whole(block.get("size"), f"{at}['size']")
        # Old files have blocks one after the other, without addresses.
        address = _whole(block.get("address", expected), f"{at}['address']")
        state = block.get("state")
        if not isinstance(state, str) or state not in _STATE_CODES:
            raise ShapeError(f"{at}['state'] is {_kind(state)}, not one of {', '.join(STATES)}")
        requested = block.get("requested_size")
        frames = block.get("frames")
        history = block.get("history")
        if isinstance(history, list) and history and isinstance(history[0], dict):
            requested = history[0].get("real_size") if requested is None else requested
            frames = history[0].get("frames") if frames is None else frames
        columns["segment"].append(segment)
        columns["address"].append(address)
        columns["size"].append(size)
        columns["requested"].append(
            size if requested is None else _whole(requested, f"{at}['requested_size']")
        )
        columns["state"].append(_STATE_CODES[state])
        columns["stack"].append(self._stack(frames, at))
        return address + size

    def _read_annotations(self, listed: Any) -> None:
        for place, value in enumerate(self._list(listed, "external_annotations")):
            at = f"external_annotations[{place}]"
            one = _object(value, at)
            if not isinstance(one.get("name"), str) or "time_us" not in one:
                continue
            device = _whole(one.get("device", 0), f"{at}['device']", 1 << 15)
            annotation = Annotation(
                _whole(one["time_us"], f"{at}['time_us']"), one["name"][:200],
                one.get("stage") == "START",
            )  # fmt: skip
            self._file.annotations.setdefault(device, []).append(annotation)

    def _pool(self, value: Any) -> int:
        """The number of a pool that is named by a pair of numbers; -1 where none is named."""
        if isinstance(value, list):
            value = tuple(value)
        try:
            number = self._pools.get(value)
        except TypeError:
            number = None
        if number is None:
            if not isinstance(value, tuple) or len(value) != 2:
                raise ShapeError(f"a segment_pool_id is {_kind(value)}, not a pair of numbers")
            pair = (_whole(value[0], "segment_pool_id"), _whole(value[1], "segment_pool_id"))
            number = self._pools[pair] = len(self._file.pools)
            self._file.pools.append(pair)
        return number

    def _stacks(self, frames: list[Any], at: str) -> Array:
        known = self._stack_by_list
        return np.array(
            [
                found if (found := known.get(id(one))) is not None else self._stack(one, at)
                for one in frames
            ],
            dtype=np.int32,
        )

    def _stack(self, frames: Any, at: str) -> int:
        """The number of a list of frames, innermost first; -1 for none.

        The lists are alive as long as this reader, so their identities are theirs alone.
        """
        if not frames:
            return -1
        found = self._stack_by_list.get(id(frames))
        if found is not None:
            return found
        texts = [self._frame(frame, at) for frame in self._list(frames, f"{at}['frames']")]
        # Frames without a file are the interpreter's own, and would be most of the text.
        named = [text for text in texts if not text.startswith(" ")] or texts
        folded = ";".join(text.lstrip() for text in reversed(named))
        number = self._stack_by_text.setdefault(folded, len(self._file.stacks))
        if number == len(self._file.stacks):
            self._file.stacks.append(folded)
        self._stack_by_list[id(frames)] = number
        return number

    def _frame(self, frame: Any, at: str) -> str:
        """``file:line name``; without a file it begins with a space."""
        found = self._frames.get(id(frame))
        if found is None:
            parts = _object(frame, f"{at}['frames'][…]")
            name, file = _text(parts.get("name")), _text(parts.get("filename"))
            line = parts.get("line")
            place = "" if file in _NO_FILE else f"{file}:{line if type(line) is int else 0}"
            found = self._frames[id(frame)] = f"{place} {name}".replace(";", ":")
        return found


def _object(value: Any, at: str) -> dict[Any, Any]:
    if not isinstance(value, dict):
        raise ShapeError(f"{at} is {_kind(value)}, not an object")
    return value


def _whole(value: Any, at: str, above: int = 1 << 63) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < above:
        raise ShapeError(f"{at} is {_kind(value)}, not a whole number from 0 to {above - 1}")
    return value


def _numbers(values: list[Any], at: str, dtype: str = "u8") -> Array:
    """The numbers from 0 on in `values`."""
    if set(map(type, values)) <= {int}:
        try:
            found = np.array(values, dtype=np.int64)
            if not len(found) or int(found.min()) >= 0:
                return found.astype(dtype, copy=False)
        except OverflowError:
            pass
    for value in values:  # the one that is to blame
        _whole(value, at)
    raise ShapeError(f"{at} are not all whole numbers")


def _text(value: Any) -> str:
    return value[:300] if isinstance(value, str) else ""


def _kind(value: Any) -> str:
    if isinstance(value, str | bytes):
        return repr(value[:40])
    if isinstance(value, dict):
        return "an object"
    if isinstance(value, list | tuple):
        return "a list"
    if isinstance(value, int) and abs(value) >= 1 << 64:
        return "a huge number"
    return repr(value)[:40]
