"""RMM's log of a memory resource: ``rmm.enable_logging``, or a ``logging_resource_adaptor``."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from workbench.recorders.importers import Imported, Progress, Source
from workbench.recorders.importers._columns import MOST_BYTES, counted_notes, log_columns, some
from workbench.recorders.importers._csv import Rows, header

Array = npt.NDArray[Any]

NAME = "rmm"
SUMMARY = "log of RAPIDS RMM (.csv; rmm.enable_logging)"

_COLUMNS: Final = ["Thread", "Time", "Action", "Pointer", "Size", "Stream"]
_ACTIONS: Final = {"allocate": 0, "free": 1, "deallocate": 1, "allocate failure": 2}
_DEVICE: Final = re.compile(r"\.dev(\d{1,4})\.")
_CLOCK: Final = (
    r"^(?P<h>[01]?[0-9]|2[0-3]):(?P<m>[0-5][0-9]):(?P<s>[0-5][0-9]|60)"
    r"(?:[.:](?P<f>[0-9]{1,9}))?$"
)
_EPOCH: Final = r"^(?P<s>[0-9]{1,10})(?:[.](?P<f>[0-9]{1,9}))?$"
_POINTER: Final = r"^(\(nil\)|0x[0-9a-fA-F]{1,16}|[0-9a-fA-F]{1,16})$"
_DAY_NS: Final = 86_400 * 10**9
# The same stream by two names: 0, and cudaStreamLegacy.
_DEFAULT_STREAMS: Final = (0, 1)


def recognises(head: bytes, path: Path) -> bool:
    """By the header line."""
    return _named(header(head)) == _COLUMNS


def _named(names: list[str]) -> list[str]:
    return [name.capitalize() for name in names]


def read(source: Source, progress: Progress | None) -> Imported:
    """Every row, in the order of the file: RMM logs a free before it happens, an allocation after.

    So a reused address always shows its free first, whatever the clocks of threads say.
    """
    if _named(header(source.head)) != _COLUMNS:
        raise source.broken(
            f"does not begin with the header {','.join(_COLUMNS)}", "name a log that RMM wrote"
        )
    rows = Rows(source, _COLUMNS, progress)
    found: dict[str, list[Array]] = {name: [] for name in _COLUMNS}
    for batch in rows:
        for name, column in _columns(rows, batch).items():
            found[name].append(column)
    if not found["Time"]:
        what = "whole row, and ends in the middle of its first one" if rows.cut_short else "row"
        raise source.broken(f"holds no {what}", "run the program for longer")
    thread, time, action, pointer, size, stream = (np.concatenate(found[name]) for name in _COLUMNS)
    notes: list[str] = []
    nowhere = int(np.count_nonzero((action == 0) & (pointer == 0) & (size > 0)))
    if nowhere:
        notes.append(
            f"{some(nowhere, 'allocation')} of more than 0 bytes at the null pointer, as from a "
            "failing resource: counted as made."
        )
    time = _rising(time, notes)
    streams = _numbered(stream, notes)
    threads, first, thread = np.unique(thread, return_index=True, return_inverse=True)
    rank = np.argsort(np.argsort(first)).astype(np.int32)
    device = _device(source.path, notes)
    columns, _, counts = log_columns(
        action == 0,
        action == 2,
        pointer,
        time,
        size,
        (np.zeros(len(time), np.int32), [device]),
        thread=rank[thread],
        stream=streams[0],
    )
    metadata: dict[str, Any] = {
        "recorded": [device],
        "threads": {str(rank[place]): int(name) for place, name in enumerate(threads)},
        "streams": streams[1],
        "unmatched_frees": counts["unmatched_frees"],
        "reused_addresses": counts["reused_addresses"],
        "zero_byte_allocs": counts["zero_byte_allocs"],
    }
    if rows.cut_short:
        metadata |= {"complete": False, "lost_reason": "the log ends in the middle of a row"}
    return Imported(columns, metadata, notes=notes + counted_notes(counts))


def _columns(rows: Rows, batch: pa.RecordBatch) -> dict[str, Array]:
    action = pc.index_in(
        pc.utf8_lower(pc.utf8_trim_whitespace(batch.column("Action"))), pa.array(list(_ACTIONS))
    )
    rows.require(batch, "Action", action.is_valid())
    size = rows.whole_numbers(batch, "Size")
    rows.require(batch, "Size", (size >= 0) & (size < MOST_BYTES))
    return {
        "Thread": rows.whole_numbers(batch, "Thread"),
        "Time": _nanoseconds(rows, batch),
        "Action": np.array(list(_ACTIONS.values()), np.int8)[np.asarray(action)],
        "Pointer": _hexadecimal(rows, batch, "Pointer"),
        "Size": size,
        "Stream": _hexadecimal(rows, batch, "Stream"),
    }


def _nanoseconds(rows: Rows, batch: pa.RecordBatch) -> Array:
    """Times of a day, or since 1970: whichever the first row has."""
    column = pc.utf8_trim_whitespace(batch.column("Time"))
    is_clock = ":" in (column[0].as_py() if len(column) else "")
    parts = pc.extract_regex(column, _CLOCK if is_clock else _EPOCH)
    rows.require(batch, "Time", parts.is_valid())

    def number(name: str) -> Array:
        text = pc.struct_field(parts, name)
        return np.asarray(pc.if_else(pc.equal(text, ""), "0", text).cast(pa.int64()))

    fraction = pc.utf8_rpad(pc.struct_field(parts, "f"), 9, "0")
    seconds = number("s")
    if is_clock:
        seconds = seconds + 60 * number("m") + 3600 * number("h")
    return np.asarray(seconds * 10**9 + np.asarray(fraction.cast(pa.int64())))


def _hexadecimal(rows: Rows, batch: pa.RecordBatch, name: str) -> npt.NDArray[np.uint64]:
    """A column of pointers: with or without 0x; ``(nil)`` is 0."""
    column = pc.utf8_trim_whitespace(batch.column(name))
    rows.require(batch, name, pc.match_substring_regex(column, _POINTER))
    column = pc.replace_substring(column, "(nil)", "0")
    column = pc.utf8_lpad(pc.replace_substring_regex(column, "^0x", ""), 16, "0")
    letters = np.frombuffer("".join(column.to_pylist()).encode(), np.uint8).reshape(-1, 16)
    digits = np.where(letters < 58, letters - 48, (letters | 32) - 87).astype(np.uint64)
    value = np.zeros(len(digits), np.uint64)
    for place in range(16):
        value = value << np.uint64(4) | digits[:, place]
    return value


def _rising(time: Array, notes: list[str]) -> Array:
    """Times from the first on, that never go back: over midnight, and between threads."""
    if time.max() < _DAY_NS:  # times of a day
        days = np.cumsum(np.diff(time, prepend=time[0]) < -_DAY_NS // 2)
        if days[-1]:
            notes.append(f"The log runs over {some(int(days[-1]), 'midnight')}.")
        time = time + days * _DAY_NS
    risen = np.maximum.accumulate(time)
    late = int(np.count_nonzero(risen != time))
    if late:
        notes.append(
            f"{some(late, 'row')} with an earlier time than a row before: given that row's time, "
            "because the order of the file is the order of the allocator."
        )
    return np.asarray(risen - risen[0])


def _numbered(stream: npt.NDArray[np.uint64], notes: list[str]) -> tuple[Array, dict[str, Any]]:
    """Numbers of streams in order of first use, 0 for the default one, and the table of them."""
    pointers, first, code = np.unique(stream, return_index=True, return_inverse=True)
    others = [place for place in np.argsort(first) if int(pointers[place]) not in _DEFAULT_STREAMS]
    numbers = np.zeros(len(pointers), np.int32)
    numbers[others] = np.arange(1, len(others) + 1)
    table = {str(numbers[place]): {"pointer": hex(int(pointers[place]))} for place in others}
    if len(others) > 0:
        notes.append("RMM's log does not say when work on a stream was done: frees count at once.")
    return numbers[code], table


def _device(path: Path, notes: list[str]) -> str:
    named = _DEVICE.search(path.name)
    if named:
        return f"cuda:{int(named[1])}"
    notes.append("The name of the file has no device in it (as in log.dev0.csv): taken as cuda:0.")
    return "cuda:0"
