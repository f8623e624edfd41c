"""Quantiles of one pass, histograms, and intervals over processes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

QUANTILES = {"p50_ns": 0.5, "p90_ns": 0.9, "p99_ns": 0.99, "p99_9_ns": 0.999, "p99_99_ns": 0.9999}
BUCKETS_PER_OCTAVE = 8
_RESAMPLES = 2000


def summary_of_calls(nanoseconds: npt.NDArray[np.float64]) -> dict[str, float]:
    """Quantiles, maximum and mean of the single calls of one pass.

    A quantile is a latency that really occurred: the smallest that at least that share of the
    calls did not exceed. So p99.99 of fewer than 10,000 calls is their maximum.

    Args:
        nanoseconds: one latency for each call; at least one.
    """
    ordered = np.sort(nanoseconds)
    count = len(ordered)
    summary = {
        name: float(ordered[max(math.ceil(share * count - 1e-9) - 1, 0)])
        for name, share in QUANTILES.items()
    }
    return {**summary, "max_ns": float(ordered[-1]), "mean_ns": float(ordered.mean())}


def histogram(nanoseconds: npt.NDArray[np.float64]) -> tuple[list[int], list[int]]:
    """Numbers of the occupied logarithmic buckets, and how many calls fell into each."""
    # Below one nanosecond no clock tells calls apart: bucket -1 holds them all.
    logs = np.log2(np.maximum(nanoseconds, 2.0 ** (-0.5 / BUCKETS_PER_OCTAVE)))
    buckets = np.floor(logs * BUCKETS_PER_OCTAVE).astype(np.int64)
    numbers, counts = np.unique(buckets, return_counts=True)
    return numbers.tolist(), counts.tolist()


def bucket_edges(bucket: int) -> tuple[float, float]:
    """The half-open range of nanoseconds that bucket number `bucket` covers."""
    if bucket < 0:
        return 0.0, 1.0
    return 2.0 ** (bucket / BUCKETS_PER_OCTAVE), 2.0 ** ((bucket + 1) / BUCKETS_PER_OCTAVE)


def interval(samples: Sequence[float], seed: int) -> dict[str, Any]:
    """The median over processes with its bootstrap percentile interval.

    Args:
        samples: one number from each process; at least one. None is ever dropped.
        seed: of the resampling, so that the same samples give the same interval.

    Returns:
        ``median``; ``low`` and ``high``, the 95 % interval, None with fewer than two samples;
        ``samples`` as given.
    """
    values = np.asarray(samples, dtype=np.float64)
    low = high = None
    if len(values) > 1:
        generator = np.random.default_rng(seed)
        chosen = generator.integers(0, len(values), size=(_RESAMPLES, len(values)))
        medians = np.median(values[chosen], axis=1)
        low, high = (float(bound) for bound in np.percentile(medians, [2.5, 97.5]))
    return {
        "median": float(np.median(values)),
        "low": low,
        "high": high,
        "samples": [float(value) for value in values],
    }


def intervals(rows: Sequence[Mapping[str, float]], seed: int) -> dict[str, dict[str, Any]]:
    """`interval` of every key, each row being what one process measured."""
    return {key: interval([row[key] for row in rows], seed) for key in rows[0]}


def spread(samples: Sequence[float]) -> float:
    """How far processes differ: (largest - smallest) / median."""
    middle = float(np.median(samples))
    return (max(samples) - min(samples)) / middle if middle else 0.0
