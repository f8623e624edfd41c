"""The hook for CUDA in front of PyTorch's own binary, over the stand-in for the CUDA runtime."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
from cuda_programs import Expectation, Row, commands
from cuda_stub_runs import replayed

from workbench.common import torch_build
from workbench.recorders import recording
from workbench.recorders.spool import ConvertedTrace, convert_process
from workbench.recorders.trace import open_trace
from workbench.recorders.trace.summary import summarise
from workbench.replay import cuda_stub
from workbench.replay.events import load_trace

pytestmark = pytest.mark.cuda_stub

PROGRAM = Path(__file__).parents[1] / "data" / "cuda_program.cpp"
GIB = 1 << 30


@pytest.fixture(scope="session")
def program(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The compiled program with the paths of the hooks."""
    try:
        torch = torch_build.find_torch()
        headers = torch_build.find_cuda_headers(torch)
    except torch_build.TorchBuildError as error:
        pytest.skip(str(error))
    stub = cuda_stub.stub(headers)
    agent = recording.load_agent()
    hook = agent.build_parts(torch_build, str(torch.folder), False, False, cuda=False)["hook"]
    cuda = agent.build_cuda_part(torch_build, torch, [stub])
    made = tmp_path_factory.mktemp("program") / "program"
    library = torch.folder / "lib"
    subprocess.run(
        [
            *torch_build.find_compiler(),
            *("-std=c++20", "-O1", "-Wl,--disable-new-dtags"),
            *("-isystem", str(torch.folder / "include"), "-isystem", str(headers.folder)),
            *(str(PROGRAM), str(stub), f"-Wl,-rpath,{stub.parent}"),
            *(f"-L{library}", "-lc10", "-lc10_cuda", f"-Wl,-rpath,{library}", "-ldl"),
            *("-o", str(made)),
        ],
        check=True,
    )
    return [str(made), hook, cuda]


