"""``wb info`` as a user meets it."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from trace_maker import GOOD, write_trace

from workbench.cli import main


@dataclass
class Done:
    returncode: int
    stdout: str
    stderr: str


@pytest.fixture
def wb(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Done]:
    """Runs ``wb`` in this process, which is faster by the time that imports take."""

    def run(*arguments: object, columns: int = 100) -> Done:
        monkeypatch.setenv("COLUMNS", str(columns))
        monkeypatch.setattr(sys, "argv", ["wb", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        captured = capsys.readouterr()
        return Done(int(ended.value.code or 0), captured.out, captured.err)

    return run


@pytest.fixture(scope="module")
def trace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_trace(
        tmp_path_factory.mktemp("traces") / "run.parquet",
        scope=["blocks.0/aten::mm", None, None, "[red]aten::add\x1b[31m"],
        metadata={
            "program": ["train.py", "--steps", 3],
            "complete": False,
            "lost_events": 12,
            "lost_reason": "the disk was full",
            "unmatched_frees": 5,
        },
    )


def test_tables(wb: Callable[..., Done], trace: Path) -> None:
    done = wb("info", trace)
    assert (done.returncode, done.stderr) == (0, "")
    for part in (
        "train.py --steps 3",
        "3 alloc, 1 free",
        "150 B",
        "blocks.0/aten::mm",
        "Sizes of allocations",
        "Lifetimes",
        "12 events are known to be lost (the disk was full)",
        "5 frees had no allocation",
        "Live at the end: 58 B",
        f"Next: wb replay {trace} --allocator all",
    ):
        assert part in done.stdout


def test_names_from_a_file_cannot_command_the_terminal(
    wb: Callable[..., Done], trace: Path
) -> None:
    done = wb("info", trace, "--events", "3:4")
    assert "[red]aten::add" in done.stdout
    assert "\x1b" not in done.stdout


def test_a_device_from_a_file_cannot_command_the_terminal(
    wb: Callable[..., Done], tmp_path: Path
) -> None:
    path = write_trace(tmp_path / "run.parquet", device=["[/red]\x1b[31mx"] * len(GOOD))
    done = wb("info", path)
    assert (done.returncode, done.stderr) == (0, "")
    assert "[/red]" in done.stdout
    assert "\x1b" not in done.stdout


def test_no_name(wb: Callable[..., Done]) -> None:
    done = wb("info", "")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "no trace was named" in done.stderr


@pytest.mark.parametrize("columns", [20, 40, 79])
def test_narrow_terminals(wb: Callable[..., Done], trace: Path, columns: int) -> None:
    done = wb("info", trace, columns=columns)
    assert done.returncode == 0


def test_json(wb: Callable[..., Done], trace: Path) -> None:
    done = wb("info", trace, "--json")
    (summary,) = json.loads(done.stdout)["files"]
    assert summary["devices"][0]["peak_bytes"] == 150
    assert summary["metadata"]["lost_events"] == 12
    rows = json.loads(wb("info", trace, "--json", "--events", "1:3").stdout)
    assert [row["event"] for row in rows["events"]] == ["alloc", "free"]
    assert rows["first_event"] == 1


@pytest.mark.parametrize(("wanted", "numbers"), [("1:3", [1, 2]), (":1", [0]), ("2:", [2, 3])])
def test_rows(wb: Callable[..., Done], trace: Path, wanted: str, numbers: list[int]) -> None:
    lines = wb("info", trace, "--events", wanted).stdout.splitlines()
    assert "label" not in lines[1]
    assert [int(line.split()[0]) for line in lines[2 : 2 + len(numbers)]] == numbers
    assert "device cpu" in lines[-1]


@pytest.mark.parametrize("wanted", ["5", "a:b", "-1:3", "3:1", "4:9", "0:-1"])
def test_a_range_that_is_none(wb: Callable[..., Done], trace: Path, wanted: str) -> None:
    done = wb("info", trace, f"--events={wanted}")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("wb: --events")


def test_a_folder_of_ranks(wb: Callable[..., Done], tmp_path: Path) -> None:
    write_trace(tmp_path / "rank=0.parquet")
    write_trace(tmp_path / "rank=1.parquet", [("alloc", 0, 2**30)])
    done = wb("info", tmp_path)
    assert "rank=0.parquet" in done.stdout
    assert "rank=1.parquet (the one with the highest peak)" in " ".join(done.stdout.split())
    assert len(json.loads(wb("info", tmp_path, "--json").stdout)["files"]) == 2
    refused = wb("info", tmp_path, "--events", "0:1")
    assert (refused.returncode, "holds 2 files" in refused.stderr) == (2, True)


def test_ranks_are_listed_with_their_devices(wb: Callable[..., Done], tmp_path: Path) -> None:
    for rank in range(2):
        write_trace(
            tmp_path / f"rank={rank}.parquet",
            [("alloc", 0, 100), ("alloc", 1, 200)],
            device=["cpu", f"cuda:{rank}"],
            metadata={"rank": rank, "world_size": 2},
        )
    lines = wb("info", tmp_path).stdout.splitlines()
    for rank in range(2):
        assert any(f"rank={rank}.parquet" in line and f"cuda:{rank}" in line for line in lines)


def held_trace(path: Path, **peaks: int | None) -> Path:
    """100 bytes that another stream holds after their free, and 50 more meanwhile."""
    events = [
        ("alloc", 0, 100),
        ("record_stream", 0, 100),
        ("free", 0, 100),
        ("alloc", 1, 50),
        ("free_completed", 0, 100),
        ("alloc", 2, 60),
    ]
    about = {"reported_peaks": {"cuda:0": peaks}, "allocator": {"backend": "native"}}
    streams = [0, 1, 0, 0, 0, 0]
    return write_trace(path, events, about, device=["cuda:0"] * len(events), stream=streams)


def test_the_trace_is_held_against_the_peak_that_pytorch_reported(
    wb: Callable[..., Done], tmp_path: Path
) -> None:
    right = wb("info", held_trace(tmp_path / "right.parquet", requested=150))
    assert "peak of requested bytes on cuda:0: as PyTorch reported it" in right.stdout
    assert "Warning" not in right.stdout
    wrong = wb("info", held_trace(tmp_path / "wrong.parquet", requested=160))
    words = " ".join(wrong.stdout.split())
    assert "PyTorch reported a peak of 160 requested bytes, the trace comes to 150" in words
    later = held_trace(tmp_path / "later.parquet", requested=160, requested_before=160)
    assert json.loads(wb("info", later, "--json").stdout)["files"][0]["peak_checks"] == []
    never = [("alloc", 0, 100), ("record_stream", 0, 100), ("free", 0, 100), ("alloc", 1, 50)]
    about = {
        "reported_peaks": {"cuda:0": {"requested": 150}},
        "allocator": {"backend": "native"},
    }
    for stream, in_trace in ((1, 150), (0, 100)):  # use on its own stream holds nothing
        path = tmp_path / "never.parquet"
        write_trace(path, never, about, device=["cuda:0"] * 4, stream=[0, stream, 0, 0])
        (check,) = json.loads(wb("info", path, "--json").stdout)["files"][0]["peak_checks"]
        assert check["in_trace"] == in_trace
    unknown = held_trace(tmp_path / "unknown.parquet", requested=None)
    assert json.loads(wb("info", unknown, "--json").stdout)["files"][0]["peak_checks"] == []


def test_a_ring_says_where_it_begins(wb: Callable[..., Done], tmp_path: Path) -> None:
    path = write_trace(tmp_path / "run.parquet", metadata={"dropped_events": 12345})
    assert "begins 12,345 events into the recording" in " ".join(wb("info", path).stdout.split())


def test_no_events(wb: Callable[..., Done], tmp_path: Path) -> None:
    path = write_trace(tmp_path / "run.parquet", [])
    assert "holds no events" in wb("info", path).stdout
    assert wb("info", path, "--events", "0:1").returncode == 2


def test_as_a_process_of_its_own(trace: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-P", "-m", "workbench", "info", trace], capture_output=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, b"")


def test_broken_traces_are_one_sentence(wb: Callable[..., Done], tmp_path: Path) -> None:
    twice = write_trace(tmp_path / "twice.parquet", [*GOOD, ("free", 0, 100)])
    text = tmp_path / "text.parquet"
    text.write_text("not a trace")
    for path, problem in (
        (twice, "row 4, column id: id 0 is freed a second time [freed-twice]"),
        (text, "is not a Parquet file [not-a-parquet-file]"),
        (tmp_path / "none.parquet", "there is no such file or folder"),
    ):
        done = wb("info", path)
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr.startswith(f"wb: {path}: {problem}; ")
        assert len(done.stderr.splitlines()) == 1
