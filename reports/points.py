"""Fewer points with the same extremes."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

# All lines of the page together. 60,000 points take about 1.3 MB of the page's 8 MB and are drawn
# in well under a second.
POINTS_PER_PAGE = 60_000


def envelope(time: Floats, low: Floats, high: Floats, most: int) -> tuple[Floats, Floats]:
    """A line through the smallest and the largest value of each bucket, in at most `most` points.

    Neighbouring buckets are merged until the line is short enough. The smallest and largest value
    of every merged bucket stay, so every extreme of the data is an extreme of the line.

    Args:
        time: start of each bucket, non-decreasing, shape (n,), any unit.
        low: smallest value in each bucket, shape (n,); NaN or below zero where not reported.
        high: largest value in each bucket, shape (n,), likewise.
        most: points allowed, at least 4.

    Returns:
        Times and values of the line, the same length each, empty if nothing was reported. A value
        holds until the next time.
    """
    known = (low >= 0) & (high >= 0)
    time, low, high = time[known], low[known], high[known]
    if not len(time):
        return time, low
    merged = -(-len(time) // (most // 2))
    starts = np.arange(0, len(time), merged)
    ends = np.minimum(starts + merged, len(time))
    low, high = np.minimum.reduceat(low, starts), np.maximum.reduceat(high, starts)
    # Which extreme came first is not known: the one nearer to the bucket before is the likelier.
    before = np.concatenate([[low[0]], (low[:-1] + high[:-1]) / 2])
    rising = np.abs(low - before) <= np.abs(high - before)
    start, end = time[starts], time[np.minimum(ends, len(time) - 1)]
    times = np.stack([start, (start + end) / 2], axis=1).ravel()
    values = np.stack([np.where(rising, low, high), np.where(rising, high, low)], axis=1).ravel()
    # A value that repeats its predecessor adds nothing to a line of steps; the last point does.
    changes = np.ones(len(values), bool)
    changes[1:] = values[1:] != values[:-1]
    changes[-1] = True
    return times[changes], values[changes]
