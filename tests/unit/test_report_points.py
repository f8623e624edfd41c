"""Lines are thinned out without losing an extreme."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from workbench.reports.points import envelope

SIZES = arrays(np.float64, st.integers(1, 60), elements=st.integers(0, 2**40).map(float))


@settings(max_examples=50, deadline=None)
@given(low=SIZES, extra=st.integers(0, 2**20), most=st.integers(4, 140))
def test_extremes_and_the_budget_are_kept(low: np.ndarray, extra: int, most: int) -> None:
    high = low + extra
    time = np.arange(len(low), dtype=np.float64)
    times, values = envelope(time, low, high, most)
    assert len(times) == len(values) <= most
    assert values.min() == low.min()
    assert values.max() == high.max()
    assert (np.diff(times) >= 0).all()
    assert times[0] == 0


def test_every_merged_bucket_keeps_its_own_extremes() -> None:
    values = np.random.default_rng(0).integers(0, 2**40, 1000).astype(np.float64)
    times, line = envelope(np.arange(1000.0), values, values, 100)
    for first in range(0, 1000, 20):
        bucket = line[(times >= first) & (times < first + 20)]
        assert bucket.min() == values[first : first + 20].min()
        assert bucket.max() == values[first : first + 20].max()


def test_a_value_that_stays_takes_two_points() -> None:
    times, values = envelope(np.arange(500.0), np.full(500, 7.0), np.full(500, 7.0), 1000)
    assert values.tolist() == [7.0, 7.0]
    assert times.tolist() == [0.0, 499.0]


def test_what_is_not_reported_is_left_out() -> None:
    unknown = np.array([-1.0, np.nan, -1.0])
    times, values = envelope(np.arange(3.0), unknown, unknown, 10)
    assert len(times) == len(values) == 0
