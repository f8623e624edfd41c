"""From a trace to what the engine replays: columns of numbers, and files that workers map."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from workbench.common.errors import BrokenFileError
from workbench.replay import _engine
from workbench.replay.lanes import Lanes

Array = npt.NDArray[Any]
_UNKNOWN = 255
_REFUSED = 254  # an `oom`: a request that the recorded allocator could not serve
# Per column of the trace: the type it is kept in. Text columns are kept as codes.
_NUMBERS = {
    "time_ns": "i8",
    "id": "i8",
    "size": "i8",
    "stream": "i4",
    "thread": "i4",
    "pool": "i4",
    "step": "i4",
}
_TEXTS = {"event": "u1", "device": "i4", "phase": "i4", "scope": "i4"}
COLUMNS = [*_NUMBERS, *_TEXTS]
ENGINE_COLUMNS = {
    "op": "u1",
    "slot": "i4",
    "size": "i8",
    "stream": "i4",
    "thread": "i4",
    "step": "i4",
    "value": "i8",
}
LANE_COLUMNS = {"lane_stream": "i4", "lane_pool": "i4"}
# The operations whose `value` the engine is told.
_CUDA_EVENTS = ("event_record", "event_wait")
_OF_POOLS = ("pool_begin", "pool_end", "pool_release")
_VALUED = (*_CUDA_EVENTS, *_OF_POOLS, "set_fraction")
# As the engine's kMostStreams and kMostPools.
_MOST_STREAMS = 1 << 16
_MOST_POOLS = 1 << 16
WHOLE_FRACTION = 1_000_000
"""The `value` of a `set_fraction` that is the whole device."""


class _Codes:
    """Numbers for texts, in order of their first appearance; -1 for null."""

    def __init__(self) -> None:
        self.texts: list[str] = []
        self._number: dict[str, int] = {}

    def of(self, column: Any) -> Array:
        """Codes of an Arrow column of text, dictionary-encoded or not."""
        import pyarrow as pa

        if not pa.types.is_dictionary(column.type):
            column = column.dictionary_encode()
        texts = column.dictionary.to_pylist()
        for text in texts:
            if text not in self._number:
                self._number[text] = len(self.texts)
                self.texts.append(text)
        # One more at the end, which -1 finds: the code of null.
        codes = np.array([*(self._number[text] for text in texts), -1], dtype=np.int64)
        indices = column.indices.fill_null(-1).to_numpy(zero_copy_only=False)
        found: Array = codes[indices.astype(np.int64)]
        return found


@dataclass(frozen=True)
class Traffic:
    """The events of one device of one trace, as the engine takes them; arrays are equally long.

    Args:
        op: operation codes of the engine.
        slot: where each event's allocation is kept while it lives, 0 … `slot_count` - 1, or -1.
        size: bytes.
        stream: stream numbers; of allocations numbers of lanes, where there are some.
        thread: thread numbers.
        row: the event's row in the trace file.
        ids: allocation ids.
        time_ns: since recording started.
        step: optimizer steps completed.
        phase: codes into `phases`; -1 for none.
        scope: codes into `scopes`; -1 for none.
        fingerprint: digest of what is replayed; equal for equal traffic.
        peak_live_bytes: the greatest sum of live requested bytes.
        value: of `event_record` and `event_wait` the number of the CUDA event, from 0 without gaps;
            of `set_fraction` millionths of the device; of `pool_begin`, `pool_end` and
            `pool_release` the private pool's number; else 0. None where there are no such events.
        lane_stream: by lane, a stream's part of a pool, the stream; None, as `lane_pool`, where no
            private pool serves an allocation.
        lane_pool: by lane, the number of its pool; 0 is the default one.
    """

    op: Array
    slot: Array
    slot_count: int
    size: Array
    stream: Array
    thread: Array
    row: Array
    ids: Array
    time_ns: Array
    step: Array
    phase: Array
    scope: Array
    phases: list[str]
    scopes: list[str]
    fingerprint: str
    peak_live_bytes: int
    value: Array | None = None
    lane_stream: Array | None = None
    lane_pool: Array | None = None

    @property
    def thread_count(self) -> int:
        """How many threads it was recorded of."""
        return len(np.unique(self.thread))

    def engine_columns(self) -> dict[str, Array]:
        """The columns that the engine takes, by their names in `_engine.Events`."""
        return {
            name: np.ascontiguousarray(getattr(self, name), dtype=dtype)
            for name, dtype in {**ENGINE_COLUMNS, **LANE_COLUMNS}.items()
            if getattr(self, name) is not None
        }

    def events(self) -> _engine.Events:
        """The engine's view of them."""
        return _engine.Events(**self.engine_columns(), slot_count=self.slot_count)

    def save(self, folder: Path) -> None:
        """Write what workers need as ``.npy`` files into `folder`."""
        for name, column in self.engine_columns().items():
            np.save(folder / f"{name}.npy", column)


