"""The page: self-contained, the same for the same results, harmless whatever the files say."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from workbench.common.errors import BrokenFileError
from workbench.replay.results import load_results
from workbench.reports.page import page

MIB = 2**20


class Reader(HTMLParser):
    """Collects the tags and the text of a page, scripts and styles apart."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag == "script":
            self.scripts.append("")

    def handle_data(self, data: str) -> None:
        if self.cdata_elem == "script":
            self.scripts[-1] += data
        elif self.cdata_elem is None:
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


@pytest.fixture
def text(synthetic_results: Path) -> str:
    return page(load_results([synthetic_results]))


def test_the_page_refers_to_nothing_outside_and_is_small_enough(text: str) -> None:
    for tag, attributes in Reader(text).tags:
        assert tag not in ("link", "img", "iframe", "object", "embed", "base")
        assert not {"src", "href", "srcset", "data"} & attributes.keys(), (tag, attributes)
    assert "default-src 'none'" in text
    assert len(text.encode()) < 8_000_000


def test_plotly_is_inside_once(text: str) -> None:
    assert text.count("* plotly.js v") == 1


def test_the_page_is_the_same_for_the_same_results(text: str, synthetic_results: Path) -> None:
    assert page(load_results([synthetic_results])) == text


def test_the_answer_names_only_what_can_be_deployed(text: str) -> None:
    read = Reader(text).text
    assert "direct holds the program in the least memory: 99.80 MiB reserved" in read
    assert "and no more, in 15 device calls" in read
    assert "cpu-caching needs the most of those that can serve it" in read
    assert "Replayed as if the traffic were of another kind of memory: caching · unlimited" in read
    assert "caching · capacity 80.00 MiB ran out of memory." in read


@pytest.mark.parametrize(
    ("overhead", "told"),
    [
        (0, "99.80 MiB reserved, the peak of live memory and no more,"),
        (0.5, "149.70 MiB reserved, 50.0 % above the peak of live memory,"),
        (7, "798.40 MiB reserved, 8.0 times the peak of live memory,"),
    ],
)
def test_the_answer_says_how_far_above_the_floor(
    tmp_path: Path, make_result: Callable[..., Path], overhead: float, told: str
) -> None:
    make_result(tmp_path, overhead=overhead)
    assert told in Reader(page(load_results([tmp_path]))).text


def test_the_table_shows_peaks_marks_spread_and_the_outcome(text: str) -> None:
    read = Reader(text).text
    assert "cpu-caching 99.80 MiB 101.80 MiB 134.73 MiB +35.0 % 25.9 % 2.0 % 2.00 MiB 15" in read
    assert "cpu-caching steady latency: ours 56 ns 53 to 60 ns" in read
    assert "cpu-caching cold latency: ours 112 ns 106 to 121 ns" in read
    assert "out of memory at event 4,999 , asking for 512.00 MiB".replace(" ,", ",") in read
    assert "latency of the workbench's own implementation, not of PyTorch's" in read
    assert "as-if replay: recorded on another kind of device" in read


def test_what_was_run_names_trace_machine_and_command(text: str) -> None:
    read = Reader(text).text
    for part in (
        "traces/synthetic.parquet",
        "train.py --steps 5",
        "Synthetic CPU",
        "wb replay traces/synthetic.parquet --allocator direct",
        "bytes of all segments taken from the device",
        "The steady runs differ by 40% of their median",
        "12 ns per clock reading",
    ):
        assert part in read


HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(1)>\u202e\"'&<a href='x:y'>"


