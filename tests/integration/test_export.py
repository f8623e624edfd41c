"""``wb export`` as a user meets it: what it writes, and one sentence for whatever is wrong."""

from __future__ import annotations

import json
import os
import pickle
import random
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from random_operations import random_operations
from snapshot_maker import make_snapshot

MakeTrace = Callable[..., Path]
MIB = 2**20


def wb(
    folder: Path, *arguments: str | Path, file_limit: int | None = None
) -> subprocess.CompletedProcess[str]:
    def limit() -> None:
        if file_limit is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (file_limit, file_limit))

    return subprocess.run(
        [sys.executable, "-m", "workbench", *map(str, arguments)],
        cwd=folder,
        env={**os.environ, "PYTHONSAFEPATH": "1", "NO_COLOR": "1"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        preexec_fn=limit,
    )


def refused(run: subprocess.CompletedProcess[str], *told: str, code: int = 2) -> None:
    assert run.returncode == code, run.stderr
    message = run.stderr.strip()
    assert message.startswith("wb: ")
    assert "\n" not in message
    for part in told:
        assert part in message
    assert run.stdout == ""


def several_streams(make_trace: MakeTrace, name: str = "run") -> Path:
    """A trace of random operations on a device."""
    rows, streams = [], []
    numbers: dict[int, int] = {}
    sizes: dict[int, int] = {}
    for op, number, size, stream in random_operations(random.Random(4), 800):
        if op == "alloc":
            numbers[number], sizes[number] = len(numbers), size
        told = sizes[number] if op in ("alloc", "free") else 0
        rows.append((op, numbers.get(number, -1), told))
        streams.append(stream)
    return make_trace(rows, name, device="cuda:0", stream=streams)


def test_a_snapshot_is_that_of_the_replay(tmp_path: Path, make_trace: MakeTrace) -> None:
    several_streams(make_trace)
    conf = "expandable_segments:True,rules:address-order"
    run = wb(
        tmp_path,
        *("export", "run.parquet", "-o", "x.pickle", "-a", f"caching:{conf}"),
        *("--at", "peak", "--capacity", "2GiB", "--json"),
    )
    assert run.returncode == 0, run.stderr
    told = json.loads(run.stdout)
    with (tmp_path / "x.pickle").open("rb") as file:
        snapshot = pickle.load(file)
    assert told["reserved_bytes"] == sum(one["total_size"] for one in snapshot["segments"])
    assert told["entries"] == len(snapshot["device_traces"][0])
    assert (told["format"], told["device"]) == ("torch-snapshot", "cuda:0")
    assert (told["settings"], told["capacity"]) == (conf, 2 << 30)
    assert snapshot["allocator_settings"]["PYTORCH_CUDA_ALLOC_CONF"] == "expandable_segments:True"
    assert any(entry["action"] == "segment_map" for entry in snapshot["device_traces"][0])
    made = make_snapshot(
        tmp_path / "run.parquet",
        "expandable_segments:True",
        rules="address-order",
        capacity=2 << 30,
        at="peak",
    )
    bare = [{**entry, "frames": []} for entry in made["device_traces"][0]]
    assert [{**entry, "frames": []} for entry in snapshot["device_traces"][0]] == bare


def test_the_suffix_says_the_format(tmp_path: Path, make_trace: MakeTrace) -> None:
    several_streams(make_trace)
    for name, first, following in (
        ("a.csv", b"id,lower,upper,size\n", "minimalloc --input=a.csv"),
        ("A b.JSON", b'{"displayTimeUnit"', "'A b.JSON' at https://ui.perfetto.dev"),
        ("c.pickle", b"\x80\x04", "memory_viz trace_plot c.pickle"),
    ):
        run = wb(tmp_path, "export", "run.parquet", "-o", name)
        assert run.returncode == 0, run.stderr
        assert (tmp_path / name).read_bytes().startswith(first)
        assert run.stdout.startswith(f"{name}: ")
        assert following in run.stdout.splitlines()[-1]
    run = wb(tmp_path, "export", "run.parquet", "-o", "lifetimes", "--to", "minimalloc")
    assert run.returncode == 0, run.stderr
    assert (tmp_path / "lifetimes").read_bytes() == (tmp_path / "a.csv").read_bytes()


def test_out_of_memory_is_told(tmp_path: Path, make_trace: MakeTrace) -> None:
    make_trace([("alloc", number, 10 * MIB) for number in range(9)], device="cuda:0")
    run = wb(tmp_path, "export", "run.parquet", "-o", "x.pickle", "--capacity", "45MiB")
    assert run.returncode == 0, run.stderr
    assert "Out of memory at event 4; 4 events come after" in run.stdout
    with (tmp_path / "x.pickle").open("rb") as file:
        last = pickle.load(file)["device_traces"][0][-1]
    assert (last["action"], last["size"], last["device_free"]) == ("oom", 10 * MIB, 5 * MIB)


def test_traffic_of_the_cpu_as_if_on_a_device(tmp_path: Path, make_trace: MakeTrace) -> None:
    make_trace()
    run = wb(tmp_path, "export", "run.parquet", "-o", "x.pickle")
    assert run.returncode == 0, run.stderr
    assert " and 1 segment of cpu" in run.stdout


def test_the_device_is_chosen(tmp_path: Path, make_trace: MakeTrace) -> None:
    rows = [("alloc", 0, 10), ("alloc", 1, 99), ("free", 0, 10)]
    make_trace(rows, device=["cuda:1", "cpu", "cuda:1"])
    for name in ("x.pickle", "x.csv", "x.json"):
        refused(
            wb(tmp_path, "export", "run.parquet", "-o", name, "--device", "cuda:0"),
            *("--device 'cuda:0' is not in", "cpu, cuda:1"),
        )
        assert not (tmp_path / name).exists()
    run = wb(tmp_path, "export", "run.parquet", "-o", "x.pickle", "--json")
    assert json.loads(run.stdout)["device"] == "cuda:1"
    run = wb(tmp_path, "export", "run.parquet", "-o", "x.csv", "--device", "cuda:1")
    assert (tmp_path / "x.csv").read_text() == "id,lower,upper,size\n0,0,2,10\n"


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("-o", "x.dat"), ("x.dat", "--to", "minimalloc (.csv)")),
        (("-o", "x", "--to", "minimaloc"), ("minimaloc", "chrome-counters, minimalloc")),
        (("-o", "missing/x.csv"), ("missing does not exist",)),
        (("-o", "folder", "--to", "minimalloc"), ("folder is a folder",)),
        (("-o", "old.csv"), ("old.csv exists", "--force")),
        (("-o", "x.csv", "--at", "peak"), ("--at", "minimalloc")),
        (("-o", "x.json", "--capacity", "1GiB"), ("--capacity", "chrome-counters")),
        (("-o", "x.csv", "-a", "caching"), ("--allocator", "minimalloc")),
        (("-o", "x.pickle", "-a", "direct"), ("direct", "write caching")),
        (("-o", "x.pickle", "-a", "cacing"), ("did you mean 'caching'?",)),
        (("-o", "x.pickle", "-a", "caching:nonsense:1"), ("nonsense",)),
        (("-o", "x.pickle", "--capacity", "much"), ("--capacity 'much'",)),
        (("-o", "x.pickle", "--at", "noon"), ("--at 'noon'", "end, peak, oom")),
        (("-o", "x.pickle", "--at", "-5"), ("--at '-5'",)),
        (("-o", "x.pickle", "--at", "9" * 18), ("outside the replay",)),
        (("-o", "x.pickle", "--at", "oom"), ("does not run out of memory",)),
    ],
)
def test_wrong_use(
    tmp_path: Path, make_trace: MakeTrace, arguments: tuple[str, ...], told: tuple[str, ...]
) -> None:
    make_trace(device="cuda:0")
    (tmp_path / "folder").mkdir()
    (tmp_path / "old.csv").write_text("mine")
    before = sorted(tmp_path.iterdir())
    refused(wb(tmp_path, "export", "run.parquet", *arguments), *told)
    assert sorted(tmp_path.iterdir()) == before
    assert (tmp_path / "old.csv").read_text() == "mine"


