"""What every command keeps: what it reads, devices, the terminal; and how it ends when told to."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

MakeTrace = Callable[..., Path]
PLAN = "id,lower,upper,size\n1,0,4,10\n2,4,6,20\n"
WB = (sys.executable, "-P", "-m", "workbench")
ESC = "\x1b]0;title\x07\n"


def wb(folder: Path, *arguments: str | bytes | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*WB, *arguments],
        cwd=folder,
        env={**os.environ, "COLUMNS": "120", "NO_COLOR": "1"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def refused(run: subprocess.CompletedProcess[str], words: str) -> None:
    assert (run.returncode, run.stdout) == (2, "")
    assert run.stderr.startswith("wb: ")
    assert run.stderr.count("\n") == 1
    assert run.stderr[:-1].isprintable()
    assert words in run.stderr


@pytest.fixture
def trace(tmp_path: Path, make_trace: MakeTrace) -> Path:
    (tmp_path / "plan.csv").write_text(PLAN)
    (tmp_path / "log.csv").symlink_to("plan.csv")
    (tmp_path / "train.py").write_text("print('ran')")
    return make_trace()


COMMANDS = {
    "import": ("import", "plan.csv", "--force", "-o"),
    "export": ("export", "run.parquet", "--to", "minimalloc", "--force", "-o"),
    "why": ("why", "run.parquet", "--force", "--html"),
    "replay": ("replay", "run.parquet", "-a", "caching", "--repeat", "1", "--force", "--html"),
    "report": ("report", "results", "--force", "-o"),
    "record": ("record", "--force", "-o"),
    "plan": ("plan", "run.parquet", "--force", "-o"),
}


@pytest.mark.parametrize(
    ("command", "output", "read"),
    [
        ("import", "plan.csv", "plan.csv"),
        ("import", "log.csv", "plan.csv"),
        ("export", "run.parquet", "run.parquet"),
        ("export", "./run.stacks.parquet", "run.stacks.parquet"),
        ("why", "run.parquet", "run.parquet"),
        ("replay", "run.parquet", "run.parquet"),
        ("report", "results/cell/cell.json", "results/cell/cell.json"),
        ("record", "train.py", "train.py"),
        ("plan", "run.parquet", "run.parquet"),
    ],
)
def test_no_command_replaces_what_it_reads(
    command: str, output: str, read: str, trace: Path
) -> None:
    folder = trace.parent
    (folder / "results" / "cell").mkdir(parents=True)
    (folder / "results" / "cell" / "cell.json").write_text("{}")
    (folder / "run.stacks.parquet").write_text("stacks")
    before = (folder / read).read_bytes()
    program = ["train.py"] if command == "record" else []
    refused(wb(folder, *COMMANDS[command], output, *program), "is read by this command")
    assert (folder / read).read_bytes() == before
    assert not (folder / output).is_symlink() or command == "import"


@pytest.mark.parametrize("command", COMMANDS)
def test_no_command_replaces_a_device_or_a_pipe(command: str, trace: Path) -> None:
    folder = trace.parent
    os.mkfifo(folder / "pipe")
    (folder / "device").symlink_to("/dev/full")
    program = ["train.py"] if command == "record" else []
    for name in ("pipe", "device"):
        refused(wb(folder, *COMMANDS[command], name, *program), "is a device, pipe or socket")
    assert (folder / "pipe").is_fifo()
    assert Path("/dev/full").is_char_device()


def test_an_import_through_a_link_writes_what_it_points_to(trace: Path) -> None:
    folder = trace.parent
    (folder / "there").mkdir()
    (folder / "link.parquet").symlink_to("there/real.parquet")
    assert wb(folder, "import", "plan.csv", "-o", "link.parquet").returncode == 0
    assert (folder / "link.parquet").is_symlink()
    assert wb(folder, "info", "there/real.parquet").returncode == 0


@pytest.mark.parametrize(
    "arguments",
    [
        ("import", "pipe"),
        ("info", "pipe"),
        ("why", "pipe"),
        ("fit", "pipe", "-a", "caching"),
        ("tune", "pipe", "--quick"),
        ("export", "pipe", "-o", "x.csv"),
        ("replay", "pipe", "-a", "caching"),
        ("plan", "pipe"),
        ("plan", "pipe", "--check", "run.parquet"),
    ],
)
def test_a_pipe_is_not_waited_for(arguments: tuple[str, ...], trace: Path) -> None:
    os.mkfifo(trace.parent / "pipe")
    run = wb(trace.parent, *arguments)
    assert run.returncode in (1, 2)
    assert "Traceback" not in run.stderr
    assert "neither a file nor a folder" in run.stderr or "is not a file" in run.stderr


def test_names_are_printed_without_commands_to_the_terminal(trace: Path) -> None:
    folder = trace.parent
    refused(wb(folder, "why", ESC), "there is no such file")
    refused(wb(folder, "import", ESC), r"\x1b]0;title\x07\n: cannot be read")
    trace.rename(folder / f"{ESC}.parquet")
    shown = r"$'\x1b]0;title\x07\x0a.parquet'"
    for arguments in (
        ("why", f"{ESC}.parquet"),
        ("fit", f"{ESC}.parquet", "-a", "caching"),
        ("tune", f"{ESC}.parquet", "--quick"),
        ("import", "plan.csv", "--force", "-o", f"{ESC}.parquet"),
        ("export", f"{ESC}.parquet", "-o", f"{ESC}.csv", "--force"),
    ):
        run = wb(folder, *arguments)
        assert run.returncode == 0, run.stderr
        assert "\x1b" not in run.stdout
        told = run.stdout[run.stdout.index("Next: ") :]
        assert told.removesuffix("\n").isprintable()
        assert shown.replace("parquet", "csv" if arguments[0] == "export" else "parquet") in told


def test_names_that_are_not_utf8(trace: Path) -> None:
    folder = trace.parent
    (folder / "plan.csv").rename(os.fsdecode(bytes(folder / "") + b"/bad\xff.csv"))
    trace.rename(os.fsdecode(bytes(folder) + b"/bad\xff.parquet"))
    refused(wb(folder, "import", b"bad\xff.csv"), r"bad\xff.parquet: the name is not UTF-8")
    refused(wb(folder, "import", b"bad\xff.csv", "-o", b"b\xff.parquet"), "is not UTF-8")
    refused(
        wb(folder, "info", b"bad\xff.parquet"), r"bad\xff.parquet: has a name that is not UTF-8"
    )
    refused(wb(folder, "why", b"bad\xff.parquet"), r"has a name that is not UTF-8; rename it")
    assert wb(folder, "import", b"bad\xff.csv", "-o", "run.parquet").returncode == 0
    assert r"file bad\xff.csv" in wb(folder, "info", "run.parquet").stdout
    run = wb(folder, "why", b"bad\xff.csv")
    assert run.returncode == 0, run.stderr
    assert r"wb import $'bad\xff.csv' -o run.parquet && wb tune run.parquet" in run.stdout


@pytest.mark.parametrize(
    "arguments",
    [
        ("info", "run.parquet"),
        ("why", "run.parquet"),
        ("why", "run.parquet", "--json"),
        ("--help",),
    ],
)
def test_a_reader_that_went_away_is_no_failure(arguments: tuple[str, ...], trace: Path) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    try:
        done = subprocess.run(
            [*WB, *arguments], cwd=trace.parent, stdout=writing, stderr=subprocess.PIPE, check=False
        )
    finally:
        os.close(writing)
    assert (done.returncode, done.stderr) == (0, b"")


# What raises a signal at a moment of the test's choosing, inside the command's own process.
AT_A_MOMENT = """
import builtins, os, signal, sys, weakref
from workbench.__main__ import main
number, place = int(sys.argv[1]), sys.argv[2]
sys.argv = ["wb", "import", "plan.csv", "-o", "run.parquet"]

