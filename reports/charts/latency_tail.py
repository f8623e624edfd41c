"""The slow calls: the share of calls that took longer than a given time."""

from __future__ import annotations

from collections.abc import Sequence

from workbench.reports import histograms
from workbench.reports.cells import Cell
from workbench.reports.charts import Drawing
from workbench.reports.points import Floats

TITLE = "Slow calls (% of calls that took longer)"
ORDER = 40


def needs(cells: Sequence[Cell]) -> str | None:
    """Left out when nothing was timed."""
    return histograms.missing(cells)


def figure(cells: Sequence[Cell]) -> Drawing:
    """One panel per kind of call, both axes logarithmic."""
    return histograms.panels(
        histograms.measured(cells),
        curve=_longer,
        shape="hv",
        value_axis={
            "type": "log",
            "dtick": 1,
            "ticksuffix": " %",
            "title": {"text": "calls that took longer"},
        },
        hover="%{y:.3r} % took longer than %{x:.4s}s",
        key="Where a line crosses 1 % is that allocator's p99, where it crosses 0.1 % its p99.9.",
    )


def _longer(edges: Floats, below: Floats) -> tuple[Floats, Floats]:
    # The last edge has no call above it and no place on a logarithmic axis.
    some = below < 1
    return edges[some] * 1e-9, 100 * (1 - below[some])
