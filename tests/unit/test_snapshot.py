"""Snapshots: the state after an event, read from its blocks, equals what was counted on the way."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from trace_maker import columns

from workbench.common.errors import UsageError
from workbench.recorders.trace import TraceWriter
from workbench.replay.events import load_trace
from workbench.replay.replayed_again import ReplayedAgain
from workbench.replay.result_fields import WATERFALL
from workbench.replay.snapshot import Snapshot

MIB = 2**20
DEVICE = "cuda:0"
CAPACITY = 256 * MIB
CELLS = [
    ("caching", ""),
    ("caching", "expandable_segments:True"),
    ("caching", "expandable_segments:True,large_segment_size_mb:12"),
    ("caching", "max_split_size_mb:20"),
    ("caching", "roundup_power2_divisions:[1:4,>:8]"),
    ("caching", "garbage_collection_threshold:0.2,per_process_memory_fraction:0.9"),
    ("cpu-caching", ""),
    ("direct", ""),
]
Row = tuple[str, int, int, int, str | None]
"""(event, id, size, stream, scope)"""


def write(path: Path, rows: list[Row]) -> Path:
    """A trace of `rows`, all on one device."""
    made = columns([row[:3] for row in rows], device=[DEVICE] * len(rows))
    made |= {"stream": [row[3] for row in rows], "scope": [row[4] for row in rows]}
    with TraceWriter(path, {"recorded": ["cpu"]}) as writer:
        writer.write(made)
    return path


def replayed(path: Path, allocator: str, text: str = "", **changed: Any) -> ReplayedAgain:
    """What a result of the trace at `path` would replay."""
    (loaded,) = load_trace(str(path))
    keys = dict(part.split(":", 1) for part in text.split(",") if ":" in part)
    if text.endswith("]"):
        keys = dict([text.split(":", 1)])
    info = {
        "name": "cell",
        "label": allocator,
        "trace": {
            "path": str(path),
            "device": DEVICE,
            "fingerprint": loaded.traffic(DEVICE).fingerprint,
        },
        "allocator": {"name": allocator, "settings": keys},
        "backend": {"name": "simulated"},
        "capacity": {"bytes": CAPACITY},
        "completion": "recorded",
        "after_oom": "continue",
        "outcome": {"status": "ok", "reason": None, "oom": None},
        "memory": {"peaks": {"reserved": {"event": None}}},
        "digests": {},
        "versions": {},
    }
    return ReplayedAgain(info | changed)


def rows_of(drawn: list[tuple[str, int, int, int]]) -> list[Row]:
    """Rows that make sense: only what lives is used or freed."""
    rows: list[Row] = []
    live: dict[int, int] = {}
    for number, (event, size, stream, choice) in enumerate(drawn):
        some = list(live)[choice % len(live)] if live else -1
        if event == "alloc":
            live[number] = size
            rows.append((event, number, size, stream, None))
        elif event == "free" and live:
            rows.append((event, some, live.pop(some), stream, None))
        elif event == "record_stream" and live:
            rows.append((event, some, 0, stream, None))
        elif event in ("synchronize", "empty_cache"):
            rows.append((event, -1, 0, stream, None))
    # An id is dense in order of allocation.
    dense = {row[1]: place for place, row in enumerate(r for r in rows if r[0] == "alloc")}
    return [(event, dense.get(number, -1), *rest) for event, number, *rest in rows]


traffic = st.lists(
    st.tuples(
        st.sampled_from(
            ["alloc"] * 6 + ["free"] * 4 + ["record_stream"] * 2 + ["synchronize", "empty_cache"]
        ),
        st.one_of(
            st.integers(1, 4096),
            st.integers(1, 40 * MIB),
            st.sampled_from([512, MIB, MIB + 1, 10 * MIB, 20 * MIB]),
        ),
        st.integers(0, 2),
        st.integers(0, 10**6),
    ),
    min_size=1,
    max_size=30,
)


@pytest.mark.parametrize(("allocator", "text"), CELLS)
@settings(max_examples=12, deadline=None)
@given(drawn=traffic)
def test_the_parts_equal_the_running_numbers_at_every_event(
    allocator: str, text: str, drawn: list[tuple[str, int, int, int]]
) -> None:
    rows = rows_of(drawn)
    if not rows:
        return
    with tempfile.TemporaryDirectory() as folder:
        again = replayed(write(Path(folder) / "run.parquet", rows), allocator, text)
    full = again._replay.memory(full=True)["timeline"]
    for event in range(len(rows)):
        now = {name: int(column[event]) for name, column in full.items()}
        snapshot = again.at(event)
        assert snapshot.event == event
        assert snapshot.reserved == now["reserved"] == sum(snapshot.waterfall.values())
        assert snapshot.waterfall == {
            "live_requested": now["live_requested"],
            "rounding": now["allocated"] - now["live_requested"],
            "pending": now["active"] - now["allocated"],
            "stranded": now["stranded"],
            "cached": now["reserved"] - now["active"] - now["stranded"],
        }
        assert snapshot.largest_free == now["largest_free"]
        assert snapshot.segments["allocated"].sum() == now["allocated"]
        assert snapshot.segments["active"].sum() == now["active"]
        assert (snapshot.segments["active"] + snapshot.segments["free"]).equals(
            snapshot.segments["size"]
        )
        pins = snapshot.pinned_by()
        assert (pins["bytes"] <= pins["segment_size"] - pins["wasted"]).all()
        lines = snapshot.memory_map(20).splitlines()
        assert len(lines) == (len(snapshot.segments) + 1 if now["reserved"] else 1)


@settings(max_examples=40, deadline=None)
@given(drawn=traffic, text=st.sampled_from([text for name, text in CELLS if name == "caching"]))
def test_the_waterfalls_of_peak_and_oom_add_up(
    drawn: list[tuple[str, int, int, int]], text: str
) -> None:
    rows = rows_of(drawn)
    if not rows:
        return
    with tempfile.TemporaryDirectory() as folder:
        again = replayed(write(Path(folder) / "run.parquet", rows), "caching", text)
    memory = again._replay.memory()
    assert tuple(memory["waterfall"]) == WATERFALL
    assert sum(memory["waterfall"].values()) == memory["peaks"]["reserved"]["bytes"]
    if memory["peaks"]["reserved"]["bytes"]:
        peak = again.at(memory["peaks"]["reserved"]["event"])
        assert peak.waterfall == memory["waterfall"]
    if memory["oom"] is not None:
        assert sum(memory["oom"]["waterfall"].values()) == memory["oom"]["reserved"]
        assert again.at(memory["oom"]["event"]).waterfall == memory["oom"]["waterfall"]


@pytest.fixture
def pinned(tmp_path: Path) -> Snapshot:
    """A segment of 40 MiB for weights and activations, of which one small block is left."""
    rows: list[Row] = [
        ("alloc", 0, 12 * MIB, 0, "early"),  # takes the front of a segment of its own
        ("alloc", 1, 40 * MIB, 0, "whole"),
        ("free", 1, 40 * MIB, 0, None),
        ("alloc", 2, 3 * MIB, 0, "logits"),
        ("alloc", 3, 2 * MIB, 0, None),
        ("alloc", 4, 2 * MIB, 0, None),
    ]
    return replayed(write(tmp_path / "run.parquet", rows), "caching").at(5)


def test_a_snapshot_says_who_keeps_segments_that_are_mostly_empty(pinned: Snapshot) -> None:
    assert pinned.waterfall == {
        "live_requested": 19 * MIB,
        "rounding": 0,
        "pending": 0,
        "stranded": 33 * MIB,
        "cached": 0,
    }
    assert pinned.largest_free == 33 * MIB
    assert pinned.pinned_by().to_dict("records") == [
        {
            "segment": 1,
            "segment_size": 40 * MIB,
            "wasted": 33 * MIB,
            "scope": None,
            "stack": None,
            "phase": "forward",
            "bytes": 4 * MIB,
            "blocks": 2,
            "oldest": 4,
        },
        {
            "segment": 1,
            "segment_size": 40 * MIB,
            "wasted": 33 * MIB,
            "scope": "logits",
            "stack": None,
            "phase": "forward",
            "bytes": 3 * MIB,
            "blocks": 1,
            "oldest": 3,
        },
    ]


def test_blocks_say_where_they_come_from(pinned: Snapshot) -> None:
    first, logits, *_, free = pinned.blocks.to_dict("records")
    assert (first["id"], first["alloc_event"], first["age"], first["scope"]) == (0, 0, 5, "early")
    assert (logits["segment"], logits["offset"], logits["size"]) == (1, 0, 3 * MIB)
    assert (logits["step"], logits["phase"], logits["thread"]) == (0, "forward", 0)
    assert free["state"] == "inactive"
    assert (free["id"], free["alloc_event"], free["age"], free["thread"]) == (-1, -1, -1, -1)
    assert free["scope"] is free["stack"] is free["phase"] is None


def test_the_map_is_to_scale(pinned: Snapshot) -> None:
    first, second, legend = pinned.memory_map(40).splitlines()
    assert first == f"{0:>6} large   12.00 MiB |{'█' * 12}|"
    assert second == f"{1:>6} large   40.00 MiB |{'█' * 7}{'·' * 33}|"
    assert legend.endswith("a character is 1.00 MiB")
    coarse = pinned.memory_map(4).splitlines()
    assert [line.partition("|")[2] for line in coarse[:2]] == ["██|", "▓···|"]
    with pytest.raises(UsageError, match="width 0"):
        pinned.memory_map(0)


def test_the_map_shows_what_is_pending_and_what_has_no_memory(tmp_path: Path) -> None:
    rows: list[Row] = [
        ("alloc", 0, 20 * MIB, 0, None),
        ("alloc", 1, 20 * MIB, 0, None),
        ("alloc", 2, 20 * MIB, 0, None),
        ("record_stream", 2, 0, 1, None),
        ("free", 2, 20 * MIB, 0, None),
        ("free", 0, 20 * MIB, 0, None),
    ]
    text = "expandable_segments:True"
    again = replayed(write(tmp_path / "run.parquet", rows), "caching", text, completion="never")
    assert again.at(5).memory_map(3).startswith(f"{0:>6} large   60.00 MiB |·█~|")
    emptied = [*rows, ("empty_cache", -1, 0, 0, None)]
    again = replayed(write(tmp_path / "b.parquet", emptied), "caching", text, completion="never")
    after = again.at(6)
    # Waiting for the stream, emptying freed the pending block too.
    assert after.memory_map(2).startswith(f"{0:>6} large   20.00 MiB | █|")
    assert after.segments["size"].tolist() == [20 * MIB]
    assert after.blocks["offset"].tolist() == [20 * MIB]


def test_an_empty_state_is_shown_too(tmp_path: Path) -> None:
    from rich.console import Console

    rows: list[Row] = [("alloc", 0, 8, 0, None), ("free", 0, 8, 0, None)]
    snapshot = replayed(write(tmp_path / "run.parquet", rows), "direct").at(1)
    assert snapshot.waterfall == dict.fromkeys(WATERFALL, 0)
    assert (snapshot.reserved, snapshot.largest_free) == (0, 0)
    assert snapshot.memory_map() == "no segment"
    assert len(snapshot.pinned_by()) == 0
    assert "no segment" in snapshot._repr_html_()
    console = Console(width=100)
    with console.capture() as shown:
        console.print(snapshot)
    assert "no segment" in shown.get()


def test_a_terminal_and_a_notebook_show_it(pinned: Snapshot) -> None:
    from rich.console import Console

    assert repr(pinned).startswith("Snapshot('caching after event 5: 52.00 MiB reserved in 2")
    console = Console(width=100)
    with console.capture() as captured:
        console.print(pinned)
    words = ("largest free block 33.00 MiB", "stranded", "|█", "logits", "forward phase", "mostly")
    for shown in (captured.get(), pinned._repr_html_()):
        for word in words:
            assert word in shown


def test_the_state_can_be_asked_for_again_and_in_any_order(tmp_path: Path) -> None:
    rows: list[Row] = [("alloc", number, 3 * MIB, 0, None) for number in range(4)]
    again = replayed(write(tmp_path / "run.parquet", rows), "caching")
    assert [again.at(event).waterfall["live_requested"] for event in (3, 0, 3)] == [
        12 * MIB,
        3 * MIB,
        12 * MIB,
    ]
