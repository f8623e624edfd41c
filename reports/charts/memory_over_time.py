"""Live, allocated and reserved memory of every cell over the time of the recording."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from workbench.reports import formats
from workbench.reports.cells import Cell, by_trace
from workbench.reports.charts import Drawing
from workbench.reports.points import POINTS_PER_PAGE, Floats, envelope

TITLE = "Memory over time (MiB)"
ORDER = 20

# The lines of a cell and their widths; the last one is the thickest.
_WIDTHS = (("allocated", 1.0), ("reserved", 2.5))
_MIB = 2**20
_GREY = "#808790"


def needs(cells: Sequence[Cell]) -> str | None:
    """Left out when no cell has a timeline."""
    if any(len(cell.timeline) for cell in cells):
        return None
    return "No cell got far enough to leave a timeline."


def figure(cells: Sequence[Cell]) -> Drawing:
    """One panel per trace; in it one grey area (live) and two lines per cell."""
    groups = {
        trace: [cell for cell in members if len(cell.timeline)]
        for trace, members in by_trace(cells).items()
    }
    groups = {trace: members for trace, members in groups.items() if members}
    lines = sum(1 + 2 * len(members) for members in groups.values())
    most = max(POINTS_PER_PAGE // lines, 100)
    data: list[dict[str, Any]] = []
    layout: dict[str, Any] = {
        "margin": {"l": 56, "r": 16, "t": 12, "b": 96},
        "hovermode": "closest",
        "legend": {"orientation": "h", "y": 0, "yref": "container", "yanchor": "bottom"},
        "annotations": [],
    }
    explained: set[str] = set()
    for row, (trace, members) in enumerate(groups.items()):
        axis = "" if row == 0 else str(row + 1)
        top, bottom = 1 - row / len(groups), 1 - (row + 1) / len(groups)
        gap = 0 if len(groups) == 1 else 0.28 / len(groups)
        last = row == len(groups) - 1
        layout[f"xaxis{axis}"] = {
            "anchor": f"y{axis}",
            "title": {"text": "time since recording started, s" if last else ""},
        }
        layout[f"yaxis{axis}"] = {
            "anchor": f"x{axis}",
            "domain": [bottom + (0 if last else gap / 2), top - gap / 2],
            "rangemode": "tozero",
            "title": {"text": "MiB"},
        }
        if len(groups) > 1:
            layout["annotations"].append(
                {
                    "text": f"<b>{formats.markup(trace, 60)}</b>",
                    "xref": "paper",
                    "x": 0,
                    "yref": "paper",
                    "y": top - gap / 2,
                    "yanchor": "bottom",
                    "showarrow": False,
                }
            )
        traces = [_live(members, most)]
        for cell in members:
            traces += _lines(cell, most)
        for line in traces:
            line |= {"xaxis": f"x{axis}", "yaxis": f"y{axis}"}
            line["showlegend"] = line.get("showlegend", True) and line["name"] not in explained
            if line["showlegend"]:
                explained.add(line["name"])
        data += traces
    return Drawing(
        figure={"data": data, "layout": layout},
        words=_words(groups),
        height=130 + 330 * len(groups),
        key="Thick lines are reserved memory, thin lines allocated memory, the grey area is live "
        "requested memory; a cross marks where an allocator ran out. Lines keep every extreme.",
    )


def _is_reported(cell: Cell, name: str) -> bool:
    """Whether the cell's allocator told this number; it did in every bucket, or in none."""
    return not bool(cell.timeline[f"{name}_max"].isna().all())


def _line(cell: Cell, name: str, most: int) -> tuple[Floats, Floats]:
    frame = cell.timeline
    seconds, values = envelope(
        frame["time_ns"].to_numpy(np.float64) / 1e9,
        frame[f"{name}_min"].to_numpy(np.float64),
        frame[f"{name}_max"].to_numpy(np.float64),
        most,
    )
    return seconds, values / _MIB


def _live(members: Sequence[Cell], most: int) -> dict[str, Any]:
    # The same for every cell as far as it got, unless threads raced: take what got furthest.
    longest = max(members, key=lambda c: (not c.races, int(c.timeline["event_last"].max())))
    name = f"live requested of {longest.chart_label}" if longest.races else "live requested"
    seconds, values = _line(longest, "live_requested", most)
    return {
        "type": "scatter",
        "mode": "lines",
        "name": name,
        "legendgroup": name,
        "x": seconds,
        "y": values,
        "line": {"shape": "hv", "width": 0.5, "color": _GREY},
        "fill": "tozeroy",
        "fillcolor": "rgba(128,135,144,0.28)",
        "hovertemplate": "live requested %{y:,.2f} MiB<br>%{x:.3f} s<extra></extra>",
    }


def _lines(cell: Cell, most: int) -> list[dict[str, Any]]:
    lines: list[dict[str, Any]] = []
    told = [(name, width) for name, width in _WIDTHS if _is_reported(cell, name)]
    for name, width in told:
        seconds, values = _line(cell, name, most)
        lines.append(
            {
                "type": "scatter",
                "mode": "lines",
                "name": cell.chart_label,
                "legendgroup": cell.chart_label,
                "showlegend": name == told[-1][0],
                "x": seconds,
                "y": values,
                "line": {
                    "shape": "hv",
                    "width": width,
                    "color": cell.colour,
                    "dash": cell.dash if name == "reserved" else "solid",
                },
                "hovertemplate": f"{cell.chart_label}<br>{name} %{{y:,.2f}} MiB<br>"
                "%{x:.3f} s<extra></extra>",
            }
        )
    oom = cell.info["outcome"].get("oom")
    if oom:
        lines.append(_out_of_memory(cell, oom))
    return lines


def _out_of_memory(cell: Cell, oom: dict[str, Any]) -> dict[str, Any]:
    frame = cell.timeline
    firsts = frame["event_first"].to_numpy()
    bucket = max(int(np.searchsorted(firsts, oom["event"], side="right")) - 1, 0)
    return {
        "type": "scatter",
        "mode": "markers",
        "name": "out of memory",
        "legendgroup": "out of memory",
        "x": [float(frame["time_ns"].iloc[bucket]) / 1e9],
        "y": [max(oom["live_requested"] if oom["reserved"] is None else oom["reserved"], 0) / _MIB],
        "cliponaxis": False,
        "marker": {"symbol": "x", "size": 12, "color": cell.colour, "line": {"width": 1}},
        "hovertemplate": f"{cell.chart_label}<br>out of memory at event {oom['event']:,}<br>"
        f"asked for {formats.size(oom['requested'])}<extra></extra>",
    }


def _words(groups: dict[str, list[Cell]]) -> str:
    sentences = []
    for trace, members in groups.items():
        seconds = max(float(cell.timeline["time_ns"].max()) for cell in members) / 1e9
        ends = [
            f"{cell.label} does not report what it holds"
            if cell.status == "ok" and _final(cell) is None
            else f"{cell.label} ends with {formats.size(_final(cell))} reserved"
            if cell.status == "ok"
            else f"{cell.label} ends early: {cell.status.replace('_', ' ')}"
            for cell in members
        ]
        sentences.append(f"On {trace}, over {seconds:.3g} seconds: {'; '.join(ends)}.")
    return " ".join(sentences)


def _final(cell: Cell) -> float | None:
    finals: dict[str, float] = (cell.info.get("memory") or {}).get("finals", {})
    return finals.get("reserved")
