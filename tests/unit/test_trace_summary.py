"""The summary of a trace, against sums made by hand and by a plain model."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from trace_maker import write_trace

from workbench.recorders.trace import open_trace
from workbench.recorders.trace.summary import FileSummary, summarise

MAKE = st.lists(
    st.tuples(
        st.booleans(),  # allocate, or free
        st.integers(0, 1000),  # size, or choice of the block
        st.sampled_from(["cpu", "cuda:0"]),
        st.sampled_from(["forward", "backward"]),
        st.sampled_from(["a", "b", None]),
    ),
    max_size=60,
)


def summary_of(path: Path) -> FileSummary:
    (file,) = open_trace(path).files
    return summarise(file)


def test_by_hand(tmp_path: Path) -> None:
    events = [("alloc", 0, 100), ("alloc", 1, 50), ("free", 0, 100), ("alloc", 2, 8)]
    path = write_trace(
        tmp_path / "run.parquet",
        events,
        scope=["a", "b", "b", None],
        phase=["forward", "backward", "backward", "other"],
        step=[0, 1, 1, 2],
    )
    summary = summary_of(path)
    (cpu,) = summary.devices
    assert (cpu.device, cpu.allocs, cpu.frees, cpu.allocated_bytes) == ("cpu", 3, 1, 158)
    assert (cpu.peak_bytes, cpu.peak_blocks, cpu.peak_event, cpu.peak_time_ns) == (150, 2, 1, 10)
    assert (cpu.peak_step, cpu.peak_phase) == (1, "backward")
    assert (cpu.live_bytes, cpu.live_blocks) == (58, 2)
    assert [(s.name, s.bytes, s.blocks) for s in cpu.peak_scopes] == [("a", 100, 1), ("b", 50, 1)]
    assert [(s.name, s.bytes) for s in cpu.peak_phases] == [("forward", 100), ("backward", 50)]
    assert [(b.low, b.high, b.count, b.bytes) for b in summary.sizes] == [
        (8, 16, 1, 8),
        (32, 64, 1, 50),
        (64, 128, 1, 100),
    ]
    assert [(b.low, b.high, b.count) for b in summary.lifetimes_in_events] == [(2, 4, 1)]
    assert [(b.low, b.high, b.count) for b in summary.lifetimes_in_ns] == [(16, 32, 1)]
    assert (summary.last_step, summary.first_time_ns, summary.last_time_ns) == (2, 0, 30)
    assert summary.event_counts == {"alloc": 3, "free": 1}


def test_a_trace_of_nothing(tmp_path: Path) -> None:
    summary = summary_of(write_trace(tmp_path / "run.parquet", []))
    assert (summary.events, summary.devices, summary.sizes) == (0, [], [])
    assert summary.first_time_ns is None


@settings(max_examples=60, deadline=None)
@given(MAKE)
def test_peaks_and_who_held_them(made: list[tuple[bool, int, str, str, str | None]]) -> None:
    events: list[tuple[str, int, int]] = []
    columns: dict[str, list[Any]] = {"device": [], "phase": [], "scope": []}
    live: dict[int, tuple[int, str, str, str | None]] = {}
    peaks: dict[str, tuple[int, dict[Any, int]]] = {}
    for is_alloc, number, device, phase, scope in made:
        if is_alloc:
            block = sum(1 for event, _, _ in events if event == "alloc")
            events.append(("alloc", block, number))
            live[block] = (number, device, phase, scope)
        elif live:
            block = sorted(live)[number % len(live)]
            events.append(("free", block, live[block][0]))
            _, device, _, _ = live.pop(block)
        else:
            continue
        for name, value in (("device", device), ("phase", phase), ("scope", scope)):
            columns[name].append(value)
        held = [entry for entry in live.values() if entry[1] == device]
        total = sum(size for size, *_ in held)
        if is_alloc and (device not in peaks or total > peaks[device][0]):
            by_name: dict[Any, int] = {}
            for size, _, its_phase, its_scope in held:
                for key in (("phase", its_phase), ("scope", its_scope)):
                    by_name[key] = by_name.get(key, 0) + size
            peaks[device] = (total, by_name)
    with tempfile.TemporaryDirectory() as folder:
        path = write_trace(Path(folder) / "run.parquet", events, **columns)
        summary = summary_of(path)
    found = {}
    for device_summary in summary.devices:
        names = {("phase", s.name): s.bytes for s in device_summary.peak_phases}
        names |= {("scope", s.name): s.bytes for s in device_summary.peak_scopes}
        found[device_summary.device] = (device_summary.peak_bytes, names)
    assert found == peaks
