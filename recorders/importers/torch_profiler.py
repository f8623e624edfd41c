"""PyTorch's profiler: the Chrome trace of ``torch.profiler`` with ``profile_memory=True``."""

from __future__ import annotations

import datetime
import re
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np
import numpy.typing as npt

from workbench.common.errors import BrokenFileError
from workbench.recorders._native import JsonEvents
from workbench.recorders.importers import Imported, Progress, Source
from workbench.recorders.importers._columns import (
    MOST_BYTES,
    counted_notes,
    log_columns,
    text,
)
from workbench.recorders.importers._operators import Operators
from workbench.recorders.importers._pairing import distinct_keys

Array = npt.NDArray[Any]

NAME = "torch-profiler"
SUMMARY = "Chrome trace of torch.profiler with profile_memory=True (.json, .json.gz)"

_PIECE: Final = 2**22
_MEMORY: Final = "[memory]"
_DEVICES: Final = {0: "cpu", 1: "cuda", 6: "hip", 12: "xpu", 20: "privateuseone"}  # c10::DeviceType
_HOST: Final = 0
_LATEST_US: Final = 9e15  # in nanoseconds still below 2^63
_REMEDY: Final = "export it again with prof.export_chrome_trace"


def recognises(head: bytes, path: Path) -> bool:
    """An object that begins as Kineto's do, or names its list of events early."""
    return head.lstrip().startswith(b"{") and any(
        name in head for name in (b'"traceEvents"', b'"schemaVersion"', b'"deviceProperties"')
    )


class _Arguments(msgspec.Struct):
    address: int | str = msgspec.field(name="Addr")
    bytes: int = msgspec.field(name="Bytes")
    device_type: int = msgspec.field(name="Device Type")
    device_id: int = msgspec.field(default=-1, name="Device Id")
    order: int = msgspec.field(default=0, name="Ev Idx")


class _Event(msgspec.Struct):
    name: str = ""
    cat: str = ""
    ph: str = ""
    ts: float | None = None
    dur: float | None = None
    pid: int | str | None = None
    tid: int | str | None = None
    args: msgspec.Raw = msgspec.Raw(b"")


class _Header(msgspec.Struct):
    base: int | None = msgspec.field(default=None, name="baseTimeNanoseconds")


_EVENTS: Final = msgspec.json.Decoder(list[_Event])
_ONE_BY_ONE: Final = msgspec.json.Decoder(list[msgspec.Raw])
_EVENT: Final = msgspec.json.Decoder(_Event)
_ARGUMENTS: Final = msgspec.json.Decoder(_Arguments)


class _Log:
    """What was found so far, in columns."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._rows: list[tuple[int, ...]] = []
        self._pieces = [np.zeros((0, 6), np.int64)]
        self._addresses: list[int] = []
        self._address_pieces = [np.zeros(0, np.uint64)]
        self.threads: dict[tuple[Any, Any], int] = {}
        self.processes: dict[Any, int] = {}
        self.devices: dict[tuple[int, int], int] = {}
        self.operators = Operators()

    def add(self, events: bytes, at: int) -> None:
        """The events of a JSON list that begins at byte `at` of the file."""
        try:
            found = _EVENTS.decode(events)
        except msgspec.ValidationError:
            found = self._those_that_fit(events, at)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise self._source.broken(
                f"is not JSON somewhere after byte {at:,}", _REMEDY
            ) from error
        for event in found:
            if event.name == _MEMORY:
                self._memory(event)
            elif event.cat == "cpu_op" and event.ph == "X":
                begin, length = _nanoseconds(event.ts), _nanoseconds(event.dur)
                if begin is not None and length is not None and length >= 0:
                    self.operators.add(self._thread(event), begin, begin + length, event.name)
        self._flush()

    def _those_that_fit(self, events: bytes, at: int) -> list[_Event]:
        """All events but those of other tools that look unlike PyTorch's."""
        found = []
        for one in _ONE_BY_ONE.decode(events):
            try:
                found.append(_EVENT.decode(one))
            except msgspec.ValidationError as error:
                if _MEMORY.encode() in bytes(one):
                    raise self._source.broken(
                        f"has a memory event somewhere after byte {at:,} that cannot be used "
                        f"({_reason(error)})",
                        _REMEDY,
                    ) from error
            except UnicodeDecodeError as error:
                raise self._source.broken(
                    f"is not UTF-8 somewhere after byte {at:,}", _REMEDY
                ) from error
        return found

    def _thread(self, event: _Event) -> int:
        return self.threads.setdefault((event.pid, event.tid), len(self.threads))

    def _memory(self, event: _Event) -> None:
        time = _nanoseconds(event.ts)
        if not event.args:
            raise self._bad(event, "its args are missing")
        try:
            about = _ARGUMENTS.decode(event.args)
            address = about.address
            if isinstance(address, str):
                address = int(address, 0)
        except (msgspec.MsgspecError, ValueError) as error:
            raise self._bad(event, _reason(error)) from error
        if time is None:
            raise self._bad(event, "its time is missing or out of range")
        if not -MOST_BYTES < about.bytes < MOST_BYTES:
            raise self._bad(event, "its bytes are out of range")
        if not -(2**63) <= address < 2**64:
            raise self._bad(event, "its address is out of range")
        if not (abs(about.device_type) < 2**15 and abs(about.device_id) < 2**15):
            raise self._bad(event, "its device is out of range")
        if not abs(about.order) < 2**62:
            raise self._bad(event, "its Ev Idx is out of range")
        device = (about.device_type, about.device_id)
        self._rows.append(
            (
                time,
                about.order,
                about.bytes,
                self.devices.setdefault(device, len(self.devices)),
                self._thread(event),
                self.processes.setdefault(event.pid, len(self.processes)),
            )
        )
        self._addresses.append(address % 2**64)

    def _bad(self, event: _Event, problem: str) -> BrokenFileError:
        number = sum(map(len, self._pieces)) + len(self._rows)
        return self._source.broken(
            f"memory event {number:,} (counted from 0, at {event.ts} µs) cannot be used: {problem}",
            _REMEDY,
        )

    def _flush(self) -> None:
        self.operators.flush()
        if self._rows:
            self._pieces.append(np.array(self._rows, np.int64))
            self._address_pieces.append(np.array(self._addresses, np.uint64))
            self._rows.clear()
            self._addresses.clear()

    def columns(self) -> tuple[Array, Array]:
        """Memory events in order of time, as columns (6, n) in the order of `_memory`; addresses.

        What happened in one moment is in the order in which PyTorch numbered it.
        """
        rows, addresses = np.concatenate(self._pieces), np.concatenate(self._address_pieces)
        order = np.lexsort((rows[:, 1], rows[:, 0]))
        return rows[order].T, addresses[order]


