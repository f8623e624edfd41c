"""What a recorded CUDA caching allocator did on one device, entry by entry.

A trace says what a program asked for; a history also says how the allocator answered, with
addresses, so that a replay can be held against it. Importers make histories, they are checked
while a file is imported, and only the verdict is kept.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

ACTIONS: Final = (
    "alloc",
    "free_requested",
    "free_completed",
    "segment_alloc",
    "segment_free",
    "segment_map",
    "segment_unmap",
    "oom",
)
"""Names of entries; an entry's code is its place here."""

STATES: Final = ("inactive", "active_allocated", "active_pending_free")
"""States of a block; a state's code is its place here."""

SIZE_NOT_TOLD: Final = 0


@dataclass(frozen=True)
class State:
    """Segments and blocks at one moment; addresses and sizes in bytes.

    Args:
        segments: columns of equal length: ``address`` (uint64), ``size`` (int64), ``stream``,
            ``pool`` (int32), ``is_small``, ``is_expandable`` (bool), in order of addresses. A
            piece of an expandable segment that has memory counts as a segment here.
        blocks: columns of equal length: ``address`` (uint64), ``size`` (int64, `SIZE_NOT_TOLD`
            where it is not known), ``requested`` (int64), ``state`` (uint8, code of `STATES`), in
            order of addresses. Blocks that are not listed are free.
    """

    segments: dict[str, Array]
    blocks: dict[str, Array]

    @property
    def reserved(self) -> int:
        """Bytes of all segments."""
        return int(self.segments["size"].sum(dtype=np.int64))


@dataclass(frozen=True)
class History:
    """The entries of one device, in the order in which the allocator wrote them.

    Args:
        device: its name in the trace, such as ``cuda:0``.
        action: uint8, codes of `ACTIONS`.
        address: uint64; of an ``oom``, the device's free bytes.
        size: int64, bytes: as requested for ``alloc``, ``free_*`` and ``oom``, which files tell
            rounded (rounding it again changes nothing); of the segment, or of the piece of one,
            for the others.
        stream: int32, numbers of streams in the order of the pointers that stand for them; 0 is
            the default stream.
        pool: int32, numbers of private pools; 0 is the default pool.
        before: the state before the first entry.
        after: the state after the last.
        settings: of the allocator, in the syntax of ``PYTORCH_ALLOC_CONF``.
        settings_told: whether the file has them; else they are the defaults.
        rules: rule sets of the allocator worth trying, the likeliest first.
        assumed: what the file does not tell, or tells in a way that is not understood, a sentence
            each: facts of the verdict.
        place: int64, the entries' places in the file where it holds others between them.
    """

    device: str
    action: Array
    address: Array
    size: Array
    stream: Array
    pool: Array
    before: State
    after: State
    settings: str
    settings_told: bool
    rules: tuple[str, ...] = ("2.13", "address-order")
    assumed: tuple[str, ...] = ()
    place: Array | None = None

    def entry_in_file(self, entry: int) -> int:
        """Where the entry stands in its file."""
        return entry if self.place is None else int(self.place[entry])
