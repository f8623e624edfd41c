"""Numbers and text as the page writes them."""

from __future__ import annotations

import pytest

from workbench.reports import formats


@pytest.mark.parametrize(
    ("nanoseconds", "text"),
    [(0, "0 ns"), (42.4, "42 ns"), (1500, "1.50 µs"), (142_500, "142 µs"), (6.2e9, "6.20 s")],
)
def test_a_duration_has_three_digits(nanoseconds: float, text: str) -> None:
    assert formats.duration(nanoseconds) == text


def test_what_is_missing_says_so() -> None:
    for write in (formats.size, formats.duration, formats.count, formats.share, formats.rate):
        assert write(None) == "not reported"


@pytest.mark.parametrize(
    ("per_second", "text"),
    [(22_000_000, "22 M/s"), (1_234_567, "1.23 M/s"), (999, "999 /s"), (2.5e9, "2.5 G/s")],
)
def test_a_rate_has_three_digits(per_second: float, text: str) -> None:
    assert formats.rate(per_second) == text


def test_the_distance_to_a_floor() -> None:
    assert formats.above(112, 100) == "+12.0 %"
    assert formats.above(100, 100) == "+0.0 %"
    assert formats.above(None, 100) == ""
    assert formats.above(100, 0) == ""


def test_text_from_files_cannot_reorder_or_flood_the_page() -> None:
    assert formats.clean("a\u202eb\x00c\nd") == "abc d"
    long = formats.clean("x" * 10_000 + "end")
    assert len(long) <= 400
    assert long.endswith("end")


def test_markup_is_inert_between_tags_and_in_quotes() -> None:
    assert formats.markup("""<script>'"&""") == "&lt;script&gt;&#x27;&quot;&amp;"


def test_settings_are_written_as_pytorch_writes_them() -> None:
    assert formats.settings({"a": True, "b": 128}) == "a:True,b:128"