@pytest.mark.parametrize("name", ["x.csv", "x.json", "x.pickle"])
def test_what_is_no_trace(tmp_path: Path, make_trace: MakeTrace, name: str) -> None:
    refused(wb(tmp_path, "export", "nothing.parquet", "-o", name), "nothing.parquet")
    (tmp_path / "text.parquet").write_text("no trace")
    refused(wb(tmp_path, "export", "text.parquet", "-o", name), "not a Parquet file")
    ranks = tmp_path / "ranks"
    ranks.mkdir()
    for rank in (0, 1):
        make_trace(name=f"ranks/rank={rank}")
    refused(wb(tmp_path, "export", "ranks", "-o", name), "holds 2 traces", "rank=0.parquet")
    bad = [("alloc", 0, 10), ("free", 0, 10), ("free", 0, 10)]
    make_trace(bad, "bad")
    refused(wb(tmp_path, "export", "bad.parquet", "-o", name), "freed-twice")
    assert not (tmp_path / name).exists()


@pytest.mark.parametrize("name", ["x.csv", "x.json", "x.pickle"])
def test_no_room_leaves_nothing_behind(tmp_path: Path, make_trace: MakeTrace, name: str) -> None:
    # A limit on the size of files fails in the same place as a full disk does.
    several_streams(make_trace)
    (tmp_path / name).write_text("old")
    run = wb(tmp_path, "export", "run.parquet", "-o", name, "--force", file_limit=2000)
    refused(run, f"cannot write {name}", "make room", code=1)
    assert (tmp_path / name).read_text() == "old"
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("name", ["x.csv", "x.json", "x.pickle"])
def test_traces_with_little_in_them(tmp_path: Path, make_trace: MakeTrace, name: str) -> None:
    make_trace([], "empty")
    make_trace([("alloc", 0, 0), ("free", 0, 0)], "zero", device="cuda:0")
    make_trace([("mark", -1, 0), ("free_completed", -1, 0)][:1], "unknown", device="cuda:0")
    for trace in ("empty", "unknown"):
        run = wb(tmp_path, "export", f"{trace}.parquet", "-o", name, "--force")
        if name == "x.pickle":
            refused(run, "nothing to replay")
        else:
            assert run.returncode == 0, run.stderr
    run = wb(tmp_path, "export", "zero.parquet", "-o", name, "--force")
    assert run.returncode == 0, run.stderr
    content: Any = (tmp_path / name).read_bytes()
    if name == "x.pickle":
        snapshot = pickle.loads(content)
        assert snapshot["segments"] == []
        # A request of nothing gets no block, and PyTorch writes no entry of it.
        assert [entry["action"] for entry in snapshot["device_traces"][0]] == []


