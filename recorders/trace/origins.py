"""When the entries of a history were written, and from where in the program they came."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy.typing as npt

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Origins:
    """Times and stacks of a `History`, beside its columns.

    Args:
        time_us: int64, microseconds, one for each entry.
        stack: int32, one for each entry: a place in `stacks`, or -1.
        segment_stack: int32, of the segments of the state after the last entry, likewise.
        block_stack: int32, of the blocks of that state, likewise.
        stacks: folded, as in the trace format: frames from the outermost on, parted by ``;``, a
            frame being ``FILE:LINE NAME`` or a name alone.
        annotations: name, whether it begins, and microseconds, in order of time.
    """

    time_us: Array
    stack: Array
    segment_stack: Array
    block_stack: Array
    stacks: list[str]
    annotations: list[tuple[str, bool, int]]
