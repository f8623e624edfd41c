"""Peak memory of every cell, against the line nobody can get under."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from workbench.reports import formats
from workbench.reports.cells import Cell, by_trace
from workbench.reports.charts import Drawing

TITLE = "Peak memory (MiB)"
ORDER = 10

_MIB = 2**20
# Name, width of the bar as a share of the row, opacity: the bars lie inside one another.
_BARS = (
    ("reserved", "reserved", 0.38, 0.3),
    ("allocated", "allocated", 0.24, 0.55),
    ("live_requested", "live requested", 0.1, 1.0),
)


# Where the line is in this share of the chart, the words beside it have no room to their left.
_LEFT = 0.15
_RACE = (
    " Where threads raced it is the run's own, and these rows are not comparable with others: "
    "what is live at once differs from run to run."
)


def needs(cells: Sequence[Cell]) -> str | None:
    """Left out when no cell reports a peak."""
    if any(cell.peak(name) is not None for cell in cells for name, *_ in _BARS):
        return None
    return "No cell got far enough to report a peak."


def figure(cells: Sequence[Cell]) -> Drawing:
    """One row per cell, grouped by trace, the smallest reserved peak on top."""
    groups = by_trace(cells)
    rows: list[Cell] = []
    positions: list[float] = []
    shapes: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    position = 0.0
    for trace, members in groups.items():
        if len(groups) > 1:
            annotations.append(_text(f"<b>{formats.markup(trace, 60)}</b>", position - 0.1))
            position += 0.6
        ordered = sorted(members, key=lambda cell: (cell.races, _reserved_or_last(cell)))
        # Where threads raced, each run has a peak of live memory of its own.
        alike = sum(not cell.races for cell in ordered)
        if alike:
            live, bottom = ordered[0].live_peak, position + alike - 0.65
            shapes.append(_floor(live, position - 0.3, bottom))
            annotations.append(_floor_label(live, bottom, at_left=live < _LEFT * _largest(cells)))
        for row, cell in enumerate(ordered[alike:], alike):
            shapes.append(_floor(cell.live_peak, position + row - 0.3, position + row + 0.35))
        for cell in ordered:
            rows.append(cell)
            positions.append(position)
            annotations.append(_text(_headline(cell), position - 0.22))
            position += 1
        position += 0.45
    data: list[dict[str, Any]] = [
        _bars(rows, positions, name, title, width, opacity) for name, title, width, opacity in _BARS
    ]
    data += _legend()
    return Drawing(
        figure={
            "data": data,
            "layout": {
                "barmode": "overlay",
                "margin": {"l": 8, "r": 16, "t": 8, "b": 88},
                "xaxis": {"title": {"text": "peak, MiB"}, "rangemode": "tozero"},
                "yaxis": {
                    "visible": False,
                    "range": [position - 0.5, -0.85],
                    "fixedrange": True,
                },
                "shapes": shapes,
                "annotations": annotations,
                "legend": {"orientation": "h", "y": 0, "yref": "container", "yanchor": "bottom"},
                "hovermode": "closest",
            },
        },
        words=_words(groups),
        height=int(110 + 72 * position),
        key="Peaks of a cold run. No allocator can get under the dashed line, the peak of live "
        "memory: what the program itself held." + (_RACE if any(c.races for c in cells) else ""),
    )


def _reserved_or_last(cell: Cell) -> float:
    reserved = cell.peak("reserved")
    return float("inf") if reserved is None or cell.status != "ok" else reserved


def _headline(cell: Cell) -> str:
    reserved = cell.peak("reserved")
    size = formats.size(reserved) if cell.was_measured else "not measured"
    told = f"<b>{cell.chart_label}</b><br>{size}"
    if reserved is not None:
        told += " reserved"
    if cell.status != "ok":
        return f"{told}, {cell.status.replace('_', ' ')}"
    distance = formats.above(reserved, cell.live_peak)
    live = "its own live" if cell.races else "live"
    return f"{told}, {distance} over {live}" if distance else told


def _text(text: str, row: float) -> dict[str, Any]:
    return {
        "text": text,
        "xref": "paper",
        "x": 0,
        "xanchor": "left",
        "y": row,
        "yanchor": "bottom",
        "showarrow": False,
        "align": "left",
    }


def _floor(live: int, top: float, bottom: float) -> dict[str, Any]:
    return {
        "type": "line",
        "x0": live / _MIB,
        "x1": live / _MIB,
        "y0": top,
        "y1": bottom,
        "line": {"dash": "dash", "width": 1.5, "color": "#808790"},
    }


def _largest(cells: Sequence[Cell]) -> int:
    return max(cell.peak(name) or 0 for cell in cells for name, *_ in _BARS)


def _floor_label(live: int, bottom: float, *, at_left: bool) -> dict[str, Any]:
    return {
        "text": f"live {formats.size(live)}",
        "x": live / _MIB,
        "xanchor": "left" if at_left else "right",
        "y": bottom,
        "yanchor": "top",
        "showarrow": False,
    }


def _bars(
    rows: Sequence[Cell],
    positions: Sequence[float],
    name: str,
    title: str,
    width: float,
    opacity: float,
) -> dict[str, Any]:
    known = [
        (row, position, peak)
        for row, position in zip(rows, positions, strict=True)
        if (peak := row.peak(name)) is not None
    ]
    return {
        "type": "bar",
        "orientation": "h",
        "x": [peak / _MIB for _, _, peak in known],
        "y": [position for _, position, _ in known],
        "width": width,
        "marker": {"color": [row.colour for row, *_ in known], "opacity": opacity},
        "hovertext": [
            f"{row.chart_label}<br>peak {title} {formats.size(peak)} ({peak:,} bytes)"
            for row, _, peak in known
        ],
        "hoverinfo": "text",
        "showlegend": False,
    }


def _legend() -> list[dict[str, Any]]:
    """Entries in grey: the shade says which peak, the colour which cell."""
    bars: list[dict[str, Any]] = [
        {
            "type": "bar",
            "x": [None],
            "y": [None],
            "name": title,
            "marker": {"color": f"rgba(128,135,144,{opacity})"},
            "hoverinfo": "skip",
        }
        for _, title, _, opacity in _BARS
    ]
    line = {
        "type": "scatter",
        "mode": "lines",
        "x": [None],
        "y": [None],
        "name": "peak live of the trace",
        "line": {"dash": "dash", "width": 1.5, "color": "#808790"},
        "hoverinfo": "skip",
    }
    return [*bars, line]


def _words(groups: dict[str, list[Cell]]) -> str:
    sentences = []
    for trace, members in groups.items():
        told = [
            f"{' '.join([cell.label, *(f'({mark})' for mark in cell.marks)])} {_holds(cell)}"
            + ("" if cell.status == "ok" else f" before it ends: {cell.status.replace('_', ' ')}")
            for cell in members
        ]
        sentences.append(
            f"On {trace}, where live memory peaks at "
            f"{formats.size(members[0].info['trace']['peak_live_bytes'])}: "
            f"{'; '.join(told)}."
        )
    return " ".join(sentences)


def _holds(cell: Cell) -> str:
    if not cell.was_measured:
        return "was not measured"
    if cell.peak("reserved") is None:
        return "does not report what it reserves"
    return (
        f"reserves {formats.size(cell.peak('reserved'))} and allocates "
        f"{formats.size(cell.peak('allocated'))}"
        + (f" over {formats.size(cell.live_peak)} live in its own run" if cell.races else "")
    )
