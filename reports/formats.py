"""How text and numbers from files are written for people."""

from __future__ import annotations

import html
import unicodedata
from collections.abc import Mapping
from typing import Any

from workbench.common.units import format_bytes, format_duration

NOT_REPORTED = "not reported"
NOT_MEASURED = "-"
_LONGEST = 400


def clean(text: object, longest: int = _LONGEST) -> str:
    """`text` on one line without control and direction characters, cut in the middle if too long.

    Names come from files: a right-to-left mark could reorder the page, and a name of 10 kB would
    push everything else off it.
    """
    shown = "".join(
        " " if character.isspace() else character
        for character in str(text)
        if character.isspace() or unicodedata.category(character) not in ("Cc", "Cf", "Cs", "Co")
    ).strip()
    if len(shown) <= longest:
        return shown
    kept = (longest - 1) // 2
    return f"{shown[:kept]}…{shown[-kept:]}"


def markup(text: object, longest: int = _LONGEST) -> str:
    """`text` cleaned and escaped: safe between tags, inside quotes, and as text of a chart.

    Plotly reads a subset of HTML in every label, links included, and decodes entities.
    """
    return html.escape(clean(text, longest))


def count(value: float | None) -> str:
    """A whole number with thousands separated, as ``12,345``."""
    return NOT_REPORTED if value is None else f"{value:,.0f}"


def median_count(value: float) -> str:
    """A median of counts, which may be a half: ``0.5`` is not 0."""
    return f"{value:,.1f}".removesuffix(".0")


def size(value: float | None) -> str:
    """Bytes in binary units, as ``1.50 GiB``."""
    return NOT_REPORTED if value is None or value < 0 else format_bytes(value)


def duration(value: float | None) -> str:
    """Nanoseconds in the fitting unit, as ``3.50 ms``."""
    return NOT_REPORTED if value is None else _three_digits(format_duration(value))


def _three_digits(text: str) -> str:
    """``142.50 µs`` as ``142 µs``: more digits than a measurement has would mislead."""
    number, unit = text.split()
    digits = number.lstrip("-").partition(".")[0]
    places = 0 if unit == "ns" else max(3 - len(digits), 0)
    return f"{float(number):.{places}f} {unit}"


def share(value: float | None) -> str:
    """A share between 0 and 1 as a percentage, as ``12.5 %``."""
    return NOT_REPORTED if value is None else f"{100 * value:.1f} %"


def above(value: float | None, floor: float | None) -> str:
    """How far `value` lies above `floor`, as ``+12.5 %``; empty where there is nothing to say."""
    return "" if value is None or not floor else f"{100 * (value / floor - 1):+.1f} %"


def rate(value: float | None) -> str:
    """Events per second with three digits, as ``12.3 M/s``."""
    if value is None:
        return NOT_REPORTED
    for factor, unit in ((1e9, "G/s"), (1e6, "M/s"), (1e3, "k/s")):
        if value >= factor:
            return f"{value / factor:.3g} {unit}"
    return f"{value:.3g} /s"


def settings(values: Mapping[str, Any]) -> str:
    """Settings as PyTorch writes them, ``key:value,key:value``."""
    return ",".join(f"{key}:{value}" for key, value in values.items())