@dataclass(frozen=True)
class LoadedTrace:
    """One trace file, read and checked.

    Args:
        path: as given by the user; for a folder, the file in it.
        metadata: the JSON in the file.
        columns: the columns in `COLUMNS`, texts as codes.
        texts: for each text column, the texts by code.
        rows: number of rows.
    """

    path: str
    metadata: dict[str, Any]
    columns: dict[str, Array]
    texts: dict[str, list[str]]
    rows: int

    @property
    def bytes_by_device(self) -> dict[str, int]:
        """Bytes allocated over the whole trace, by device."""
        made = np.isin(self.columns["event"], [_engine.OPS["alloc"], _engine.OPS["live"]])
        devices = self.columns["device"][made]
        sizes = self.columns["size"][made]
        return {
            name: int(sizes[devices == code].sum(dtype=np.int64))
            for code, name in enumerate(self.texts["device"])
            if (devices == code).any()
        }

    @property
    def duration_ns(self) -> int:
        """From the first row to the last."""
        times = self.columns["time_ns"]
        return int(times[-1] - times[0]) if self.rows else 0

    @property
    def step_count(self) -> int:
        """Optimizer steps completed while recording; 0 where none was seen."""
        return max(int(self.columns["step"].max()), 0) if self.rows else 0

    def refused(self, device: str) -> Array:
        """The rows of `device` at which the recorded program ran out of memory."""
        code = self.texts["device"].index(device) if device in self.texts["device"] else -2
        found = (self.columns["device"] == code) & (self.columns["event"] == _REFUSED)
        rows: Array = np.flatnonzero(found)
        return rows

    def _check_streams(self, op: Array, lanes: Array, row: Array) -> None:
        """The engine keeps an entry for each number of a stream up to the highest."""
        wrong = (lanes >= _MOST_STREAMS) | ((lanes < 0) & ~_of_all_streams(op))
        if wrong.any():
            first = int(np.flatnonzero(wrong)[0])
            raise BrokenFileError(
                self.path,
                f"row {row[first]} has stream {self.columns['stream'][row[first]]}, and streams "
                f"that can be replayed have numbers from 0 to {_MOST_STREAMS - 1}, those of "
                "private pools counted behind the others",
                "record it again",
            )

    def _check_pools(self, pool: Array, row: Array) -> None:
        wrong = np.flatnonzero((pool < 0) | (pool > _MOST_POOLS))
        if wrong.size:
            raise BrokenFileError(
                self.path,
                f"row {row[wrong[0]]} has pool {pool[wrong[0]]}, and pools that can be replayed "
                f"have numbers from 0 to {_MOST_POOLS}",
                "record it again",
            )

    def traffic(self, device: str) -> Traffic:
        """The events of `device` that the engine knows.

        What the recorded allocator could not serve is asked for again. All but the last of those
        requests are freed at once: the program went on without them.
        """
        code = self.texts["device"].index(device) if device in self.texts["device"] else -2
        chosen = (self.columns["device"] == code) & (self.columns["event"] < _REFUSED)
        asked = self.refused(device)
        # Freed at once: two events of one row.
        row = np.sort(np.concatenate([np.flatnonzero(chosen), asked, asked[:-1]]))
        part = {name: column[row] for name, column in self.columns.items()}
        op = part["event"]
        again = np.flatnonzero(op == _REFUSED)
        if again.size:
            allocs = np.append(True, row[again][1:] != row[again][:-1])
            op[again] = np.where(allocs, _engine.OPS["alloc"], _engine.OPS["free"])
            part["id"][again] = int(self.columns["id"].max()) + np.cumsum(allocs)
        self._check_streams(op, part["stream"], row)
        self._check_pools(part["pool"], row)
        part["stream"], lanes = _lanes(op, part["stream"], part["pool"])
        self._check_streams(op, part["stream"], row)
        try:
            slot, slot_count = _engine.assign_slots(op, part["id"])
            value = _values(op, part.get("value"))
        except ValueError as error:
            raise BrokenFileError(self.path, str(error), "record it again") from None
        digest = blake2b(digest_size=16)
        digest.update(device.encode())
        told = (op, slot, part["size"], part["stream"], part["thread"], value)
        for column in (*told, *((lanes.stream, lanes.pool) if lanes else ())):
            if column is not None:
                digest.update(np.ascontiguousarray(column).data)
        return Traffic(
            op=op,
            slot=slot,
            slot_count=int(slot_count),
            size=part["size"],
            stream=part["stream"],
            thread=part["thread"],
            row=row,
            ids=part["id"],
            time_ns=part["time_ns"],
            step=part["step"],
            phase=part["phase"],
            scope=part["scope"],
            phases=self.texts["phase"],
            scopes=self.texts["scope"],
            fingerprint=digest.hexdigest(),
            peak_live_bytes=_peak_live(op, part["size"]),
            value=value,
            lane_stream=lanes.stream if lanes else None,
            lane_pool=lanes.pool if lanes else None,
        )


