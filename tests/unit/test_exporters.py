"""What `wb export` writes, format by format."""

from __future__ import annotations

import csv
import json
import random
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from trace_maker import write_trace

from workbench.common.errors import UsageError, WorkbenchError
from workbench.recorders import exporters
from workbench.recorders.exporters import TraceSource, Written, chrome_counters, minimalloc
from workbench.recorders.trace import open_trace

MIB = 2**20


def export(
    exporter: Any, trace: Path, device: str | None = None
) -> tuple[str, Written, list[tuple[int, int]]]:
    """The text that a format of traces writes, what it says of it, and its progress."""
    target = trace.with_suffix(exporter.SUFFIX)
    told: list[tuple[int, int]] = []
    (file,) = open_trace(trace).files
    written = exporter.write(
        TraceSource(file, device), target, lambda done, of: told.append((done, of))
    )
    return target.read_text(encoding="utf-8"), written, told


# -- MiniMalloc ------------------------------------------------------------------------------------


def test_lifetimes_are_half_open_and_count_events(tmp_path: Path) -> None:
    trace = write_trace(
        tmp_path / "run.parquet",
        [
            ("live", 0, 64),
            ("mark", -1, 0),
            ("alloc", 1, 100),
            ("free", 0, 64),
            ("alloc", 2, 8),
            ("free", 1, 100),
        ],
    )
    text, written, told = export(minimalloc, trace)
    assert text == "id,lower,upper,size\n0,0,3,64\n1,2,5,100\n2,4,6,8\n"
    assert written.facts == {
        "device": "cpu",
        "allocations": 3,
        "left_out_zero_bytes": 0,
        "peak_live_bytes": 164,
    }
    assert "{path}" in written.next
    assert told == [(6, 6)]


def test_a_free_and_an_allocation_may_share_a_place() -> None:
    table = minimalloc.pa.table({"lower": [0, 5], "upper": [5, 9], "size": [10, 10]})
    assert minimalloc._peak(table) == 10


def test_one_device_only_and_no_zero_bytes(tmp_path: Path) -> None:
    trace = write_trace(
        tmp_path / "run.parquet",
        [("alloc", 0, 1), ("alloc", 1, 50), ("alloc", 2, 0), ("free", 0, 1), ("free", 1, 50)],
        device=["cpu", "cuda:0", "cuda:0", "cpu", "cuda:0"],
    )
    text, written, _ = export(minimalloc, trace)
    assert text == "id,lower,upper,size\n1,1,4,50\n"
    assert written.facts["left_out_zero_bytes"] == 1
    assert "1 of 0 bytes left out" in written.summary
    assert export(minimalloc, trace, "cpu")[0] == "id,lower,upper,size\n0,0,3,1\n"
    with pytest.raises(UsageError, match=r"'cuda:7' is not in .*; it has cpu, cuda:0"):
        export(minimalloc, trace, "cuda:7")


@pytest.mark.parametrize("events", [[], [("mark", -1, 0)]])
def test_a_trace_without_allocations(tmp_path: Path, events: Any) -> None:
    trace = write_trace(tmp_path / "run.parquet", events)
    text, written, _ = export(minimalloc, trace)
    assert text == "id,lower,upper,size\n"
    assert written.facts["peak_live_bytes"] == 0
    document = json.loads(export(chrome_counters, trace)[0])
    assert not [event for event in document["traceEvents"] if event["ph"] == "C"]


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_lifetimes_of_random_traces(seed: int, tmp_path_factory: pytest.TempPathFactory) -> None:
    trace, live = random_trace(tmp_path_factory.mktemp("random") / "run.parquet", seed)
    text, written, _ = export(minimalloc, trace)
    rows = [
        {key: int(value) for key, value in row.items()} for row in csv.DictReader(text.splitlines())
    ]
    for event in range(len(live)):
        alive = sum(row["size"] for row in rows if row["lower"] <= event < row["upper"])
        assert alive == live[event]
    assert written.facts["peak_live_bytes"] == max(live, default=0)


def random_trace(path: Path, seed: int) -> tuple[Path, list[int]]:
    """A trace on one device and, event by event, its live bytes."""
    rng = random.Random(seed)
    events: list[tuple[str, int, int]] = []
    sizes: dict[int, int] = {}
    live: list[int] = []
    for _ in range(rng.randrange(60)):
        if sizes and rng.random() < 0.4:
            number = rng.choice(list(sizes))
            events.append(("free", number, sizes.pop(number)))
        elif rng.random() < 0.1:
            events.append(("mark", -1, 0))
        else:
            number = sum(event == "alloc" for event, _, _ in events)
            sizes[number] = rng.randrange(0, 1000)
            events.append(("alloc", number, sizes[number]))
        live.append(sum(sizes.values()))
    return write_trace(path, events), live


# -- Counters --------------------------------------------------------------------------------------