def record(
    program: list[str], folder: Path, lines: list[str], **variables: str
) -> tuple[Expectation, ConvertedTrace]:
    """Run the program and convert what was recorded of it."""
    spool = folder / "process-1-1"
    spool.mkdir()
    done = subprocess.run(
        [*program, str(spool)],
        input="".join(f"{line}\n" for line in lines),
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    expected = Expectation()
    expected.hear(done.stdout)
    return expected, convert_process(spool, folder / "run.parquet", metadata={})


def rows_of(path: Path) -> list[dict[str, Any]]:
    (file,) = open_trace(path).files
    return [row for batch in file.batches() for row in batch.to_pylist()]


def told(row: dict[str, Any]) -> Row:
    """A row as the expectation has it: where segments are is the allocator's own."""
    place = (0, 0) if row["event"].startswith("segment") else (row["stream"], row["pool"])
    if row["event"] == "oom":
        place = (row["stream"], 0)
    return (row["event"], row["id"], row["size"], *place, row["value"])


@pytest.mark.parametrize("completion", ["immediate", "waited"])
@pytest.mark.parametrize(
    "settings", ["", "expandable_segments:True", "max_split_size_mb:20,roundup_power2_divisions:4"]
)
@pytest.mark.parametrize("seed", range(3))
def test_every_row_is_what_the_program_did(
    program: list[str], tmp_path: Path, seed: int, settings: str, completion: str
) -> None:
    expected, done = record(
        program,
        tmp_path,
        list(commands(seed)),
        PYTORCH_ALLOC_CONF=settings,
        WB_CUDA_STUB_COMPLETION=completion,
        WB_CUDA_STUB_BYTES=str(GIB),
    )
    rows = rows_of(done.path)
    assert [told(row) for row in rows] == expected.rows
    assert {row["device"] for row in rows} == {"cuda:0"}
    assert (done.complete, done.unmatched_frees, done.reused_addresses) == (True, 0, 0)
    timed = [row for row in rows if row["event"] in ("alloc", "free", "oom", "empty_cache")]
    assert all(row["duration_ns"] is not None for row in timed)


@pytest.mark.parametrize("resets", [False, True])
def test_peaks_are_those_that_pytorch_reports(
    program: list[str], tmp_path: Path, resets: bool
) -> None:
    lines = [line for line in commands(5, 1000) if line != "reset"]
    expected, done = record(program, tmp_path, [*lines, *(["reset"] if resets else [])])
    (file,) = open_trace(done.path).files
    peaks = file.metadata["reported_peaks"]["cuda:0"]
    kept = tuple(peaks[name] for name in ("requested", "allocated", "active", "reserved"))
    if resets:
        assert all(a > b for a, b in zip(kept[:3], expected.peaks[:3], strict=True))
    else:
        assert kept == expected.peaks
    (check,) = summarise(file).peak_checks
    assert check.in_trace == check.reported == peaks["requested"]


@pytest.mark.parametrize("completion", ["immediate", "waited"])
@pytest.mark.parametrize("settings", ["", "expandable_segments:True", "max_split_size_mb:20"])
@pytest.mark.parametrize("pools", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_replayed_it_peaks_where_pytorch_did(
    program: list[str], tmp_path: Path, seed: int, pools: bool, settings: str, completion: str
) -> None:
    if not torch_build.find_torch().version.startswith("2.13."):
        pytest.skip("`caching` has the rules of torch 2.13")
    _, done = record(
        program,
        tmp_path,
        [line for line in commands(seed, 1000, pools) if line != "wait"],
        PYTORCH_ALLOC_CONF=settings,
        WB_CUDA_STUB_COMPLETION=completion,
    )
    peaks = done.metadata["reported_peaks"]["cuda:0"]
    events = load_trace(str(done.path))[0].traffic("cuda:0").events()
    replay = replayed(events, "caching", settings, 80 * GIB)["peaks"]
    for name in ("allocated", "active", "reserved"):
        assert replay[name]["bytes"] == peaks[name], name


def test_the_device_the_streams_and_the_allocator_are_named(
    program: list[str], tmp_path: Path
) -> None:
    lines = ["alloc 0 1000 0 2", "begin 7", "alloc 1 100 0 1", "end 7"]
    _, done = record(
        program,
        tmp_path,
        lines,
        PYTORCH_ALLOC_CONF="max_split_size_mb:20",
        WB_CUDA_STUB_BYTES=str(GIB),
    )
    about = done.metadata
    assert about["devices"]["cuda:0"]["capacity"] == GIB
    assert about["devices"]["cuda:0"]["held_by_others"] == 0
    assert about["streams"]["cuda:0"] == {
        "1": {"priority": 0, "external": False},
        "2": {"priority": 0, "external": False},
    }
    assert about["pools"]["cuda:0"] == {"1": {"id": [0, 7], "kind": "user"}}
    assert about["allocator"] == {"backend": "native", "settings": "max_split_size_mb:20"}


def test_each_device_has_its_rows_its_facts_and_its_peaks(
    program: list[str], tmp_path: Path
) -> None:
    lines = ["alloc 0 1000 0 0", "alloc 1 3000000 1 0", "free 0", "alloc 2 50 1 0", "free 1"]
    _, done = record(program, tmp_path, lines, WB_CUDA_STUB_DEVICES="2")
    rows = rows_of(done.path)
    assert [
        (row["event"], row["id"], row["device"])
        for row in rows
        if row["event"] in ("alloc", "free")
    ] == [
        ("alloc", 0, "cuda:0"),
        ("alloc", 1, "cuda:1"),
        ("free", 0, "cuda:0"),
        ("alloc", 2, "cuda:1"),
        ("free", 1, "cuda:1"),
    ]
    (file,) = open_trace(done.path).files
    assert set(file.metadata["devices"]) == {"cuda:0", "cuda:1"}
    assert {
        (check.device, check.reported, check.in_trace) for check in summarise(file).peak_checks
    } == {
        ("cuda:0", 1000, 1000),
        ("cuda:1", 3_000_050, 3_000_050),
    }


def test_captures_are_marked(program: list[str], tmp_path: Path) -> None:
    header = torch_build.find_torch().folder / "include/c10/cuda/CUDACachingAllocator.h"
    if "markCaptureBegin" not in header.read_text(encoding="utf-8"):
        pytest.skip("this PyTorch does not tell its allocator of captures")
    lines = ["alloc 0 5000000 0 1", "begin 1", "capture", "alloc 1 3000000 0 1", "use 1 2"]
    lines += ["free 1", "alloc 2 3000000 0 1", "captured", "end 1", "free 2", "release 1", "empty"]
    expected, done = record(program, tmp_path, [*lines, "alloc 3 100 0 0"])
    rows = [told(row) for row in rows_of(done.path)]
    assert rows == expected.rows
    assert ("alloc", 2, 3_000_000, 1, 1, None) in rows
    assert [row[0] for row in rows if row[0].startswith("capture")] == [
        "capture_begin",
        "capture_end",
    ]


def test_the_async_allocator_is_recorded_too(program: list[str], tmp_path: Path) -> None:
    lines = list(commands(3, pools=False))
    expected, done = record(program, tmp_path, lines, PYTORCH_ALLOC_CONF="backend:cudaMallocAsync")
    kept = [row for row in rows_of(done.path) if row["event"] != "oom"]
    assert [told(row) for row in kept] == [row for row in expected.rows if row[0] != "oom"]
    assert done.metadata["allocator"]["backend"] == "cudaMallocAsync"
