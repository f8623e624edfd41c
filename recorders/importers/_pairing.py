"""Which free ends which allocation, where a log knows them by address only.

Whole columns at a time: logs hold millions of rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Bools = npt.NDArray[np.bool_]
Addresses = npt.NDArray[np.uint64]
Places = npt.NDArray[np.int64]


def pair_by_address(is_alloc: Bools, address: Addresses) -> Places:
    """The partner of each row, where rows are in the order in which they happened.

    A free ends the last allocation at its address, unless that has ended already. An allocation
    over one that is still live leaves the earlier one live (`reused_allocs` says which).

    Args:
        is_alloc: whether the row is an allocation; else it is a free. Shape (n,).
        address: shape (n,).

    Returns:
        Shape (n,): of a free, the row of the allocation it ends, -1 where there is none; of an
        allocation, the row of its free, -1 where it stays live.
    """
    partner = np.full(len(address), -1, np.int64)
    order, next_is_same = _by_address(address)
    allocs = is_alloc[order]
    ended = np.flatnonzero(next_is_same & allocs[:-1] & ~allocs[1:])
    begin, end = order[ended], order[ended + 1]
    partner[begin] = end
    partner[end] = begin
    return partner


def reused_allocs(is_alloc: Bools, address: Addresses) -> Places:
    """The allocations whose address was allocated again before it was freed, in order."""
    order, next_is_same = _by_address(address)
    allocs = is_alloc[order]
    return np.sort(order[np.flatnonzero(next_is_same & allocs[:-1] & allocs[1:])])


def _by_address(address: Addresses) -> tuple[Places, Bools]:
    """Rows in order of address, then of time; whether the next row has the same address."""
    order = np.argsort(address, kind="stable")
    arranged = address[order]
    return order, arranged[1:] == arranged[:-1]


def distinct_keys(*columns: npt.NDArray[Any]) -> Addresses:
    """One number for each row, equal where all `columns` are: an address within a device, say."""
    key = np.zeros(len(columns[0]), np.int64)
    for column in columns:
        found, code = np.unique(column, return_inverse=True)
        key = np.unique(key * len(found) + code, return_inverse=True)[1]
    return key.astype(np.uint64)


@dataclass(frozen=True)
class Matched:
    """Rows that go into a trace.

    Attributes:
        rows: which rows do, in order: all but frees without an allocation.
        ids: of each of them, the number of its allocation, in order of allocation.
        origin: of each of them, the row of its allocation.
        unmatched_frees: how many frees were left out.
        reused: how many allocations stay live because their address was allocated again.
    """

    rows: Places
    ids: Places
    origin: Places
    unmatched_frees: int
    reused: int


def match(is_alloc: Bools, address: Addresses) -> Matched:
    """Pair the rows and number the allocations."""
    partner = pair_by_address(is_alloc, address)
    rows = np.flatnonzero(is_alloc | (partner >= 0))
    origin = np.where(is_alloc, np.arange(len(partner)), partner)[rows]
    number = np.cumsum(is_alloc) - 1
    return Matched(
        rows=rows,
        ids=number[origin],
        origin=origin,
        unmatched_frees=len(partner) - len(rows),
        reused=len(reused_allocs(is_alloc, address)),
    )
