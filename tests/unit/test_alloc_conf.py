"""Settings of `caching` as text: a trace's own, those tried, the line to export."""

from __future__ import annotations

import random
import shlex
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from workbench.replay import _engine
from workbench.replay.alloc_conf import (
    NEW_KEYS,
    SEARCHED,
    ChanceTrial,
    RecordedSettings,
    Space,
    divisions_text,
    export_line,
    from_text,
    grid,
    simplicity,
    to_text,
    unknown_keys,
    useful_collections,
    without_defaults,
)

GIB = 2**30
COLLECTIONS = [(0.5, 0.5), (0.9, 0.8)]


def warnings_of(settings: str) -> list[str]:
    """What the engine says of `settings`; it raises where it does not take them."""
    none = {"op": "u1", "slot": "i4", "size": "i8", "stream": "i4", "thread": "i4"}
    columns: dict[str, Any] = {name: np.empty(0, dtype=dtype) for name, dtype in none.items()}
    events = _engine.Events(**columns, slot_count=0)
    return _engine.Replay(events, "caching", settings, backend="simulated").warnings


def recorded(settings: Any) -> RecordedSettings:
    return RecordedSettings.of({"allocator": {"backend": "native", "settings": settings}})


@pytest.mark.parametrize("settings", [None, "", {}, " ", {"expandable_segments": False}])
def test_a_trace_may_have_run_with_the_defaults(settings: Any) -> None:
    assert recorded(settings) == RecordedSettings("", "", {})
    assert RecordedSettings.of({}) == RecordedSettings("", "", {})


def test_text_and_objects_are_read_alike() -> None:
    text = recorded("max_split_size_mb:64, roundup_power2_divisions:[256:1, >:2],backend:native")
    listed = recorded(
        {
            "roundup_power2_divisions": {"256": 1, ">": 2},
            "max_split_size_mb": 64,
            "expandable_segments": None,
        }
    )
    assert text == listed
    assert text.own == "max_split_size_mb:64,roundup_power2_divisions:[256:1,>:2]"


def test_rules_are_replayed_with_every_setting_and_are_none_of_them() -> None:
    found = recorded("rules:address-order,expandable_segments:True")
    assert (found.own, found.rules) == ("expandable_segments:True", "rules:address-order")
    assert found.replayed("max_split_size_mb:64") == "max_split_size_mb:64,rules:address-order"
    assert found.replayed("") == "rules:address-order"
    assert recorded(None).replayed("") == ""


def test_settings_that_move_no_bytes_are_kept_for_the_line_to_export() -> None:
    found = recorded("pinned_use_cuda_host_register:True,release_lock_on_cudamalloc:True")
    assert found.own == ""
    line = export_line("roundup_power2_divisions:[4:1,>:2]", found.kept)
    assert shlex.split(line) == [
        "export",
        "PYTORCH_ALLOC_CONF=roundup_power2_divisions:[4:1,>:2],pinned_use_cuda_host_register:True,"
        "release_lock_on_cudamalloc:True",
    ]


@given(
    st.one_of(
        st.text(max_size=60),
        st.dictionaries(st.text(max_size=9), st.one_of(st.none(), st.booleans(), st.text())),
        st.lists(st.integers(), max_size=3),
        st.integers(),
    )
)
def test_whatever_a_trace_says_of_its_settings_can_be_read(settings: Any) -> None:
    found = recorded(settings)
    assert "".join(found.own.split()) == found.own


def test_one_text_for_equal_settings() -> None:
    assert to_text(from_text("b:2,max_split_size_mb:64,expandable_segments:True")) == (
        "expandable_segments:True,max_split_size_mb:64,b:2"
    )
    assert without_defaults(
        {
            "large_segment_size_mb": "20",
            "roundup_power2_divisions": "1",
            "max_split_size_mb": "64",
            "max_non_split_rounding_mb": "20",
        }
    ) == ("max_split_size_mb:64")


def test_fewer_keys_are_simpler_then_fewer_letters() -> None:
    texts = ["b:1,c:2", "roundup_power2_divisions:16", "a:1", ""]
    assert sorted(texts, key=simplicity) == ["", "a:1", "roundup_power2_divisions:16", "b:1,c:2"]


def test_bands_that_agree_are_one_number() -> None:
    assert divisions_text([4, 4, 4]) == "4"
    assert divisions_text([4, 1, 8]) == "[4:4,8:1,16:1,32:1,>:8]"


@pytest.mark.parametrize("without", [(), NEW_KEYS, ("expandable_segments",), SEARCHED])
def test_the_grid_is_about_40_settings_without_conflicts(without: tuple[str, ...]) -> None:
    space = Space(without, [] if "per_process_memory_fraction" in without else COLLECTIONS)
    texts = grid(space)
    assert len(texts) == len(set(texts))
    assert len(texts) <= 45
    if not without:
        assert len(texts) >= 35
        assert texts[0] == "expandable_segments:True"
    for text in texts:
        assert text
        assert space.admits(text)
        assert warnings_of(text) == []


@given(st.integers(0, 2**32), st.sampled_from([(), NEW_KEYS, ("max_split_size_mb",)]))
def test_what_is_drawn_is_taken_by_the_engine_and_does_something(
    seed: int, without: tuple[str, ...]
) -> None:
    trial = ChanceTrial(random.Random(seed))
    space = Space(without, [] if "per_process_memory_fraction" in without else COLLECTIONS)
    text = space.draw(trial)
    assert space.admits(text)
    assert without_defaults(from_text(text)) == text
    assert warnings_of(text) == []
    assert all(low <= trial.params[name] <= high for name, (low, high) in trial.ranges.items())


def test_garbage_is_collected_only_where_that_does_something_and_leaves_room() -> None:
    assert useful_collections(None, GIB, 8 * GIB) == []
    assert useful_collections(80 * GIB, GIB, 8 * GIB) == []
    found = useful_collections(10 * GIB, 6 * GIB, 8 * GIB)
    assert (0.5, 0.5) not in found
    assert (0.6, 0.5) in found
    assert (0.95, 0.9) not in found


@pytest.mark.parametrize(
    ("version", "rules", "unknown"),
    [
        ("2.13.0+cu130", "", ()),
        ("2.4.1", "", NEW_KEYS),
        ("2.10.0", "rules:2.13", NEW_KEYS),
        (None, "", ()),
        (None, "rules:address-order", NEW_KEYS),
        ("2.12.0", "rules:address-order", ()),
        ("nonsense", "", ()),
    ],
)
def test_keys_that_the_traces_pytorch_does_not_take_are_known(
    version: str | None, rules: str, unknown: tuple[str, ...]
) -> None:
    assert unknown_keys({"versions": {"torch": version}}, rules) == unknown
