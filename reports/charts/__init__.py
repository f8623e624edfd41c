"""The charts of the page: one file each, found by being in this folder.

A chart is a module with four names::

    TITLE: str                                     # heading; says the unit
    ORDER: int                                     # place on the page, unique
    def needs(cells: Sequence[Cell]) -> str | None # why it is left out, as a sentence, or None
    def figure(cells: Sequence[Cell]) -> Drawing   # called only when `needs` gives None

Text from files goes into a figure through `formats.markup`, because Plotly reads HTML in labels.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib import import_module
from pkgutil import iter_modules
from typing import Any, Protocol, cast

from workbench.common.errors import WorkbenchError
from workbench.reports.cells import Cell


@dataclass(frozen=True)
class Drawing:
    """A chart ready for the page.

    Attributes:
        figure: a Plotly figure, ``{"data": [...], "layout": {...}}``; arrays may be numpy arrays,
            colours of text, grid and background are left to the page, which knows light from dark.
        words: what the chart shows, in sentences with numbers, for those who cannot see it.
        height: in CSS pixels.
        key: how to read the marks, one sentence shown above the chart.
        choices: values of `meta` of the figure's traces, of which the page shows one at a time and
            lets the reader choose; the first at first. Empty: all traces are shown.
    """

    figure: dict[str, Any]
    words: str
    height: int
    key: str
    choices: tuple[str, ...] = ()


class Chart(Protocol):
    """What a module in this folder offers."""

    __name__: str
    TITLE: str
    ORDER: int

    def needs(self, cells: Sequence[Cell]) -> str | None:
        """Why the chart is left out, as a sentence; None if it can be drawn."""

    def figure(self, cells: Sequence[Cell]) -> Drawing:
        """The chart of `cells`."""


def discover(path: Iterable[str] = __path__, package: str = __name__) -> list[Chart]:
    """All charts in the order of the page.

    Raises:
        WorkbenchError: a chart lacks a part, or two share a title or a place.
    """
    charts: list[Chart] = []
    for found in sorted(iter_modules(path), key=lambda module: module.name):
        module = import_module(f"{package}.{found.name}")
        for part in ("TITLE", "ORDER", "needs", "figure"):
            if not hasattr(module, part):
                raise WorkbenchError(f"{module.__file__}: a chart needs {part}; add it there")
        charts.append(cast(Chart, module))
    for part in ("TITLE", "ORDER"):
        owners: dict[object, str] = {}
        for chart in charts:
            value = getattr(chart, part)
            if value in owners:
                raise WorkbenchError(
                    f"the charts {owners[value]} and {chart.__name__} have the same {part} "
                    f"{value!r}; change one"
                )
            owners[value] = chart.__name__
    return sorted(charts, key=lambda chart: chart.ORDER)
