"""Quantiles, histograms and intervals, against answers known beforehand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from workbench.commands import _health
from workbench.replay import machine
from workbench.replay.machine import describe_machine, noise_warnings, package_versions
from workbench.replay.statistics import (
    bucket_edges,
    histogram,
    interval,
    intervals,
    spread,
    summary_of_calls,
)

latencies = st.lists(st.floats(0, 1e12), min_size=1, max_size=200)


def test_quantiles_of_ten_thousand_calls() -> None:
    shuffled = np.random.default_rng(1).permutation(np.arange(1.0, 10_001.0))
    assert summary_of_calls(shuffled) == {
        "p50_ns": 5000,
        "p90_ns": 9000,
        "p99_ns": 9900,
        "p99_9_ns": 9990,
        "p99_99_ns": 9999,
        "max_ns": 10_000,
        "mean_ns": 5000.5,
    }


def test_one_call_is_all_its_quantiles() -> None:
    assert set(summary_of_calls(np.array([7.0])).values()) == {7.0}


@given(latencies)
def test_a_quantile_is_a_latency_that_occurred_and_covers_its_share(values: list[float]) -> None:
    calls = np.array(values)
    summary = summary_of_calls(calls)
    for name, share in (("p50_ns", 0.5), ("p99_ns", 0.99)):
        assert summary[name] in values
        assert (calls <= summary[name]).mean() >= share - 1e-9
        assert (calls < summary[name]).mean() < share
    assert summary["max_ns"] == max(values)


@given(latencies)
def test_every_call_is_in_the_bucket_that_covers_it(values: list[float]) -> None:
    numbers, counts = histogram(np.array(values))
    assert sum(counts) == len(values)
    for number, count in zip(numbers, counts, strict=True):
        low, high = bucket_edges(number)
        slack = 1e-9
        inside = [v for v in values if low * (1 - slack) <= v < high * (1 + slack)]
        assert len(inside) >= count


def test_buckets_touch_and_double_every_eight() -> None:
    assert bucket_edges(-1) == (0.0, 1.0)
    assert bucket_edges(0)[0] == 1.0
    assert bucket_edges(8)[0] == 2.0
    assert bucket_edges(80)[0] == 1024.0
    assert bucket_edges(3)[1] == bucket_edges(4)[0]


def test_the_interval_of_equal_samples_is_the_sample() -> None:
    found = interval([5.0] * 10, seed=1)
    assert found == {"median": 5.0, "low": 5.0, "high": 5.0, "samples": [5.0] * 10}


def test_one_process_has_no_interval() -> None:
    assert interval([5], seed=1) == {"median": 5.0, "low": None, "high": None, "samples": [5.0]}


def test_the_interval_covers_the_true_median_about_as_often_as_it_says() -> None:
    generator = np.random.default_rng(3)
    covered = 0
    for _ in range(200):
        found = interval(generator.normal(100, 10, size=15).tolist(), seed=0)
        covered += found["low"] <= 100 <= found["high"]
    assert 180 <= covered <= 200


@given(st.lists(st.floats(0, 1e9), min_size=2, max_size=20))
def test_the_interval_lies_within_the_samples_around_the_median(samples: list[float]) -> None:
    found = interval(samples, seed=0)
    assert min(samples) <= found["low"] <= found["median"] <= found["high"] <= max(samples)
    assert found == interval(samples, seed=0)
    assert found["samples"] == samples


def test_every_measured_number_gets_its_interval() -> None:
    found = intervals([{"a": 1, "b": 4}, {"a": 3, "b": 4}], seed=0)
    assert found["a"]["median"] == 2
    assert found["b"]["samples"] == [4, 4]


def test_spread_is_a_share_of_the_median() -> None:
    assert spread([90, 100, 120]) == pytest.approx(0.3)
    assert spread([0, 0]) == 0


def test_the_machine_is_described_in_full() -> None:
    machine = describe_machine()
    assert machine["cores"] >= 1
    assert machine["memory_bytes"] > 0
    assert {"cpu", "governor", "numa_nodes", "transparent_huge_pages", "kernel"} <= set(machine)
    assert {"python", "workbench", "numpy"} <= set(package_versions())
    assert "no-such-package" not in package_versions(("no-such-package",))


@pytest.mark.parametrize(
    ("load", "governor", "count"),
    [(0.1, None, 0), (0.1, "performance", 0), (1.5, None, 1), (1.5, "powersave", 2)],
)
def test_a_noisy_machine_is_named(load: float, governor: str | None, count: int) -> None:
    machine = {"load_average": load, "cores": 2, "governor": governor}
    assert len(noise_warnings(machine)) == count


@pytest.mark.parametrize(
    ("may", "status", "words"), [(True, "ok", "not bind"), (False, "note", "")]
)
def test_who_may_lock_any_memory_is_not_told_of_a_limit(
    may: bool, status: str, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "may_lock_any_memory", lambda: may)
    monkeypatch.setattr(_health.resource, "getrlimit", lambda which: (64 << 10, 64 << 10))
    found = _health._locked_memory()
    assert found.state == status
    assert "64.00 KiB" in found.found
    assert words in found.found
    assert may or "host-pinned on the backend host is unavailable" in found.meaning