def test_hostile_text_is_inert(tmp_path: Path, make_result: Callable[..., Path]) -> None:
    hostile = {"path": HOSTILE, "program": [HOSTILE], "device": HOSTILE, "fingerprint": HOSTILE}
    changed = {
        "label": HOSTILE,
        "completion": HOSTILE,
        "command": HOSTILE,
        "warnings": [HOSTILE],
        "machine": {HOSTILE: HOSTILE},
        "versions": {HOSTILE: HOSTILE},
        "allocator": {"name": HOSTILE, "settings": {HOSTILE: HOSTILE}},
        "backend": {"name": HOSTILE, "is_model": True},
        "capacity": {"bytes": 100, "source": HOSTILE},
        "created": HOSTILE,
        "order": HOSTILE,
        "profile": made_profile(HOSTILE),
        "left_out": [{"name": HOSTILE, "reason": HOSTILE}],
        "name": HOSTILE,
    }
    make_result(tmp_path, "one", trace=hostile, **changed)
    make_result(tmp_path, "two", trace=hostile, status="crashed", **changed)
    make_result(tmp_path, "three", trace=hostile | {"fingerprint": "other"}, **changed)
    kinds = {HOSTILE: {"count": 1, "total_ns": 1}}
    for number, source in enumerate(("model", "hardware", HOSTILE)):
        time = {"source": source, "profile": HOSTILE, "kinds": kinds}
        memory = memory_of(tmp_path / "one") | {"driver_time": time}
        make_result(tmp_path, f"priced {number}", trace=hostile, **changed, memory=memory)
    reader = Reader(page(load_results([tmp_path])))
    assert len(reader.scripts) == 3
    tags = {tag for tag, _ in reader.tags}
    assert not tags & {"img", "a"}
    assert "onerror" not in {name for _, attributes in reader.tags for name in attributes}
    assert "\u202e" not in reader.text
    # Plotly reads HTML in labels: what reaches it must be escaped once more.
    assert "<" not in re.sub(r"</?b>|<br>|<extra></extra>", "", str(json.loads(reader.scripts[0])))


def test_several_traces_are_told_apart(tmp_path: Path, make_result: Callable[..., Path]) -> None:
    for number in range(2):
        trace = {"path": f"{number}/run.parquet", "fingerprint": f"{number}" * 16}
        make_result(tmp_path, f"caching-{number}", label="caching", trace=trace)
    read = Reader(page(load_results([tmp_path]))).text
    assert "Allocators compared on 2 traces" in read
    assert "Trace 0/run.parquet [00000000]" in read
    assert "Trace 1/run.parquet [11111111]" in read


def test_an_incomplete_recording_is_said(tmp_path: Path, make_result: Callable[..., Path]) -> None:
    make_result(tmp_path, trace={"complete": False, "lost_events": 1234})
    read = Reader(page(load_results([tmp_path]))).text
    assert "The recording is incomplete (1,234 events lost): true peaks may be higher." in read


@pytest.mark.parametrize("status", ["crashed", "timed_out", "unavailable"])
def test_cells_without_numbers_make_a_page(
    tmp_path: Path, make_result: Callable[..., Path], status: str
) -> None:
    make_result(tmp_path, status=status)
    read = Reader(page(load_results([tmp_path]))).text
    assert "No allocator got through this trace" in read
    assert f"caching has no result: {status.replace('_', ' ')}." in read
    assert "Left out: No cell got far enough to report a peak." in read


def test_memory_without_latency_makes_a_page(
    tmp_path: Path, make_result: Callable[..., Path]
) -> None:
    make_result(tmp_path, timed=False)
    read = Reader(page(load_results([tmp_path]))).text
    assert "Left out: No call was timed in these results." in read
    assert "Time of one call" not in read


def test_a_result_without_a_needed_field_is_named(
    tmp_path: Path, make_result: Callable[..., Path]
) -> None:
    folder = make_result(tmp_path)
    info = json.loads((folder / "cell.json").read_text())
    del info["trace"]["peak_live_bytes"]
    (folder / "cell.json").write_text(json.dumps(info))
    with pytest.raises(BrokenFileError, match=r"trace\.peak_live_bytes is missing"):
        page(load_results([tmp_path]))


