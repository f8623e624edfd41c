"""How long calls took: the share of calls in every twentieth of a decade."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from workbench.reports import histograms
from workbench.reports.cells import Cell
from workbench.reports.charts import Drawing
from workbench.reports.points import Floats

TITLE = "Latency of calls (% of calls)"
ORDER = 30

_BINS_PER_DECADE = 20


def needs(cells: Sequence[Cell]) -> str | None:
    """Left out when nothing was timed."""
    return histograms.missing(cells)


def figure(cells: Sequence[Cell]) -> Drawing:
    """One panel per kind of call, one line per cell, one state at a time."""
    return histograms.panels(
        histograms.measured(cells),
        curve=_shares,
        shape="hvh",
        value_axis={"title": {"text": "% of calls"}, "rangemode": "tozero"},
        hover="%{y:.2f} % of calls<br>near %{x:.4s}s",
        key="One line per allocator; a peak further left is faster. "
        "The axis is logarithmic, in twentieths of a decade.",
    )


def _shares(edges: Floats, below: Floats) -> tuple[Floats, Floats]:
    first = np.floor(np.log10(edges[0]) * _BINS_PER_DECADE)
    last = np.ceil(np.log10(edges[-1]) * _BINS_PER_DECADE)
    grid = 10 ** (np.arange(first, last + 1) / _BINS_PER_DECADE)
    shares = np.diff(np.interp(np.log10(grid), np.log10(edges), below))
    middles = np.sqrt(grid[:-1] * grid[1:])
    return middles * 1e-9, 100 * shares
