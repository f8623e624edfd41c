"""A result as the page shows it: one name and one look, the same in every table and chart."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import PurePath
from typing import Any

import pandas as pd

from workbench.common.errors import BrokenFileError
from workbench.replay.results import CELL_FILE, CellResult, device_calls
from workbench.reports import formats

# Every colour has a contrast of at least 3:1 against the light and the dark page, so that one
# palette serves both; the first four follow Okabe and Ito, whose colours stay apart for readers who
# are colour-blind. The dash is a second sign beside the colour, for them and for grey prints, and
# tells apart those whose colour comes again.
COLOURS = (
    "#0072b2",
    "#d55e00",
    "#00936b",
    "#c0679a",
    "#7a5fd0",
    "#8f7a1e",
    "#4a8a9c",
    "#8a7f86",
)
DASHES = ("solid", "dash", "dot", "dashdot", "longdash", "longdashdot")
# Of the small sign before a name: they change where the colours begin again.
SHAPES = ("square", "circle", "diamond")

AS_IF, MODEL, REFERENCE, ORDER = "as if", "model", "reference", "order"

# What a page cannot do without, beyond what every reader of a result checks.
_FIELDS: dict[str, tuple[str, ...]] = {
    "trace": (
        *("path", "fingerprint", "program", "events", "device", "complete", "lost_events"),
        *("duration_ns", "step_count", "peak_live_bytes"),
    ),
    "allocator": ("name", "settings"),
    "backend": ("name", "is_model"),
    "capacity": ("bytes", "source"),
}


@dataclass(frozen=True)
class Cell:
    """One measurement on the page.

    Attributes:
        result: what the replay wrote.
        label: the name on the page, unique within the trace, not yet escaped.
        trace: the name of the trace, unique on the page, not yet escaped.
        colour: of the cell's lines and bars, as ``#rrggbb``.
        dash: of the cell's lines, a Plotly dash.
        shape: of the sign before its name in tables.
    """

    result: CellResult
    label: str
    trace: str
    colour: str
    dash: str
    shape: str

    @property
    def info(self) -> dict[str, Any]:
        """The contents of cell.json."""
        return self.result.info

    @cached_property
    def timeline(self) -> pd.DataFrame:
        """Memory in each bucket of events, empty where the cell did not get that far."""
        return self.result.timeline

    @cached_property
    def latency(self) -> pd.DataFrame:
        """Histograms of the latency of calls, empty where none was measured."""
        return self.result.latency

    @property
    def status(self) -> str:
        """The outcome in one word, such as ``ok`` or ``out_of_memory``."""
        return str(self.info["outcome"]["status"])

    @property
    def as_if(self) -> bool:
        """Whether the traffic was recorded on another kind of device."""
        return bool(self.info["as_if"])

    @property
    def is_model(self) -> bool:
        """Whether the memory came from a model: of a device, or of the driver's pool."""
        models = (self.info["backend"]["is_model"], self.info["allocator"].get("is_model", False))
        return any(models)

    @property
    def is_reference(self) -> bool:
        """Whether it is PyTorch's own code that was measured."""
        return bool(self.info["allocator"].get("latency_source") == "reference")

    @property
    def order(self) -> str:
        """In which order the recorded threads made their calls."""
        return str(self.info.get("order", "global"))

    @property
    def races(self) -> bool:
        """Whether who came first was a race: then what is live at once is this run's alone."""
        return self.order != "global" and self.info["trace"].get("threads", 2) > 1

    @property
    def was_measured(self) -> bool:
        """Whether its memory was; not where the process crashed, hung or was not started."""
        return bool(self.info.get("memory"))

    @property
    def marks(self) -> list[str]:
        """What must be said wherever the cell's numbers appear."""
        marks = (
            (AS_IF, self.as_if),
            (MODEL, self.is_model),
            (REFERENCE, self.is_reference),
            (f"{ORDER} {self.order}", self.races),
        )
        return [mark for mark, holds in marks if holds]

    @property
    def chart_label(self) -> str:
        """The label with its marks, escaped for a chart."""
        return formats.markup(" · ".join([self.label, *self.marks]), longest=90)

    @property
    def live_peak(self) -> int:
        """Peak live bytes, below which no allocator can hold; 0 where that is not known.

        Of the whole trace, or of the replay where threads raced and decided what was live at once.
        """
        if self.races:
            return self.peak("live_requested") or 0
        return int(self.info["trace"]["peak_live_bytes"])

    def peak(self, name: str) -> int | None:
        """Peak bytes of `name`, such as ``reserved``; None where it was not reported."""
        found = (self.info.get("memory") or {}).get("peaks", {}).get(name)
        if not found or found["bytes"] is None or found["bytes"] < 0:
            return None
        return int(found["bytes"])

    @property
    def driver_calls(self) -> int | None:
        """Calls to the driver or the system; None where they were not counted."""
        return device_calls((self.info.get("memory") or {}).get("driver_calls") or {})

    @property
    def latency_source(self) -> str | None:
        """Whose latency was measured; None where none was."""
        source = (self.info.get("latency") or {}).get("source")
        return None if source is None else str(source)

    def latencies(self, state: str) -> dict[str, Any]:
        """Quantiles by kind of call in `state`, empty where there are none."""
        states = (self.info.get("latency") or {}).get("states") or {}
        return states.get(state) or {}

    def threads(self, state: str) -> dict[str, Any]:
        """Latencies by recorded thread in `state`, empty where the trace has one."""
        threads = (self.info.get("latency") or {}).get("threads") or {}
        return threads.get(state) or {}

    def throughput(self, state: str) -> dict[str, Any]:
        """Throughput in `state`, empty where there is none."""
        return (self.info.get("throughput") or {}).get(state) or {}


