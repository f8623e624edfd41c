"""What a search makes small, as users write it."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from workbench.common.errors import UsageError
from workbench.replay.objective import MEASURES, Objective
from workbench.replay.search import Outcome


def outcome(reserved: int, retries: int = 0, calls: int = 10) -> Outcome:
    return Outcome("ok", peaks={"reserved": reserved}, retries=retries, device_calls=calls)


@pytest.mark.parametrize("name", MEASURES)
def test_a_measure_alone_is_an_objective(name: str) -> None:
    assert Objective.parse(name).weights == ((name, 1.0),)


def test_a_weighted_sum_is_in_shares_of_the_default_and_of_the_weights() -> None:
    objective = Objective.parse(" 3*peak_reserved + 1 * device_calls ")
    default = outcome(1000, calls=10)
    assert objective.value(default, default) == 1
    assert objective.value(outcome(500, calls=20), default) == 0.75 * 0.5 + 0.25 * 2


def test_what_is_0_with_the_default_counts_as_it_is() -> None:
    objective = Objective.parse("retries")
    default = outcome(1000)
    assert objective.value(default, default) == 0
    assert objective.value(outcome(1000, retries=3), default) == 3


@pytest.mark.parametrize(
    "text",
    [
        *("", "+", "peak", "peak_reserved+", "2*", "*peak_reserved", "2*2*peak_reserved"),
        *("-1*peak_reserved", "1e3*peak_reserved", "nan*retries", "inf*retries", "1_0*retries"),
        *("peak_reserved-retries", "peak_reserved*2", "retries+retries", "0*retries"),
        *("0.0*retries", "__import__('os').system('true')", "(retries)", "retries if 1 else 0"),
        *("0.9*peak_reserved+0.1*nothing", "9999999999*retries", "²*retries", "retries\0"),
    ],
)
def test_everything_else_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match=r"--objective .* (measure|weight)"):
        Objective.parse(text)


@given(st.text("0123456789.*+-_ ()peak_reservdtilcn", max_size=40))
@example("1*" * 1000 + "retries")
def test_any_text_is_a_sum_of_measures_or_refused(text: str) -> None:
    try:
        weights = Objective.parse(text).weights
    except UsageError:
        return
    assert weights
    assert all(name in MEASURES and 0 < weight < 1e9 + 1 for name, weight in weights)
