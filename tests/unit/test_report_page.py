"""The page: self-contained, the same for the same results, harmless whatever the files say."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

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
    assert "Replayed as if the traffic were a device's: caching · unlimited" in read
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
    assert "cpu-caching 99.80 MiB 101.80 MiB 134.73 MiB +35.0 % 25.9 % 15" in read
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
        "name": HOSTILE,
    }
    make_result(tmp_path, "one", trace=hostile, **changed)
    make_result(tmp_path, "two", trace=hostile, status="crashed", **changed)
    make_result(tmp_path, "three", trace=hostile | {"fingerprint": "other"}, **changed)
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
