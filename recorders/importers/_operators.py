"""Operators of a profile: which one a thread was in at a moment."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


class Operators:
    """Collects the spans of operators, then finds the innermost around given moments."""

    def __init__(self) -> None:
        self.names: dict[str, int] = {}
        self._rows: list[tuple[int, int, int, int]] = []  # thread, begin, end (ns), name
        self._pieces: list[Array] = []

    def add(self, thread: int, begin_ns: int, end_ns: int, name: str) -> None:
        """A span of one thread; spans of a thread are taken to be nested."""
        code = self.names.setdefault(name, len(self.names))
        self._rows.append((thread, begin_ns, end_ns, code))

    def flush(self) -> None:
        """Pack what was added: lists of numbers take ten times the memory."""
        if self._rows:
            self._pieces.append(np.array(self._rows, np.int64))
            self._rows.clear()

    def around(self, thread: Array, time_ns: Array) -> Array:
        """The name's code of the innermost span of `thread` around `time_ns`, -1 where none is.

        Args:
            thread, time_ns: shape (n,).

        Returns:
            Shape (n,), int64.
        """
        self.flush()
        found = np.full(len(time_ns), -1, np.int64)
        if not self._pieces or not len(time_ns):
            return found
        threads, begin, end, name = np.concatenate(self._pieces).T
        count = len(begin)
        spans = np.arange(count)
        asked = np.arange(len(time_ns))
        # Of one moment: ends, then begins (the longest first), questions, and the ends of spans
        # that began in it.
        order = np.lexsort(
            (
                np.concatenate([-end, np.zeros(count + len(asked), np.int64)]),
                np.concatenate(
                    [np.full(count, 1), np.where(end > begin, 0, 3), np.full(len(asked), 2)]
                ),
                np.concatenate([begin, end, time_ns]),
                np.concatenate([threads, threads, thread]),
            )
        )
        change = np.concatenate([np.ones(count), -np.ones(count), np.zeros(len(asked))])
        depth = np.cumsum(change.astype(np.int64)[order])
        # Spans and questions by thread and depth: the last span before a question is around it.
        which = np.concatenate([spans, np.full(count, -1), asked])[order]
        is_end = (order >= count) & (order < 2 * count)
        is_span, which, depth = (order < count)[~is_end], which[~is_end], depth[~is_end]
        owner = np.concatenate([threads, threads, thread])[order][~is_end]
        arranged = np.lexsort((np.arange(len(depth)), depth, owner))
        is_span, which = is_span[arranged], which[arranged]
        last = np.maximum.accumulate(np.where(is_span, np.arange(len(is_span)), -1))
        question = np.flatnonzero(~is_span & (last >= 0))
        span, asked = which[last[question]], which[question]
        inside = (
            (threads[span] == thread[asked])
            & (begin[span] <= time_ns[asked])
            & (time_ns[asked] <= end[span])
        )
        found[asked[inside]] = name[span[inside]]
        return found
