"""Profiles of driver calls: what is read, what is refused, and what is made of the prices."""

from __future__ import annotations

import copy
import json
import math
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from engine_events import Operation, make_events
from hypothesis import given
from hypothesis import strategies as st

from workbench.common.errors import BrokenFileError, UsageError
from workbench.replay import _engine
from workbench.replay.cell import AllocatorSpec, Capacity, Cell
from workbench.replay.profiles import (
    PLAIN_CALLS,
    SIZED_CALLS,
    Profile,
    find_profile,
    profile_problem,
    read_profile,
    shipped,
)

ROOT = Path(__file__).parents[2]
SYNTHETIC = ROOT / "tests" / "data" / "synthetic_profile.json"
MIB = 2**20


@pytest.fixture
def profile() -> Profile:
    return read_profile(SYNTHETIC)


def price(profile: Profile, kind: str, size: int = 0) -> float:
    """What the documentation says of a price, in other words than the engine's."""
    points = profile.prices()[kind]
    sizes, prices = zip(*points, strict=True)
    if len(points) == 1:
        return prices[0]
    return math.exp(np.interp(math.log(size), np.log(sizes), np.log(prices)))


def test_the_documented_example_is_a_profile() -> None:
    page = (ROOT / "docs" / "profiles.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"```json\n(.*?)```", page, re.S)
    assert profile_problem(json.loads(example)) is None


def test_what_ships_was_measured_and_is_named_as_its_file() -> None:
    for name, path in shipped().items():
        found = read_profile(path)
        assert found.name == name
        assert found.info["measured"].startswith("wb calibrate")


def test_equal_profiles_have_equal_digests(profile: Profile, tmp_path: Path) -> None:
    other = tmp_path / "other.json"
    other.write_text(json.dumps(profile.info, sort_keys=True))
    assert read_profile(other).digest == profile.digest
    changed = copy.deepcopy(dict(profile.info))
    changed["calls"]["synchronize"]["p50_ns"] += 1
    assert Profile(changed).digest != profile.digest


def _set(*path: Any) -> Callable[[dict[str, Any]], None]:
    *way, last, value = path

    def change(info: dict[str, Any]) -> None:
        at: Any = info
        for name in way:
            at = at[name]
        at[last] = value

    return change


def _point(size: int, p50: float = 1, p99: float = 2) -> dict[str, float]:
    return {"bytes": size, "p50_ns": p50, "p99_ns": p99}


BROKEN: dict[str, tuple[Callable[[dict[str, Any]], None], str]] = {
    "no version": (lambda info: info.pop("format_version"), "format_version or calls is missing"),
    "another version": (_set("format_version", 2), "format version 2"),
    "version true": (_set("format_version", True), "format version true"),
    "no calls": (lambda info: info.pop("calls"), "format_version or calls is missing"),
    "a kind left out": (lambda info: info["calls"].pop("map"), "calls.map is missing"),
    "no list": (_set("calls", "map", {}), "calls.map is an object, not a list"),
    "an empty list": (_set("calls", "map", []), "calls.map has 0 points"),
    "too many points": (
        _set("calls", "map", [_point(size) for size in range(1, 1002)]),
        "calls.map has 1001 points",
    ),
    "sizes that fall": (_set("calls", "map", [_point(5), _point(4)]), r"calls.map\[1\].bytes is 4"),
    "one size twice": (_set("calls", "map", [_point(5), _point(5)]), r"calls.map\[1\].bytes is 5"),
    "no bytes": (_set("calls", "map", [_point(0)]), r"calls.map\[0\].bytes is 0"),
    "huge bytes": (_set("calls", "map", [_point(2**61)]), r"calls.map\[0\].bytes is 2305843"),
    "a price of nothing": (_set("calls", "map", [_point(5, 0)]), r"calls.map\[0\]: p50_ns"),
    "below nothing": (_set("calls", "event_query", _point(5, -1)), "calls.event_query: p50_ns"),
    "a low p99": (_set("calls", "event_query", _point(5, 3, 2)), "calls.event_query: p50_ns"),
    "an endless price": (_set("calls", "event_query", _point(5, 3, 1e13)), "up to 1e12"),
    "not a number": (_set("calls", "event_query", "p50_ns", math.nan), "out of range"),
    "text": (_set("calls", "event_query", "p50_ns", "1"), "not a number"),
    "true": (_set("calls", "event_query", "p50_ns", True), "not a number"),
    "a chunk of 0": (_set("pool", "chunk_bytes", 0), "pool.chunk_bytes is 0"),
    "an odd chunk": (_set("pool", "chunk_bytes", 3 * MIB), "pool.chunk_bytes is 3145728"),
    "a huge chunk": (_set("pool", "chunk_bytes", 2**31), "pool.chunk_bytes is 2147483648"),
    "a rule as text": (_set("pool", "remap", "yes"), "pool.remap is"),
    "a name with a slash": (_set("name", "../x"), "name is"),
    "an empty name": (_set("name", ""), "name is"),
    "a day that is none": (_set("date", "yesterday"), "date is"),
    "no memory": (_set("device", "memory_bytes", 0), "device.memory_bytes is 0"),
    "a device of lines": (_set("device", "name", "a\nb"), "device.name is not a line"),
    "an escape": (_set("measured", "\x1b[2J"), "measured is not a line"),
    "a long text": (_set("measured", "a" * 201), "measured is not a line"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_profile_is_one_sentence(name: str, tmp_path: Path) -> None:
    change, problem = BROKEN[name]
    info = json.loads(SYNTHETIC.read_text(encoding="utf-8"))
    change(info)
    path = tmp_path / "broken.json"
    path.write_text(json.dumps(info), encoding="utf-8")
    with pytest.raises(BrokenFileError, match=problem) as raised:
        read_profile(path)
    said = str(raised.value)
    assert said.startswith(str(path))
    assert "wb calibrate" in said
    assert "\n" not in said
    assert "\x1b" not in said


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "not JSON"),
        (b"{", "not JSON"),
        (b"\xff\xfe", "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b"1" * 10_000, "not JSON"),
        (b"null", "not a profile"),
        (b"[1]", "not a profile"),
        (b" " * (2**20 + 1), "too large"),
    ],
)
def test_what_is_no_profile_at_all_is_one_sentence(
    content: bytes, problem: str, tmp_path: Path
) -> None:
    path = tmp_path / "broken.json"
    path.write_bytes(content)
    with pytest.raises(BrokenFileError, match=problem) as raised:
        read_profile(path)
    assert "\n" not in str(raised.value)


def test_what_is_no_file_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.json")
    for name, problem in (("none.json", "no such file"), (".", "not a file"), ("pipe.json", "not")):
        with pytest.raises(BrokenFileError, match=problem):
            read_profile(tmp_path / name)


def test_a_profile_is_named_or_a_file(profile: Profile, monkeypatch: pytest.MonkeyPatch) -> None:
    assert find_profile(str(SYNTHETIC)) == profile
    with pytest.raises(UsageError, match="there is no profile of this name"):
        find_profile("h2000")
    known = {"h200": SYNTHETIC, "a100": SYNTHETIC}
    monkeypatch.setattr("workbench.replay.profiles.shipped", lambda: known)
    assert find_profile("a100") == profile
    with pytest.raises(UsageError, match="did you mean 'h200'"):
        find_profile("h2000")


PRICES = read_profile(SYNTHETIC).prices()
ENGINES = _engine.DriverPrices(PRICES)
SIZES = st.integers(min_value=1, max_value=2**60)


@given(st.sampled_from(SIZED_CALLS), SIZES, SIZES)
def test_prices_rise_between_points_and_end_with_them(kind: str, one: int, other: int) -> None:
    low, high = sorted((one, other))
    # The points of the synthetic profile rise with the size.
    first, last = PRICES[kind][0][1], PRICES[kind][-1][1]
    assert first <= ENGINES.of(kind, low) <= ENGINES.of(kind, high) <= last
    expected = price(read_profile(SYNTHETIC), kind, low)
    assert ENGINES.of(kind, low) == pytest.approx(expected, rel=1e-9)


def test_a_point_has_its_own_price(profile: Profile) -> None:
    for kind in (*SIZED_CALLS, *PLAIN_CALLS):
        for size, nanoseconds in profile.prices()[kind]:
            assert ENGINES.of(kind, size) == nanoseconds


@pytest.mark.parametrize(
    ("changed", "problem"),
    [
        ({"nothing": [(1, 1.0)]}, "no kind of driver call 'nothing'"),
        ({"alloc": []}, "of the kind alloc have no price"),
        ({"alloc": [(2, 1.0), (1, 1.0)]}, "prices of alloc"),
        ({"alloc": [(1, 0.0)]}, "prices of alloc"),
        ({"alloc": [(1, math.inf)]}, "prices of alloc"),
        ({"alloc": [(1, math.nan)]}, "prices of alloc"),
    ],
)
def test_the_engine_refuses_prices_that_will_not_do(
    changed: Mapping[str, list[tuple[int, float]]], problem: str
) -> None:
    with pytest.raises(ValueError, match=problem):
        _engine.DriverPrices({**PRICES, **changed})


def _operations() -> list[Operation]:
    """Blocks of all sizes on three streams, some used by another stream."""
    made: list[Operation] = []
    for number in range(300):
        made.append(("alloc", number, 700 + 90_001 * (number % 37) ** 2, number % 3))
        if number % 4 == 0:
            made.append(("record_stream", number, 0, (number + 1) % 3))
        if number >= 20:
            made.append(("free", number - 20, 0, 0))
        if number % 50 == 49:
            made.append(("synchronize", -1, 0, -1))
        if number % 90 == 89:
            made.append(("empty_cache", -1, 0, 0))
    return made


OPERATIONS = _operations()
CELLS = [
    ("direct", ""),
    ("caching", ""),
    ("caching", "expandable_segments:True"),
    ("host-pinned", ""),
    ("async", ""),
    ("plan", "on_mismatch:fallback"),
]


def _memory(name: str, settings: str, *, priced: bool, journal: bool = False) -> Any:
    replay = _engine.Replay(
        make_events(OPERATIONS),
        name,
        settings,
        backend="simulated",
        capacity=64 * 2**30,
        prices=ENGINES if priced else None,
    )
    return replay.memory(1, journal=journal)


@pytest.mark.parametrize(("name", "settings"), CELLS)
def test_prices_change_nothing_but_the_price(name: str, settings: str) -> None:
    priced, plain = _memory(name, settings, priced=True), _memory(name, settings, priced=False)
    assert plain["driver_time"] is None
    assert priced["driver_time"]
    for part in ("digest", "driver_calls", "counters", "peaks", "finals"):
        assert priced[part] == plain[part], part


@pytest.mark.parametrize(("name", "settings"), CELLS)
def test_calls_without_a_size_cost_their_count_times_the_price(
    profile: Profile, name: str, settings: str
) -> None:
    memory = _memory(name, settings, priced=True)
    times, calls = memory["driver_time"], memory["driver_calls"]
    for kind in PLAIN_CALLS:
        found = times.get(kind, {"count": 0, "total_ns": 0})
        if kind != "event_query":  # in no count of calls: it changes nothing
            assert found["count"] == calls[kind]
        assert found["total_ns"] == pytest.approx(found["count"] * price(profile, kind), abs=1)
    if name in ("caching", "host-pinned"):
        assert times["event_query"]["count"] > 0


def test_direct_pays_for_every_block(profile: Profile) -> None:
    times = _memory("direct", "", priced=True)["driver_time"]
    # It asks a device for multiples of 512 bytes.
    sizes = {number: -(-size // 512) * 512 for op, number, size, _ in OPERATIONS if op == "alloc"}
    freed = [sizes[number] for op, number, _, _ in OPERATIONS if op == "free"]
    for kind, paid in (("alloc", list(sizes.values())), ("free", freed)):
        total = sum(price(profile, kind, size) for size in paid)
        assert times[kind] == {"count": len(paid), "total_ns": pytest.approx(total, abs=1)}


@pytest.mark.parametrize("settings", ["", "expandable_segments:True"])
def test_caching_pays_for_what_its_journal_says_it_took(profile: Profile, settings: str) -> None:
    memory = _memory("caching", settings, priced=True, journal=True)
    journal = memory["journal"]
    for action, kind in (
        ("segment_alloc", "alloc"),
        ("segment_free", "free"),
        ("segment_map", "map"),
        ("segment_unmap", "unmap"),
    ):
        sizes = journal["size"][journal["action"] == _engine.JOURNAL_ACTIONS[action]]
        found = memory["driver_time"].get(kind, {"count": 0, "total_ns": 0})
        total = sum(price(profile, kind, int(size)) for size in sizes)
        assert found["count"] == len(sizes) == memory["driver_calls"][kind]
        assert found["total_ns"] == pytest.approx(total, abs=1)
    assert memory["driver_time"]["map" if settings else "alloc"]["count"] > 0


def test_what_the_pool_does_inside_is_in_the_price_of_the_call_to_it(profile: Profile) -> None:
    memory = _memory("async", "", priced=True)
    times, calls = memory["driver_time"], memory["driver_calls"]
    assert calls["map"] > 0  # by the pool
    assert not {"map", "unmap", "reserve", "unreserve"} & set(times)
    assert 0 < times["pool_alloc_grown"]["count"] <= calls["map"]
    served = times["pool_alloc"]["count"] + times["pool_alloc_grown"]["count"]
    assert served == calls["pool_alloc"]
    sizes = {number: size for op, number, size, _ in OPERATIONS if op == "alloc"}
    freed = [sizes[number] for op, number, _, _ in OPERATIONS if op == "free"]
    total = sum(price(profile, "pool_free", size) for size in freed)
    assert times["pool_free"] == {"count": len(freed), "total_ns": pytest.approx(total, abs=1)}


def test_several_threads_pay_for_all_their_calls() -> None:
    codes, numbers, sizes, streams = [], [], [], []
    for number in range(200):
        codes.append(_engine.OPS["alloc"])
        numbers.append(number)
        sizes.append(MIB)
        streams.append(0)
    op = np.array(codes, dtype=np.uint8)
    slot, count = _engine.assign_slots(op, np.array(numbers, dtype=np.int64))
    events = _engine.Events(
        op,
        slot,
        np.array(sizes, dtype=np.int64),
        np.array(streams, dtype=np.int32),
        np.arange(200, dtype=np.int32) % 4,
        count,
    )
    replay = _engine.Replay(events, "direct", backend="simulated", order="free", prices=ENGINES)
    times = replay.memory(1)["driver_time"]
    assert times is not None
    assert times["alloc"]["count"] == 200
    assert times["alloc"]["total_ns"] == pytest.approx(200 * ENGINES.of("alloc", MIB), abs=1)


def _cell(allocator: str, settings: str, profile: Profile | None) -> Cell:
    return Cell(
        trace="run.parquet",
        device="cuda:0",
        allocator=AllocatorSpec(allocator, settings),
        kind="device",
        backend="simulated",
        capacity=Capacity(2**30, "option"),
        profile=profile,
    )


def test_a_profile_is_part_of_what_a_cell_is(profile: Profile) -> None:
    plain, priced = _cell("caching", "", None), _cell("caching", "", profile)
    assert plain.key("f") | {"profile": profile.digest} == priced.key("f") != plain.key("f")
    assert priced.name("run") == plain.name("run") + ".profile-synthetic"
    assert len({plain, priced}) == 2


def test_the_pool_has_the_rules_of_the_profile_unless_the_user_says_otherwise(
    profile: Profile,
) -> None:
    cell = _cell("async", "chunk_mb:2,remap:True", profile)
    assert cell.profile_settings == {
        "reuse_follow_event_dependencies": "True",
        "reuse_allow_opportunistic": "False",
        "reuse_allow_internal_dependencies": "True",
    }
    assert cell.replayed.settings_by_key() == cell.profile_settings | {
        "chunk_mb": "2",
        "remap": "True",
    }
    assert _cell("async", "", profile).profile_settings["chunk_mb"] == "64"
    assert _cell("caching", "", profile).replayed == AllocatorSpec("caching")
    assert _cell("async", "", None).replayed == AllocatorSpec("async")
