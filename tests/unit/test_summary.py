"""Tables and sentences about results, without replaying anything."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from workbench.replay.notes import notes
from workbench.replay.result_fields import WATERFALL
from workbench.replay.results import CellResult
from workbench.replay.summary import Result, memory_table, thread_table, waterfall_table
from workbench.replay.summary_rows import rows

MIB = 2**20
MakeResult = Callable[..., Path]


def memory(live: int, allocated: int | None, parts: bool = True) -> dict[str, Any]:
    """The field ``memory``; an allocator without `allocated` asks the system by itself."""
    reported = dict.fromkeys(("allocated", "active", "reserved"), allocated)
    peaks = {"requested": 2 * live, "live_requested": live, **reported}
    return {
        "peaks": {name: {"bytes": of, "event": 1, "time_ns": 1} for name, of in peaks.items()},
        "finals": dict.fromkeys(peaks, 0),
        "waterfall": {"event": 1, **dict.fromkeys(WATERFALL, MIB)} if parts else None,
        "unused_share": None if allocated is None else 0.0,
        "reserved_meaning": "",
        "driver_calls": dict.fromkeys(("alloc", "free", "pool_alloc"), allocated and 3),
        "counters": {},
        "rss_growth_bytes": 7 * MIB,
        "minor_faults": 0,
        "major_faults": 0,
    }


def shown(*parts: Any) -> str:
    console = Console(width=200, file=StringIO(), record=True)
    for part in parts:
        console.print(part)
    return console.export_text()


def cells(folders: Sequence[Path]) -> list[CellResult]:
    return [CellResult(folder) for folder in folders]


def test_every_row_has_the_same_traffic_and_rounding_where_its_peaks_are_known(
    tmp_path: Path, make_result: MakeResult
) -> None:
    made = cells(
        [
            make_result(tmp_path, "lists", memory=memory(3 * MIB, 4 * MIB)),
            make_result(tmp_path, "counts", memory=memory(3 * MIB, 4 * MIB, parts=False)),
            make_result(tmp_path, "silent", memory=memory(3 * MIB, None, parts=False)),
        ]
    )
    text = shown(memory_table(rows(made)))
    assert "peak live requested" in text
    lines = {name: line for line in text.splitlines() for name in line.split()[1:2]}
    assert all("3.00 MiB" in lines[name] for name in ("lists", "counts", "silent"))
    assert lines["lists"].count("25.0%") == lines["counts"].count("25.0%") == 1
    assert lines["silent"].count("not reported") == 5
    assert [row["device_calls"] for row in rows(made)] == [9, 9, None]


def test_who_reports_no_parts_has_no_row_of_them(tmp_path: Path, make_result: MakeResult) -> None:
    lists = make_result(tmp_path, "lists", memory=memory(3 * MIB, 4 * MIB))
    silent = make_result(tmp_path, "silent", memory=memory(3 * MIB, None, parts=False))
    table = waterfall_table(rows(cells([lists, silent])))
    assert table is not None
    assert table.row_count == 1
    assert waterfall_table(rows(cells([silent]))) is None
    assert "part by part" not in shown(Result(cells([silent])))


@pytest.mark.parametrize(("count", "text"), [(0.5, "0.5 x, 17.4"), (1200.0, "1,200 x, 17.4")])
def test_a_wait_that_took_time_is_not_counted_as_none(
    count: float, text: str, tmp_path: Path, make_result: MakeResult
) -> None:
    folder = make_result(tmp_path, "cell")
    (cell,) = cells([folder])
    wait = {"count": count, "total_ns": 17_420}
    cell.info["latency"]["threads"] = {"steady": {"1": {"lock_wait": wait}}}
    table = thread_table([cell])
    assert table is not None
    assert text in shown(table)


def test_what_is_said_of_one_of_several_traces_names_it(
    tmp_path: Path, make_result: MakeResult
) -> None:
    made = cells(
        [
            make_result(tmp_path, name, label="plan", status="timed_out", trace={"path": path})
            for name, path in (("one", "a/first.parquet"), ("two", "second.parquet"))
        ]
    )
    said = notes(made)
    assert "first: plan: synthetic." in said
    assert "second: plan: synthetic." in said
    assert "plan: synthetic." in notes(made[:1])


def test_one_mark_has_one_footnote(tmp_path: Path, make_result: MakeResult) -> None:
    made = [
        make_result(
            *(tmp_path, kind),
            as_if=True,
            allocator={"name": "n", "settings": {}, "kind": kind, "latency_source": "ours"},
        )
        for kind in ("device", "pinned")
    ]
    (said,) = [note for note in notes(cells(made)) if note.startswith("*")]
    assert said.startswith("* as-if replay: cpu traffic through an allocator for device or pinned")


def test_cold_latencies_that_hold_different_things_are_told(
    tmp_path: Path, make_result: MakeResult
) -> None:
    ours = make_result(tmp_path, "ours", memory=memory(MIB, MIB))
    theirs = make_result(tmp_path, "theirs", memory=memory(MIB, None, parts=False))
    (said,) = [note for note in notes(cells([ours, theirs])) if note.startswith("Cold")]
    assert "theirs may leave that to the program's first use" in said
    for alone in (ours, theirs):
        assert not [note for note in notes(cells([alone])) if note.startswith("Cold")]
