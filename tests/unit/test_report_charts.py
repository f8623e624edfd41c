"""Charts are found by being there, say what they need, and are true to the data."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import plotly.graph_objects as go
import pytest

from workbench.common.errors import WorkbenchError
from workbench.replay.results import load_results
from workbench.reports.cells import Cell, name_cells
from workbench.reports.charts import Chart, discover
from workbench.reports.points import POINTS_PER_PAGE

MIB = 2**20
CHARTS = discover()


def chart(name: str) -> Chart:
    return next(c for c in CHARTS if c.__name__.endswith(f".{name}"))


@pytest.fixture
def cells(synthetic_results: Path) -> list[Cell]:
    return name_cells(load_results([synthetic_results]))


def test_the_charts_of_the_folder_are_found_in_order() -> None:
    orders = [c.ORDER for c in CHARTS]
    assert orders == sorted(orders)
    assert {c.__name__.rpartition(".")[2] for c in CHARTS} >= {
        "peak_memory",
        "memory_over_time",
        "latency_distribution",
    }


WHOLE = "TITLE = {!r}\nORDER = {}\ndef needs(cells): ...\ndef figure(cells): ...\n"


@pytest.mark.parametrize(
    ("second", "complaint"),
    [
        (WHOLE.format("one", 2), "the same TITLE 'one'"),
        (WHOLE.format("two", 1), "the same ORDER 1"),
        ("TITLE = 'two'\nORDER = 2\n", "needs needs"),
    ],
)
def test_a_duplicate_or_a_half_chart_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, second: str, complaint: str
) -> None:
    package = tmp_path / "made_up_charts"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "first.py").write_text(WHOLE.format("one", 1))
    (package / "second.py").write_text(second)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(WorkbenchError, match=complaint):
        discover([str(package)], "made_up_charts")
    for module in [name for name in sys.modules if name.startswith("made_up_charts")]:
        del sys.modules[module]


@pytest.mark.parametrize("one", CHARTS, ids=lambda c: c.__name__.rpartition(".")[2])
def test_a_figure_is_one_that_plotly_accepts(one: Chart, cells: list[Cell]) -> None:
    assert one.needs(cells) is None
    drawing = one.figure(cells)
    go.Figure(drawing.figure)
    assert all(cell.label in drawing.words for cell in cells)


def test_charts_without_data_are_left_out_with_a_sentence(
    tmp_path: Path, make_result: Callable[..., Path]
) -> None:
    make_result(tmp_path, status="crashed")
    crashed = name_cells(load_results([tmp_path]))
    for one in CHARTS:
        reason = one.needs(crashed)
        assert reason is not None
        assert reason.endswith(".")


def test_a_cell_looks_the_same_in_every_chart(cells: list[Cell]) -> None:
    assert len({(cell.colour, cell.dash) for cell in cells}) == len(cells)
    looks = {cell.chart_label: cell.colour for cell in cells}
    lines = chart("memory_over_time").figure(cells).figure["data"]
    lines += chart("latency_distribution").figure(cells).figure["data"]
    seen = 0
    for line in lines:
        for label, colour in looks.items():
            if line["name"] in (label, f"{label} · ours"):
                assert line["line"]["color"] == colour
                seen += 1
    assert seen >= 4 * len(cells) - 2


def test_bars_are_the_peaks(cells: list[Cell]) -> None:
    bars = chart("peak_memory").figure(cells).figure["data"][0]
    drawn = sorted(bars["x"])
    assert drawn == sorted((cell.peak("reserved") or 0) / MIB for cell in cells)


def test_lines_keep_the_extremes_of_the_timeline(
    tmp_path: Path, make_result: Callable[..., Path]
) -> None:
    for name in ("one", "two", "three"):
        make_result(tmp_path, name, buckets=20_000)
    many = name_cells(load_results([tmp_path]))
    lines = chart("memory_over_time").figure(many).figure["data"]
    assert sum(len(line["x"]) for line in lines) <= POINTS_PER_PAGE
    live = next(line for line in lines if line["name"] == "live requested")
    frame = many[0].timeline
    assert live["y"].max() == frame["live_requested_max"].max() / MIB
    assert live["y"].min() == frame["live_requested_min"].min() / MIB


def test_out_of_memory_is_marked_where_it_happened(cells: list[Cell]) -> None:
    lines = chart("memory_over_time").figure(cells).figure["data"]
    (mark,) = [line for line in lines if line["name"] == "out of memory"]
    failed = next(cell for cell in cells if cell.status == "out_of_memory")
    assert mark["y"] == [failed.info["outcome"]["oom"]["reserved"] / MIB]
    assert mark["x"][0] == pytest.approx(failed.timeline["time_ns"].max() / 1e9)


def test_latency_curves_are_distributions(cells: list[Cell]) -> None:
    for line in chart("latency_distribution").figure(cells).figure["data"]:
        assert np.sum(line["y"]) == pytest.approx(100)
    for line in chart("latency_tail").figure(cells).figure["data"]:
        assert line["y"][0] == 100
        assert (np.diff(line["y"]) <= 0).all()
        assert line["y"][-1] > 0


def test_latency_says_whose_it_is(cells: list[Cell]) -> None:
    for name in ("latency_distribution", "latency_tail"):
        for line in chart(name).figure(cells).figure["data"]:
            assert line["name"].endswith("ours")


def test_as_if_replays_and_models_are_labelled_in_every_chart(cells: list[Cell]) -> None:
    marked = [cell for cell in cells if cell.as_if]
    assert marked
    for one in CHARTS:
        told = str(one.figure(cells).figure)
        for cell in marked:
            assert f"{cell.label} · as if · model" in told


def test_many_cells_are_told_apart(tmp_path: Path, make_result: Callable[..., Path]) -> None:
    for number in range(24):
        make_result(tmp_path, f"cell-{number:02}", buckets=4)
    many = name_cells(load_results([tmp_path]))
    assert len({(cell.colour, cell.dash) for cell in many}) == len(many)
    assert len({(cell.colour, cell.shape) for cell in many}) == len(many)


def test_raced_threads_have_a_floor_of_their_own(
    tmp_path: Path, make_result: Callable[..., Path]
) -> None:
    trace = {"threads": 2, "peak_live_bytes": 110 * MIB}
    make_result(tmp_path, "a-raced", order="free", trace=trace)
    make_result(tmp_path, "b-direct", trace=trace)
    drawing = chart("peak_memory").figure(name_cells(load_results([tmp_path])))
    floors = [
        (shape["x0"], shape["y0"], shape["y1"]) for shape in drawing.figure["layout"]["shapes"]
    ]
    own = memory_peak(tmp_path / "a-raced") / MIB
    assert floors == [(110, -0.3, 0.35), (own, 0.7, 1.35)]
    assert "over its own live" in str(drawing.figure)
    assert "not comparable" in drawing.key


def memory_peak(folder: Path) -> int:
    info = json.loads((folder / "cell.json").read_text())
    return int(info["memory"]["peaks"]["live_requested"]["bytes"])


def test_a_crashed_cell_was_not_measured(tmp_path: Path, make_result: Callable[..., Path]) -> None:
    make_result(tmp_path, "one")
    make_result(tmp_path, "two", status="crashed")
    drawing = chart("peak_memory").figure(name_cells(load_results([tmp_path])))
    assert "two was not measured" in drawing.words
    assert "not reported" not in str(drawing.figure)