def _reason(error: Exception) -> str:
    """What does not fit, of what msgspec says in words of its own."""
    missing = re.search("missing required field `([^`]+)`", str(error))
    wrong = re.search(r"at `\$\.([^`]+)`", str(error))
    if missing:
        return f"its {missing[1]} is missing"
    if wrong:
        return f"its {wrong[1]} is not of the right kind"
    if isinstance(error, msgspec.MsgspecError):
        return "its args are not an object"
    return "its Addr is not a number"


def _nanoseconds(microseconds: float | None) -> int | None:
    if microseconds is None or not abs(microseconds) < _LATEST_US:
        return None
    return round(microseconds * 1000)


def read(source: Source, progress: Progress | None) -> Imported:
    """Every ``[memory]`` event, with the operator around it."""
    log, header = _scan(source, progress)
    (time, _, change, device, thread, process), address = log.columns()
    if not len(time):
        raise source.broken(
            "holds no memory events",
            "profile with torch.profiler.profile(profile_memory=True) and export it again",
        )
    names = [_device_name(*key) for key in log.devices]
    operator = log.operators.around(thread, time)
    # Numbered anew, so that 0 is a thread that asked for memory.
    kept, first, thread = np.unique(thread, return_index=True, return_inverse=True)
    rank = np.argsort(np.argsort(first))
    ids = list(log.threads)
    columns, rows, counts = log_columns(
        change > 0,
        np.zeros(len(change), np.bool_),
        distinct_keys(address, device, process),
        time - time[0],
        np.abs(change),
        (device, names),
        thread=rank[thread].astype(np.int32),
    )
    if len(log.operators.names):
        columns["scope"] = text(operator[rows], list(log.operators.names))
    threads = {
        str(rank[place]): ids[old][1] for place, old in enumerate(kept) if type(ids[old][1]) is int
    }
    rounded = sorted({name for (kind, _), name in zip(log.devices, names, strict=True) if kind})
    wall = (header.base or 0) + int(time[0])
    metadata = {
        "recorded": sorted(set(names)),
        "scopes": ["op"] if "scope" in columns else [],
        "threads": threads,
        "rounded_sizes": rounded,
        "start_wall_clock": _wall_clock(wall),
        "unmatched_frees": counts["unmatched_frees"],
        "reused_addresses": counts["reused_addresses"],
        "zero_byte_allocs": counts["zero_byte_allocs"],
    }
    if len(log.processes) == 1 and type(next(iter(log.processes))) is int:
        metadata["process_id"] = next(iter(log.processes))
    return Imported(columns, metadata, notes=_notes(rounded, log, counts))


def _scan(source: Source, progress: Progress | None) -> tuple[_Log, _Header]:
    log = _Log(source)
    cutter = JsonEvents()
    try:
        with source.open(progress) as file:
            while piece := file.read(_PIECE):
                events = cutter.feed(piece)
                if len(events) > 2:
                    log.add(events, cutter.events_at)
        outside = cutter.finish()
    except ValueError as error:
        raise source.broken(str(error), _REMEDY) from error
    try:
        return log, msgspec.json.decode(outside, type=_Header)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise source.broken(
            "is not JSON as the profiler writes it, outside of its events", _REMEDY
        ) from error


def _device_name(kind: int, number: int) -> str:
    if kind == _HOST:
        return "cpu"
    return f"{_DEVICES.get(kind, f'type{kind}')}:{max(number, 0)}"


def _wall_clock(nanoseconds: int) -> str | None:
    """The date, where the number can be one: older profiles count from the machine's start."""
    if not 1e18 < nanoseconds < 4e18:
        return None
    return datetime.datetime.fromtimestamp(nanoseconds / 1e9, datetime.UTC).isoformat()


def _notes(rounded: list[str], log: _Log, counts: dict[str, int]) -> list[str]:
    notes = ["The profiler tells no streams: everything is on stream 0."]
    if rounded:
        notes.append(
            f"Sizes on {', '.join(rounded)} are those of blocks, already rounded up by the "
            "allocator: what the program asked for was less."
        )
    if len(log.processes) > 1:
        notes.append(f"The file holds {len(log.processes)} processes; they are taken as one.")
    return notes + counted_notes(counts)