def test_counters_steps_phases_and_marks(tmp_path: Path) -> None:
    trace = write_trace(
        tmp_path / 'a "quoted" name.parquet',
        [
            *(("alloc", 0, 100), ("alloc", 1, 50), ("alloc", 2, 8)),
            *(("free", 0, 100), ("mark", -1, 0), ("oom", -1, 99)),
        ],
        time_ns=[5, 1000, 1000, 2001, 2500, 10**15 + 1],
        device=["cpu", "cuda:0", "cuda:0", "cpu", "cpu", "cuda:0"],
        step=[-1, 0, 0, 1, 1, 1],
        phase=["forward", "forward", "backward", "other", "other", "forward"],
        label=[None, None, None, None, 'a "label"\n', None],
    )
    text, written, _ = export(chrome_counters, trace)
    events = json.loads(text)["traceEvents"]
    assert [
        (event["name"], event["ts"], event["args"]["requested"])
        for event in events
        if event["ph"] == "C"
    ] == [
        ("live bytes, cpu", 0.005, 100),
        ("live bytes, cpu", 2.001, 0),
        ("live bytes, cuda:0", 1.0, 58),
    ]
    last = 10**12 + 0.001
    assert [
        (event["tid"], event["name"], event["ts"], event["dur"])
        for event in events
        if event["ph"] == "X"
    ] == [
        (1, "step 0", 1.0, 1.001),
        (2, "forward", 0.005, 0.995),
        (2, "backward", 1.0, 1.001),
        (1, "step 1", 2.001, 10**12 - 2),
        (2, "forward", last, 0),
    ]
    marks = [(event["name"], event["ts"]) for event in events if event["ph"] == "i"]
    assert marks == [('a "label"\n', 2.5), ("oom", last)]
    assert 'a \\"quoted\\" name' in text
    assert written.facts == {"devices": ["cpu", "cuda:0"], "values": 3}
    only = json.loads(export(chrome_counters, trace, "cuda:0")[0])["traceEvents"]
    assert {event["name"] for event in only if event["ph"] == "C"} == {"live bytes, cuda:0"}
    with pytest.raises(UsageError, match="it has cpu, cuda:0"):
        export(chrome_counters, trace, "cuda:1")


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_counters_of_random_traces(seed: int, tmp_path_factory: pytest.TempPathFactory) -> None:
    trace, live = random_trace(tmp_path_factory.mktemp("random") / "run.parquet", seed)
    events = json.loads(export(chrome_counters, trace)[0])["traceEvents"]
    values = {
        round(event["ts"] * 1000): event["args"]["requested"]
        for event in events
        if event["ph"] == "C"
    }
    for place, value in enumerate(live):
        known = [time for time in values if time <= 10 * place]
        assert (values[max(known)] if known else 0) == value


def test_batches_follow_one_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trace, _ = random_trace(tmp_path / "run.parquet", 3)
    whole = [export(exporter, trace)[0] for exporter in (minimalloc, chrome_counters)]
    (file,) = open_trace(trace).files
    read = type(file).batches
    monkeypatch.setattr(type(file), "batches", lambda self, names: read(self, names, batch_rows=3))
    assert [export(exporter, trace)[0] for exporter in (minimalloc, chrome_counters)] == whole


# -- Formats are found -----------------------------------------------------------------------------


def test_the_formats() -> None:
    found = exporters.discover()
    assert list(found) == ["chrome-counters", "minimalloc", "torch-snapshot"]
    suffixes = [exporter.SUFFIX for exporter in found.values()]
    assert len(set(suffixes)) == len(suffixes)


class Point:
    """An entry point of another package."""

    def __init__(self, load: Callable[[], Any]) -> None:
        self.name, self.value, self.load = "other", "other.module", load


def others(**parts: Any) -> Callable[..., list[Point]]:
    module = ModuleType("other.module")
    module.__dict__.update(
        {"NAME": "other", "SUMMARY": "s", "SUFFIX": ".o", "NEEDS": "trace", "write": print} | parts
    )
    return lambda group: [Point(lambda: module)] if group == "workbench.exporters" else []


def test_formats_of_other_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exporters, "entry_points", others())
    assert exporters.discover()["other"].SUFFIX == ".o"
    monkeypatch.setattr(exporters, "entry_points", others(NAME="minimalloc"))
    with pytest.raises(WorkbenchError, match="both named 'minimalloc'"):
        exporters.discover()

    def broken() -> Any:
        raise ImportError("no module named x")

    monkeypatch.setattr(exporters, "entry_points", lambda group: [Point(broken)])
    with pytest.raises(WorkbenchError, match=r"'other' \(other.module\) cannot be loaded \(no mod"):
        exporters.discover()


def test_a_format_that_lacks_a_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "half_a_format").mkdir()
    (tmp_path / "half_a_format" / "__init__.py").touch()
    (tmp_path / "half_a_format" / "one.py").write_text("NAME = 'one'\n")
    (tmp_path / "half_a_format" / "_no_format.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(WorkbenchError, match=r"half_a_format\.one: an export format needs SUMMARY"):
        exporters.discover([str(tmp_path / "half_a_format")], "half_a_format")
    for name in [name for name in sys.modules if name.startswith("half_a_format")]:
        monkeypatch.delitem(sys.modules, name)