def name_cells(results: Sequence[CellResult]) -> list[Cell]:
    """Give every result a name and a look; traces in the order given, their cells in given order.

    The same allocator with the same settings looks the same on every trace.

    Raises:
        BrokenFileError: a result lacks a field that the page needs.
    """
    for result in results:
        _check(result)
    traces = _trace_names(results)
    fingerprints = list(traces)
    labels = _unique_labels(results)
    looks = {label: index for index, label in enumerate(dict.fromkeys(labels))}
    cells = []
    for result, label in zip(results, labels, strict=True):
        number = looks[label]
        cells.append(
            Cell(
                result=result,
                label=label,
                trace=traces[result.info["trace"]["fingerprint"]],
                colour=COLOURS[number % len(COLOURS)],
                dash=DASHES[(number % len(COLOURS) + number // len(COLOURS)) % len(DASHES)],
                shape=SHAPES[number // len(COLOURS) % len(SHAPES)],
            )
        )
    return sorted(cells, key=lambda c: fingerprints.index(c.info["trace"]["fingerprint"]))


def by_trace(cells: Sequence[Cell]) -> dict[str, list[Cell]]:
    """The cells of each trace, under the trace's name."""
    groups: dict[str, list[Cell]] = {}
    for cell in cells:
        groups.setdefault(cell.trace, []).append(cell)
    return groups


def _check(result: CellResult) -> None:
    for part, fields in _FIELDS.items():
        for field in fields:
            if field not in result.info[part]:
                raise BrokenFileError(
                    result.folder / CELL_FILE,
                    f"field {part}.{field} is missing",
                    "replay the trace again with wb replay",
                )


def _trace_names(results: Sequence[CellResult]) -> dict[str, str]:
    paths = {r.info["trace"]["fingerprint"]: str(r.info["trace"]["path"]) for r in results}
    names = {print_: PurePath(path).name or path for print_, path in paths.items()}
    taken = list(names.values())
    return {
        print_: name if taken.count(name) == 1 else f"{paths[print_]} [{print_[:8]}]"
        for print_, name in names.items()
    }


def _unique_labels(results: Sequence[CellResult]) -> list[str]:
    """Labels that tell the cells of a trace apart by adding only what sets them apart."""
    distinctions: tuple[Callable[[dict[str, Any]], str], ...] = (
        lambda info: str(info["backend"]["name"]),
        lambda info: (
            "unlimited"
            if info["capacity"]["bytes"] is None
            else f"capacity {formats.size(info['capacity']['bytes'])}"
        ),
        lambda info: f"completion {info['completion']}",
        lambda info: f"order {info.get('order', 'global')}",
        lambda info: f"profile {(info.get('profile') or {}).get('name', 'none')}",
        lambda info: str(info["name"]),
    )
    labels = [str(result.info["label"]) for result in results]
    for distinction in distinctions:
        seen: dict[tuple[str, str], set[str]] = {}
        for result, label in zip(results, labels, strict=True):
            key = (result.info["trace"]["fingerprint"], label)
            seen.setdefault(key, set()).add(distinction(result.info))
        ambiguous = {label for (_, label), values in seen.items() if len(values) > 1}
        labels = [
            f"{label} · {distinction(result.info)}" if label in ambiguous else label
            for result, label in zip(results, labels, strict=True)
        ]
    return labels
