"""Pinned host memory in a snapshot: requests and frees, without segments to check."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import numpy.typing as npt

from workbench.recorders.importers._pairing import match
from workbench.recorders.importers._snapshot_file import Entries
from workbench.recorders.importers._snapshot_history import ALLOC, COMPLETED, REQUESTED
from workbench.recorders.importers._snapshot_trace import FIELDS

Array = npt.NDArray[Any]

DEVICE: Final = "pinned"


class HostRows:
    """Rows of pinned memory, as `DeviceRows` gives them.

    Args:
        entries: of the host; those that are not about blocks are left out.

    Attributes:
        columns: as of `DeviceRows`; all on stream 0, since the host has none.
        unmatched_frees: frees of what was allocated before the first entry: they are left out.
    """

    live = 0
    waits = 0
    labels: Final[list[str]] = []

    def __init__(self, entries: Entries) -> None:
        ends = REQUESTED if (entries.action == REQUESTED).any() else COMPLETED
        about = np.flatnonzero((entries.action == ALLOC) | (entries.action == ends))
        about = about[entries.size[about] > 0]
        is_alloc = entries.action[about] == ALLOC
        matched = match(is_alloc, entries.address[about])
        self.unmatched_frees = matched.unmatched_frees
        kept = about[matched.rows]
        none = np.full(len(kept), -1, dtype=np.int64)
        given: dict[str, Array] = {
            "order": 2 * kept,
            "event": np.where(is_alloc[matched.rows], ALLOC, REQUESTED),
            "owner": matched.ids,
            "size": entries.size[about[matched.origin]],
            "stream": np.zeros(len(kept)),
            "pool": np.zeros(len(kept)),
            "stack": entries.stack[kept],
        }
        self.columns = {name: given.get(name, none).astype(dtype) for name, dtype in FIELDS.items()}
        told = entries.time_us
        self.columns["time_us"] = kept if told is None else np.maximum.accumulate(told)[kept]
