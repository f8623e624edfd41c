"""MiniMalloc's problems and plans: buffers with lifetimes and sizes, and offsets where planned."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from workbench.recorders.importers import Imported, Progress, Source
from workbench.recorders.importers._columns import MOST_BYTES, same, some, text, trace_columns
from workbench.recorders.importers._csv import Rows, header

Array = npt.NDArray[Any]

NAME = "minimalloc"
SUMMARY = "problem or plan of MiniMalloc (.csv)"

_MEANINGS: Final = {
    "id": "id",
    "buffer": "id",
    "buffer_id": "id",
    "lower": "lower",
    "begin": "lower",
    "start": "lower",
    "upper": "upper",
    "end": "end",  # inclusive
    "size": "size",
    "alignment": "alignment",
    "hint": "hint",
    "gaps": "gaps",
    "offset": "offset",
}
_DEVICE: Final = "cpu"
_LATEST: Final = 2**62


def recognises(head: bytes, path: Path) -> bool:
    """By the header line."""
    return _meanings(header(head)) is not None


def _meanings(names: list[str]) -> list[str] | None:
    """What each column means, where together they make a MiniMalloc file."""
    found = [_MEANINGS.get(name.lower(), name) for name in names]
    known = set(found)
    needed = {"id", "lower", "size"}
    if len(known) < len(found) or not needed <= known or not {"upper", "end"} & known:
        return None
    return found


def read(source: Source, progress: Progress | None) -> Imported:
    """An allocation at the lower end of each lifetime and a free at its upper end.

    Lifetimes are half-open: what ends at a time is freed before what begins then.
    """
    names = _meanings(header(source.head))
    if names is None:
        raise source.broken(
            "does not begin with a header such as id,lower,upper,size",
            "name the columns as MiniMalloc does",
        )
    rows = Rows(source, names, progress)
    wanted = [name for name in ("lower", "upper", "end", "size", "offset") if name in names]
    parts: dict[str, list[Array]] = {name: [] for name in wanted}
    ids: list[str] = []
    with_gaps = 0
    for batch in rows:
        for name in wanted:
            parts[name].append(_number(rows, batch, name))
        ids.extend(rows.names(batch, "id"))
        if "gaps" in names:
            with_gaps += sum(1 for gaps in batch.column("gaps").to_pylist() if gaps.strip())
    if not ids or rows.cut_short:
        raise source.broken("ends in the middle of a row" if rows.cut_short else "has no buffers")
    values = {name: np.concatenate(part) for name, part in parts.items()}
    upper = values["upper"] if "upper" in values else values["end"] + 1
    notes = [
        "The file names no device and no unit of time: taken as cpu, and as nanoseconds.",
    ]
    if with_gaps:
        notes.append(f"Gaps are not kept: {some(with_gaps, 'buffer')} with gaps count as in use.")
    left_out = [name for name in names if name in ("alignment", "hint")]
    left_out += [name for name in names if name not in _MEANINGS.values()]
    if left_out:
        notes.append(f"Columns that a trace has no place for: {', '.join(left_out)[:200]}.")
    return _imported(source, ids, values, upper, notes)


def _number(rows: Rows, batch: pa.RecordBatch, name: str) -> Array:
    value = rows.whole_numbers(batch, name)
    lowest, highest = (0, MOST_BYTES) if name in ("size", "offset") else (-_LATEST, _LATEST)
    rows.require(batch, name, (value >= lowest) & (value < highest))
    return value


def _imported(
    source: Source, ids: list[str], values: dict[str, Array], upper: Array, notes: list[str]
) -> Imported:
    lower, size = values["lower"], values["size"]
    backwards = np.flatnonzero(upper < lower)
    if len(backwards):
        row = int(backwards[0])
        raise source.broken(
            f"row {row:,} (counted from 0) ends at {upper[row]}, before it begins at {lower[row]}"
        )
    kept = np.flatnonzero((upper > lower) & (size > 0))
    if not len(kept):
        raise source.broken("has no buffer that takes memory at any time")
    empty = int(np.count_nonzero(upper == lower))
    if empty:
        notes.append(f"Left out: {some(empty, 'buffer')} with an empty lifetime.")
    # Frees before allocations of the same time; allocations of one time in the order of the file.
    count = len(kept)
    time = np.concatenate([lower[kept], upper[kept]])
    is_free = np.repeat([False, True], count)
    order = np.lexsort((np.tile(np.arange(count), 2), ~is_free, time))
    buffer, is_free, time = np.tile(np.arange(count), 2)[order], is_free[order], time[order]
    number = np.empty(count, np.int64)
    number[buffer[~is_free]] = np.arange(count)
    if time[0] < 0:
        notes.append(f"Times begin at {time[0]}: they are counted from there.")
        time = time - time[0]
    columns = trace_columns(
        time,
        text(is_free.astype(np.int32), ["alloc", "free"]),
        number[buffer],
        size[kept][buffer],
        same(2 * count, _DEVICE),
    )
    if "offset" in values:
        columns["offset"] = values["offset"][kept][buffer]
        columns["segment"] = np.zeros(2 * count, np.int32)
    columns["label"] = pa.array(
        [
            None if free else ids[row]
            for free, row in zip(is_free.tolist(), kept[buffer].tolist(), strict=True)
        ],
        pa.string(),
    )
    metadata = {
        "recorded": [_DEVICE],
        "zero_byte_allocs": int(np.count_nonzero((size == 0) & (upper > lower))),
    }
    return Imported(columns, metadata, notes=notes)