def test_memory_of_raced_threads_is_no_verdict(
    tmp_path: Path, make_result: Callable[..., Path]
) -> None:
    trace = {"threads": 4, "peak_live_bytes": 1000 * MIB}
    make_result(tmp_path, "raced", order="free", trace=trace)
    alone = Reader(page(load_results([tmp_path]))).text
    assert "Memory is not compared: in these replays the recorded threads raced." in alone
    # Against what was live in that run, not in the recording.
    assert "raced order free 99.80 MiB 101.80 MiB 119.76 MiB +20.0 %" in alone
    make_result(tmp_path, "direct", trace=trace)
    both = Reader(page(load_results([tmp_path]))).text
    assert "direct holds the program in the least memory" in both
    assert "needs the most" not in both
    assert "Threads raced: raced 119.76 MiB. What is live at once then differs" in both
    assert "order of threads free" in both


def made_profile(name: str) -> dict[str, Any]:
    device = {"name": name, "compute_capability": name, "memory_bytes": 1}
    return {"name": name, "digest": name, "device": device, "date": name, "settings": {name: name}}


def test_profiles_tell_cells_apart_and_what_is_not_priced_is_no_0(
    tmp_path: Path, make_result: Callable[..., Path]
) -> None:
    backend = {"name": "simulated", "is_model": True}
    make_result(tmp_path, "plain", label="caching", backend=backend)
    assert "not priced" in Reader(page(load_results([tmp_path]))).text
    for name, total in (("h200", 1_500_000), ("a100", 2_500_000)):
        kinds = {"alloc": {"count": 12, "total_ns": total}}
        time = {"source": "model", "profile": name, "kinds": kinds}
        memory = memory_of(tmp_path / "plain") | {"driver_time": time}
        profile = made_profile(name)
        changed = {"label": "caching", "backend": backend, "profile": profile, "memory": memory}
        make_result(tmp_path, name, **changed)
    text = Reader(page(load_results([tmp_path]))).text
    assert "caching · profile h200" in text
    assert "caching · profile none" in text
    assert "driver 1.50 ms, a model" in text
    assert "a model: calls counted, times their price in profile a100; 12 alloc 2.50 ms" in text


def test_the_order_of_one_thread_is_no_race(
    tmp_path: Path, make_result: Callable[..., Path]
) -> None:
    make_result(tmp_path, "caching", order="free", trace={"threads": 1})
    assert (
        "caching holds the program in the least memory"
        in Reader(page(load_results([tmp_path]))).text
    )


def test_a_reference_is_never_the_answer(tmp_path: Path, make_result: Callable[..., Path]) -> None:
    reference = {"name": "torch-x", "settings": {}, "latency_source": "reference"}
    make_result(tmp_path, "torch-x", overhead=0.1, allocator=reference)
    make_result(tmp_path, "x", overhead=0.1)
    read = Reader(page(load_results([tmp_path]))).text
    assert "x holds the program in the least memory" in read
    assert "torch-x holds" not in read
    assert "reserve just as much" not in read
    assert "PyTorch's own code, for comparison: torch-x 109.78 MiB." in read


def plan(**served: int) -> dict[str, object]:
    names = ("planned", "unmanaged", "other_threads", "outside", "mismatches", "fallback")
    names += ("fallback_bytes", "peak_fallback_bytes", "arena_bytes")
    numbers = ("allocations", "managed", "unmanaged", "unmanaged_bytes", "lower_bound_bytes")
    return {
        "planner": "best",
        **dict.fromkeys((*numbers, "alignment", "thread"), 1964),
        "height_bytes": 88 * MIB,
        "ratio": 1.0,
        "seconds": 0.1,
        "steps": None,
        "file": None,
        "served": dict.fromkeys(names, 0) | served,
    }


