"""Lanes: the parts that streams have of pools, numbered as the engine is told them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


class Lanes:
    """Numbers for pairs of stream and pool; of the default pool they are the streams' own.

    Args:
        streams: arrays of numbers of streams, 0 or above.
        pools: for each of them, the pools; 0 is the default one.

    Attributes:
        stream: int32, by lane; empty where all pools are the default one.
        pool: likewise.
    """

    def __init__(self, streams: Sequence[Array], pools: Sequence[Array]) -> None:
        self._first_private = 1 + max((int(one.max(initial=0)) for one in streams), default=0)
        pairs = [np.unique(self._pairs(*both)) for both in zip(streams, pools, strict=True)]
        every = np.unique(np.concatenate([np.zeros(0, dtype=np.int64), *pairs]))
        self._private = every[every >= self._first_private]
        of_default = np.arange(self._first_private if len(self._private) else 0)
        every = np.concatenate([of_default, self._private])
        self.stream: Array = (every % self._first_private).astype(np.int32)
        self.pool: Array = (every // self._first_private).astype(np.int32)

    def _pairs(self, stream: Array, pool: Array) -> Array:
        pairs: Array = pool.astype(np.int64) * self._first_private + stream
        return pairs

    def of(self, stream: Array, pool: Array) -> Array:
        """The lanes' numbers, int64, of pairs that the constructor was given."""
        pairs = self._pairs(stream, pool)
        private = self._first_private + np.searchsorted(self._private, pairs)
        lanes: Array = np.where(pairs < self._first_private, pairs, private)
        return lanes


def pool_names(kind: Array, private_pool: Array) -> Array:
    """What a pool is called in results: its kind, and which private pool it belongs to.

    Args:
        kind: texts, such as ``small`` and ``large``.
        private_pool: as many numbers of private pools; 0 for none.

    Returns:
        As many texts: ``small``, ``small of pool 3``.
    """
    names = kind.astype(object)
    for at in np.flatnonzero(private_pool):
        names[at] = f"{names[at]} of pool {private_pool[at]}".strip()
    return names
