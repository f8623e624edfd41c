"""Columns of a trace from what importers find."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from workbench.common.words import some as some
from workbench.recorders.importers._pairing import match

Array = npt.NDArray[Any]

MOST_BYTES: Final = 2**62
"""A size at or above is refused: no trace may have more bytes live."""


def text(codes: Array, names: Sequence[str]) -> pa.DictionaryArray:
    """A text column: the names that `codes` number; null where a code is negative."""
    return pa.DictionaryArray.from_arrays(
        pa.array(codes.astype(np.int32), mask=codes < 0), pa.array(names, pa.string())
    )


def same(rows: int, name: str) -> pa.DictionaryArray:
    """A text column of one name."""
    return text(np.zeros(rows, np.int32), [name])


def trace_columns(
    time_ns: Array, event: pa.DictionaryArray, ids: Array, size: Array, device: pa.DictionaryArray
) -> dict[str, Any]:
    """The columns that every trace has, with stream, thread, pool and step as where unknown."""
    rows = len(time_ns)
    zeros = np.zeros(rows, np.int32)
    return {
        "time_ns": time_ns,
        "event": event,
        "id": ids,
        "size": size,
        "device": device,
        "stream": zeros,
        "thread": zeros,
        "pool": zeros,
        "step": np.full(rows, -1, np.int32),
        "phase": same(rows, "other"),
    }


def log_columns(
    is_alloc: npt.NDArray[np.bool_],
    is_refused: npt.NDArray[np.bool_],
    address: npt.NDArray[np.uint64],
    time_ns: Array,
    size: Array,
    device: tuple[Array, Sequence[str]],
    **others: Array,
) -> tuple[dict[str, Any], Array, dict[str, int]]:
    """Columns from a log of allocations, frees and refused requests by address.

    Args:
        is_alloc, is_refused: what each row is; neither: a free.
        address: one number for what can be live once only (`distinct_keys` for several devices).
        time_ns: rising.
        size: bytes; of a free, its allocation's is taken.
        device: codes and their names; of a free, its allocation's is taken.
        others: further columns, such as ``thread``.

    Returns:
        The columns; the rows that are in them; counts as in the metadata, and ``sizes_differ``,
        frees whose own size was another.
    """
    # Requests of 0 bytes make no row; their frees, of a null pointer mostly, are not missed.
    counted = np.flatnonzero(~is_refused & (size != 0))
    matched = match(is_alloc[counted], address[counted])
    kept = counted[matched.rows]
    rows = np.sort(np.concatenate([kept, np.flatnonzero(is_refused)]))
    place = np.searchsorted(rows, kept)
    ids = np.full(len(rows), -1, np.int64)
    ids[place] = matched.ids
    origin = rows.copy()
    origin[place] = counted[matched.origin]
    codes, names = device
    event = np.where(is_alloc[rows], 0, np.where(is_refused[rows], 2, 1))
    columns = trace_columns(
        time_ns[rows],
        text(event, ["alloc", "free", "oom"]),
        ids,
        size[origin],
        text(codes[origin], names),
    )
    columns |= {name: column[rows] for name, column in others.items()}
    counts = {
        "unmatched_frees": matched.unmatched_frees,
        "reused_addresses": matched.reused,
        "zero_byte_allocs": int(np.count_nonzero(is_alloc & (size == 0))),
        "sizes_differ": int(np.count_nonzero(size[rows] != size[origin])),
    }
    return columns, rows, counts


def counted_notes(counts: dict[str, int]) -> list[str]:
    """Sentences about what `log_columns` counted and `wb info` does not warn of itself."""
    notes = []
    if counts["sizes_differ"]:
        notes.append(
            f"{some(counts['sizes_differ'], 'free')} with another size than the allocation's, "
            "which was taken."
        )
    if counts["zero_byte_allocs"]:
        notes.append(f"Left out: {some(counts['zero_byte_allocs'], 'request')} of 0 bytes.")
    return notes