def test_how_a_plan_was_kept_to_is_said(tmp_path: Path, make_result: Callable[..., Path]) -> None:
    served = plan(mismatches=12, fallback=34, fallback_bytes=744 * MIB, peak_fallback_bytes=MIB)
    make_result(tmp_path, "plan", plan=served)
    read = Reader(page(load_results([tmp_path]))).text
    assert (
        "plan: 1,964 planned in 88.00 MiB, 1.0000 of the lower bound; 12 mismatches sent 34 "
        "allocations of 744.00 MiB to raw memory, at most 1.00 MiB at once." in read
    )


def memory_of(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "cell.json").read_text())["memory"])


def test_what_rounding_wastes_is_a_column(tmp_path: Path, make_result: Callable[..., Path]) -> None:
    memory = memory_of(make_result(tmp_path / "a"))
    peaks = dict(memory["peaks"])
    for name, size in (("live_requested", 60 * MIB), ("allocated", 80 * MIB)):
        peaks[name] = {"bytes": size, "event": 3, "time_ns": 3}
    make_result(tmp_path / "b", memory=memory | {"peaks": peaks})
    assert "rounding device calls" in Reader(page(load_results([tmp_path / "b"]))).text
    assert "25.0 % 20.00 MiB 15" in Reader(page(load_results([tmp_path / "b"]))).text


def test_what_all_left_out_is_said_unless_it_ran(
    tmp_path: Path, make_result: Callable[..., Path]
) -> None:
    left_out = [{"name": name, "reason": "no torch"} for name in ("torch-plan", "other")]
    make_result(tmp_path, "direct", left_out=left_out)
    make_result(tmp_path, "other", left_out=left_out)
    read = Reader(page(load_results([tmp_path]))).text
    assert read.count("Left out of all : torch-plan (no torch).") == 1
    assert "other (no torch)" not in read


def test_a_model_on_real_memory_is_marked(tmp_path: Path, make_result: Callable[..., Path]) -> None:
    make_result(tmp_path, "async", allocator={"name": "async", "settings": {}, "is_model": True})
    assert "async model 99.80 MiB" in Reader(page(load_results([tmp_path]))).text


def test_what_is_not_reported_is_not_said_to_be_none(
    tmp_path: Path, make_result: Callable[..., Path]
) -> None:
    memory = memory_of(make_result(tmp_path / "a"))
    unknown = {"driver_calls": {"alloc": None, "free": None}, "counters": {"hits": 0}}
    make_result(tmp_path / "b", memory=memory | unknown)
    read = Reader(page(load_results([tmp_path / "b"]))).text
    assert "driver calls not reported" in read
    assert "counters none" in read


def test_what_was_not_measured_is_not_said_to_be_unreported(
    tmp_path: Path, make_result: Callable[..., Path]
) -> None:
    make_result(tmp_path, status="crashed")
    read = Reader(page(load_results([tmp_path]))).text
    assert "caching - - - - - - - crashed synthetic" in read
    assert "not reported" not in read


def test_half_a_lock_wait_is_not_none(tmp_path: Path, make_result: Callable[..., Path]) -> None:
    latency = json.loads((make_result(tmp_path / "a") / "cell.json").read_text())["latency"]
    waited = {"lock_wait": {"count": 0.5, "total_ns": 17_420}}
    latency["threads"] = {"steady": {"7": waited | {"alloc": latency["states"]["steady"]["alloc"]}}}
    make_result(tmp_path / "b", latency=latency)
    assert "0.5 17.4 µs" in Reader(page(load_results([tmp_path / "b"]))).text


def test_whose_cold_calls_leave_memory_untouched_is_said(
    tmp_path: Path, make_result: Callable[..., Path]
) -> None:
    make_result(tmp_path, "ours")
    assert "first use" not in Reader(page(load_results([tmp_path]))).text
    memory = memory_of(tmp_path / "ours") | {"driver_calls": {"alloc": None, "free": None}}
    make_result(tmp_path, "jemalloc", memory=memory)
    read = Reader(page(load_results([tmp_path]))).text
    assert "jemalloc may leave that to the program's first use of it" in read