class Thing:
    pass

def send(*_):
    os.kill(os.getpid(), number)

def begin():
    if place == "import":
        send()
    elif place == "callback":  # as after the import of any module
        thing = Thing()
        kept.append(weakref.ref(thing, send))
        del thing

kept = []
loading = builtins.__import__
def load(name, *arguments, **named):
    found = loading(name, *arguments, **named)
    if name == ("typer" if place == "import" else "workbench.importing") and not done:
        done.append(name)
        begin()
    return found
done = []
builtins.__import__ = load
main()
"""


@pytest.mark.parametrize(
    ("number", "place", "code", "said"),
    [
        (signal.SIGINT, "import", 130, "wb: interrupted\n"),
        (signal.SIGINT, "callback", 130, "wb: interrupted\n"),
        (signal.SIGTERM, "callback", 143, "wb: terminated\n"),
    ],
)
def test_a_signal_is_never_lost(
    number: int, place: str, code: int, said: str, tmp_path: Path
) -> None:
    with (tmp_path / "plan.csv").open("w") as file:
        file.write(PLAN)
        file.writelines(f"{n},{n},{n + 2},8\n" for n in range(300_000))
    done = subprocess.run(
        [sys.executable, "-P", "-c", AT_A_MOMENT, str(int(number)), place],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (code, "", said)
    assert [path.name for path in tmp_path.iterdir()] == ["plan.csv"]