@pytest.mark.parametrize("conf", ["", ":expandable_segments:True", ":max_split_size_mb:25"])
def test_an_exported_snapshot_passes_the_self_check(
    tmp_path: Path, make_trace: MakeTrace, conf: str
) -> None:
    several_streams(make_trace)
    run = wb(tmp_path, "export", "run.parquet", "-o", "x.pickle", "-a", f"caching{conf}")
    assert run.returncode == 0, run.stderr
    run = wb(tmp_path, "import", "x.pickle", "-o", "back.parquet")
    assert run.returncode == 0, run.stderr
    assert "Self-check of cuda:0: exact: all " in run.stdout


def test_the_rules_of_the_recorded_release_hold(tmp_path: Path, make_trace: MakeTrace) -> None:
    metadata = {"allocator": {"backend": "native", "settings": "rules:address-order"}}
    make_trace(device="cuda:0", metadata=metadata)
    for given, settings in (
        ("caching", "rules:address-order"),
        ("caching:max_split_size_mb:30", "max_split_size_mb:30,rules:address-order"),
        ("caching:rules:2.13", "rules:2.13"),
    ):
        run = wb(
            tmp_path,
            *("export", "run.parquet", "-o", "x.pickle", "-a", given, "--force", "--json"),
        )
        assert json.loads(run.stdout)["settings"] == settings


def test_minimalloc_and_back(tmp_path: Path, make_trace: MakeTrace) -> None:
    several_streams(make_trace)
    for arguments in (
        ("export", "run.parquet", "-o", "one.csv"),
        ("import", "one.csv", "-o", "back.parquet"),
        ("export", "back.parquet", "-o", "two.csv"),
    ):
        run = wb(tmp_path, *arguments)
        assert run.returncode == 0, run.stderr
    found = []
    for name in ("one.csv", "two.csv"):
        lower, upper, size = np.loadtxt(
            tmp_path / name, dtype=np.int64, delimiter=",", skiprows=1, usecols=(1, 2, 3)
        ).T
        # The numbers of events differ: what counts is which lifetimes overlap.
        overlaps = (lower[:, None] < upper) & (lower < upper[:, None])
        found.append((size.tolist(), overlaps.tolist()))
    assert found[0] == found[1]
