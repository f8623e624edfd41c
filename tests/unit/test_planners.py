"""Planners and plans: valid whatever the lifetimes, and as low on known instances as is known."""

from __future__ import annotations

import bisect
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from workbench.replay import _engine

Array = npt.NDArray[np.int64]
PLANNERS = [info["name"] for info in _engine.planners()]
DATA = Path(__file__).parents[1] / "data" / "plans"
# Ratios of height to lower bound: the planner and the most it may need.
MINIMALLOC = {"greedy": 2.37, "first-fit-by-size": 1.42, "skyline": 1.29, "squeaky-wheel": 1.15}
TORCH = {
    "torch_resnet_s1": {
        "greedy": 1.0497,
        "first-fit-by-size": 1.0091,
        "skyline": 1.001,
        "squeaky-wheel": 1.0,
    },
    "torch_gpt_s3": {"greedy": 1.0101, "first-fit-by-size": 1.0001, "skyline": 1.00001},
    "torch_lstm_steady1": {"greedy": 1.2478, "first-fit-by-size": 1.0012, "skyline": 1.00001},
    "torch_gptdyn_steady8": {"greedy": 1.006, "first-fit-by-size": 1.0001, "skyline": 1.00001},
}


def read(path: Path) -> tuple[Array, Array, Array]:
    """Lower and upper ends and sizes."""
    table = np.genfromtxt(path, delimiter=",", names=True, dtype=None, encoding="utf-8")
    lower, upper, size = (table[name].astype(np.int64) for name in ("lower", "upper", "size"))
    return lower, upper, size


def peak(lower: Array, upper: Array, size: Array) -> int:
    """The most alive at once; what ends at a time is gone before what begins then."""
    at, change = np.concatenate([lower, upper]), np.concatenate([size, -size])
    return int(np.cumsum(change[np.lexsort([change, at])]).max(initial=0))


def check(lower: Array, upper: Array, size: Array, offset: Array) -> None:
    """No two that are alive together share a byte."""
    ends = [(time, 0, place) for place, time in enumerate(upper.tolist())]
    begins = [(time, 1, place) for place, time in enumerate(lower.tolist())]
    live: list[tuple[int, int]] = []  # first byte, byte past the last; in order
    for _, begins_here, place in sorted(ends + begins):
        first = int(offset[place])
        range_ = (first, first + int(size[place]))
        at = bisect.bisect_left(live, range_)
        if not begins_here:
            del live[at]
            continue
        assert at == 0 or live[at - 1][1] <= first
        assert at == len(live) or range_[1] <= live[at][0]
        live.insert(at, range_)


def ratio(planner: str, lower: Array, upper: Array, size: Array) -> float:
    offset = _engine.plan_buffers(lower, upper, size, planner)
    assert offset is not None
    check(lower, upper, size, offset)
    return int((offset + size).max()) / peak(lower, upper, size)


def test_there_are_at_least_these() -> None:
    assert {"greedy", "first-fit-by-size", "skyline", "squeaky-wheel", "best"} <= set(PLANNERS)


@pytest.mark.parametrize("planner", MINIMALLOC)
@pytest.mark.parametrize("name", "ABCDEFGHIJK")
def test_tight_instances(planner: str, name: str) -> None:
    found = ratio(planner, *read(DATA / "minimalloc" / f"{name}.1048576.csv"))
    assert 1 <= found <= MINIMALLOC[planner]


@pytest.mark.parametrize("planner", sorted(PLANNERS))
@pytest.mark.parametrize("name", TORCH)
def test_training_steps(planner: str, name: str) -> None:
    lower, upper, size = read(DATA / f"{name}.csv")
    found = ratio(planner, lower, upper, (size + 63) // 64 * 64)
    assert 1 <= found <= TORCH[name].get(planner, min(TORCH[name].values()))


buffers = st.lists(
    st.tuples(st.integers(0, 40), st.integers(1, 30), st.integers(1, 5) | st.integers(1, 10**9)),
    min_size=1,
    max_size=60,
)


@pytest.mark.parametrize("planner", PLANNERS)
@settings(max_examples=150, deadline=None)
@given(drawn=buffers)
def test_every_plan_is_valid(planner: str, drawn: list[tuple[int, int, int]]) -> None:
    lower, length, size = np.array(drawn, dtype=np.int64).T
    assert ratio(planner, lower.copy(), lower + length, size.copy()) >= 1


lifetimes = st.lists(st.tuples(st.integers(1, 5000), st.integers(0, 30)), max_size=60)


@pytest.mark.parametrize("planner", PLANNERS)
@settings(max_examples=60, deadline=None)
@given(drawn=lifetimes, alignment=st.sampled_from([64, 256, 4096]))
def test_plans_of_lifetimes(planner: str, drawn: list[tuple[int, int]], alignment: int) -> None:
    count = len(drawn)
    size = np.array([one for one, _ in drawn], dtype=np.int64)
    end = np.array(
        [place + length if 0 < length <= count - place else -1 for place, (_, length) in
         enumerate(drawn)],
        dtype=np.int64,
    )  # fmt: skip
    plan = _engine.make_plan(size, end, planner, alignment)
    managed = plan.end >= 0
    assert ((plan.offset >= 0) == managed).all()
    assert (plan.offset[managed] % alignment == 0).all()
    lower = np.flatnonzero(managed)
    rounded = (size[managed] + alignment - 1) // alignment * alignment
    check(lower, end[managed], rounded, plan.offset[managed])
    assert plan.lower_bound == peak(lower, end[managed], rounded)
    assert plan.height == max((plan.offset[managed] + rounded).max(initial=0), 0)
    assert plan.height >= plan.lower_bound
    # What was planned can be given as columns, and moved onto another it cannot.
    again = _engine.Plan(plan.size, plan.end, plan.offset, alignment=alignment)
    assert (again.height, again.lower_bound) == (plan.height, plan.lower_bound)


def test_a_violated_plan_names_both_ids() -> None:
    size, end = np.array([100, 100, 100]), np.array([3, 2, 3])
    with pytest.raises(ValueError, match=r"id 0 .*id 2 .*overlap"):
        _engine.Plan(size, end, np.array([0, 128, 64]))
    with pytest.raises(ValueError, match="id 2 lies at offset 32, not a multiple of 64"):
        _engine.Plan(size, end, np.array([0, 128, 32]))
    with pytest.raises(ValueError, match="id 1 has a lifetime that ends at 1"):
        _engine.Plan(size, np.array([3, 1, 3]), np.array([0, 128, 128]))
    with pytest.raises(ValueError, match="differ in length"):
        _engine.Plan(size, end, np.array([0, 128]))


def test_wrong_values_are_refused() -> None:
    size, end = np.array([100]), np.array([1])
    with pytest.raises(ValueError, match="unknown planner 'gredy'; there are best, first-fit"):
        _engine.make_plan(size, end, "gredy")
    for alignment in (0, 32, 96, 8192):
        with pytest.raises(ValueError, match="not a power of two from 64 to 4096"):
            _engine.make_plan(size, end, alignment=alignment)
    with pytest.raises(ValueError, match="id 0 has a size of 0 bytes"):
        _engine.make_plan(np.array([0]), end)