def _of_all_streams(op: Array) -> Array:
    found: Array = np.isin(op, [_engine.OPS[name] for name in ("synchronize", "set_fraction")])
    return found


def _lanes(op: Array, stream: Array, pool: Array) -> tuple[Array, Lanes | None]:
    """Streams, with lanes in place of those of allocations, and the lanes; None where none is."""
    made = np.isin(op, [_engine.OPS["alloc"], _engine.OPS["live"]])
    if not pool.any() or not pool[made].any():
        return stream, None
    lanes = Lanes([stream[made]], [pool[made]])
    numbers = stream.copy()
    numbers[made] = lanes.of(stream[made], pool[made])
    return numbers, lanes


def _values(op: Array, value: Array | None) -> Array | None:
    """What the engine is told of `value`; None where no event has one that it looks at."""
    if value is None or not np.isin(op, [_engine.OPS[name] for name in _VALUED]).any():
        return None
    fractions = value[op == _engine.OPS["set_fraction"]]
    if fractions.max(initial=0) > WHOLE_FRACTION:
        raise ValueError(
            f"set_fraction has a value of {fractions.max()}, above {WHOLE_FRACTION} millionths"
        )
    of_pools = np.isin(op, [_engine.OPS[name] for name in _OF_POOLS])
    pools = value[of_pools]
    if len(pools) and not 0 < pools.min() <= pools.max() <= _MOST_POOLS:
        raise ValueError(
            f"pool_begin, pool_end and pool_release name private pools {pools.min()} to "
            f"{pools.max()}, outside 1 to {_MOST_POOLS}"
        )
    cuda_events = np.isin(op, [_engine.OPS[name] for name in _CUDA_EVENTS])
    told: Array = np.where(of_pools | (op == _engine.OPS["set_fraction"]), value, 0)
    told[cuda_events] = np.unique(value[cuda_events], return_inverse=True)[1]
    return told


def _peak_live(op: Array, size: Array) -> int:
    made = np.isin(op, [_engine.OPS["alloc"], _engine.OPS["live"]])
    signed = np.where(made, size, 0) - np.where(op == _engine.OPS["free"], size, 0)
    return max(int(np.cumsum(signed, dtype=np.int64).max()), 0) if len(op) else 0


def load_trace(path: str, progress: Callable[[int, int], None] | None = None) -> list[LoadedTrace]:
    """Read and check the trace at `path`.

    Args:
        path: a file, a folder with a file for each rank, or a URL.
        progress: called with rows read and rows in all.

    Returns:
        One for each file.

    Raises:
        BrokenFileError: not a trace, or one that breaks a rule of the format.
    """
    from workbench.recorders.trace import open_trace

    trace = open_trace(path)
    total = sum(part.rows for part in trace.files)
    loaded = []
    before = 0
    for part in trace.files:
        columns = {
            name: np.empty(part.rows, dtype=dtype) for name, dtype in {**_NUMBERS, **_TEXTS}.items()
        }
        codes = {name: _Codes() for name in _TEXTS}
        at = 0
        valued, of_pools = ([_engine.OPS[op] for op in ops] for ops in (_VALUED, _OF_POOLS))
        for batch in part.batches(columns=[*COLUMNS, "value"], check=True):
            end = at + batch.num_rows
            for name in _NUMBERS:
                columns[name][at:end] = batch.column(name).to_numpy(zero_copy_only=False)
            for name in _TEXTS:
                numbers = codes[name].of(batch.column(name))
                if name == "event":
                    numbers = _ops(codes["event"].texts)[numbers]
                columns[name][at:end] = numbers
            looked_at = np.isin(columns["event"][at:end], valued)
            if looked_at.any():
                # Few traces have such events: the others spare the memory.
                column = columns.setdefault("value", np.zeros(part.rows, dtype="i8"))
                column[at:end] = batch.column("value").fill_null(-1).to_numpy(zero_copy_only=False)
                # An event of a private pool may name it as an allocation does.
                named = np.isin(columns["event"][at:end], of_pools) & (column[at:end] < 0)
                pools = columns["pool"][at:end][named]
                column[at:end][named] = np.where(pools > 0, pools, -1)
                # One that does not say which CUDA event or pool it means says nothing.
                columns["event"][at:end][looked_at & (column[at:end] < 0)] = _UNKNOWN
            at = end
            if progress is not None:
                progress(before + at, total)
        before += at
        texts = {name: code.texts for name, code in codes.items()}
        loaded.append(LoadedTrace(str(part.path), dict(part.metadata), columns, texts, at))
    return loaded


def _ops(events: list[str]) -> Array:
    codes = {**_engine.OPS, "oom": _REFUSED}
    return np.array([codes.get(event, _UNKNOWN) for event in events], dtype=np.uint8)
