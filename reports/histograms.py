"""Histograms of latency as curves and panels, for the charts that share them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from workbench.reports import formats
from workbench.reports.cells import Cell, by_trace
from workbench.reports.charts import Drawing
from workbench.reports.points import Floats

# The state shown first is the one a training program is in after its first steps.
STATES = ("steady", "cold")
_KINDS = ("alloc", "free")


def measured(cells: Sequence[Cell]) -> list[Cell]:
    """The cells with a histogram of latency."""
    return [cell for cell in cells if len(cell.latency)]


def missing(cells: Sequence[Cell]) -> str | None:
    """The sentence for a page on which nothing was timed; None if something was."""
    return None if measured(cells) else "No call was timed in these results."


def states_of(cells: Sequence[Cell]) -> list[str]:
    """The states timed in any of the cells, steady first."""
    found = {str(state) for cell in cells for state in cell.latency["state"].unique()}
    return [state for state in STATES if state in found]


def kinds_of(cells: Sequence[Cell]) -> list[str]:
    """The kinds of call timed in any of the cells, allocations first."""
    found = {str(kind) for cell in cells for kind in cell.latency["kind"].unique()}
    return [k for k in _KINDS if k in found] + sorted(found.difference(_KINDS))


def cumulative(cell: Cell, state: str, kind: str) -> tuple[Floats, Floats]:
    """Edges in nanoseconds and the share of calls below each, shape (n,) both; empty if untimed."""
    frame = cell.latency
    rows = frame[(frame["state"] == state) & (frame["kind"] == kind) & (frame["count"] > 0)]
    if not len(rows):
        return np.empty(0), np.empty(0)
    buckets = rows.groupby(["bucket_low_ns", "bucket_high_ns"], observed=True)["count"].sum()
    low = buckets.index.get_level_values(0).to_numpy(np.float64)
    high = buckets.index.get_level_values(1).to_numpy(np.float64)
    below = np.cumsum(buckets.to_numpy(np.float64))
    # An empty stretch between two buckets keeps its own edges, so nothing is spread over it.
    edges = np.stack([low, high], axis=1).ravel()
    shares = np.stack([np.concatenate([[0.0], below[:-1]]), below], axis=1).ravel() / below[-1]
    return np.maximum(edges, 1.0), shares


def label(cell: Cell) -> str:
    """The cell's label in a chart of latency: it says whose latency it is."""
    return f"{cell.chart_label} · {formats.markup(cell.latency_source or 'not priced')}"


def panels(
    cells: Sequence[Cell],
    *,
    curve: Callable[[Floats, Floats], tuple[Floats, Floats]],
    shape: str,
    value_axis: dict[str, Any],
    hover: str,
    key: str,
) -> Drawing:
    """Panels of one curve per cell over a logarithmic axis of time.

    Args:
        cells: the cells with a histogram.
        curve: from edges (ns) and the share of calls below each, to the line's seconds and values.
        shape: of the line between points, as Plotly names it.
        value_axis: Plotly's settings of the axis of values.
        hover: Plotly's template of the text at a point.
        key: how to read the chart.
    """
    several = len(by_trace(cells)) > 1
    states, kinds = states_of(cells), kinds_of(cells)
    data: list[dict[str, Any]] = []
    layout: dict[str, Any] = {
        "margin": {"l": 56, "r": 16, "t": 24, "b": 96},
        "hovermode": "closest",
        "legend": {"orientation": "h", "y": 0, "yref": "container", "yanchor": "bottom"},
        "annotations": [],
    }
    for row, kind in enumerate(kinds):
        axis = "" if row == 0 else str(row + 1)
        last = row == len(kinds) - 1
        height = 1 / len(kinds)
        top = 1 - row * height
        layout[f"xaxis{axis}"] = {
            "type": "log",
            "anchor": f"y{axis}",
            "exponentformat": "SI",
            "minexponent": 0,
            "ticksuffix": "s",
            "dtick": 1,
            "title": {"text": "time of one call" if last else ""},
        } | ({} if row == 0 else {"matches": "x"})
        layout[f"yaxis{axis}"] = {
            "anchor": f"x{axis}",
            "domain": [top - height * (1 if last else 0.8), top],
            **value_axis,
        }
        layout["annotations"].append(
            {
                "text": f"<b>{formats.markup(kind)}</b>",
                "xref": "paper",
                "x": 1,
                "xanchor": "right",
                "yref": "paper",
                "y": top,
                "yanchor": "bottom",
                "showarrow": False,
            }
        )
        for state in states:
            for cell in cells:
                edges, below = cumulative(cell, state, kind)
                if not len(edges):
                    continue
                seconds, values = curve(edges, below)
                name = label(cell)
                if several:
                    name = f"{formats.markup(cell.trace, 40)}: {name}"
                data.append(
                    {
                        "type": "scatter",
                        "mode": "lines",
                        "name": name,
                        "legendgroup": name,
                        "showlegend": row == 0,
                        "visible": state == states[0],
                        "meta": state,
                        "x": seconds,
                        "y": values,
                        "xaxis": f"x{axis}",
                        "yaxis": f"y{axis}",
                        "line": {
                            "shape": shape,
                            "width": 2,
                            "color": cell.colour,
                            "dash": cell.dash,
                        },
                        "hovertemplate": f"{name}<br>{kind}, {state}<br>{hover}<extra></extra>",
                    }
                )
    return Drawing(
        figure={"data": data, "layout": layout},
        words=_words(cells, states),
        height=130 + 230 * len(kinds),
        key=key,
        choices=tuple(states),
    )


def _words(cells: Sequence[Cell], states: Sequence[str]) -> str:
    told = []
    for cell in cells:
        for state in states:
            for kind, quantiles in cell.latencies(state).items():
                if kind in ("alloc", "free"):
                    told.append(
                        f"{cell.label}, {kind}, {state}: half of the calls under "
                        f"{formats.duration(quantiles['p50_ns']['median'])}, 99 % under "
                        f"{formats.duration(quantiles['p99_ns']['median'])}"
                    )
    ours = all(cell.latency_source == "ours" for cell in cells)
    whose = " The latency is of our own implementation." if ours else ""
    return f"{'; '.join(told)}.{whose}"
