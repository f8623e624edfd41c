"""`wb record` as a user meets it: the program as in a plain run, and a trace at its end."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytest.importorskip("torch")

import pyarrow.parquet as pq

from workbench.recorders.trace import open_trace

pytestmark = pytest.mark.torch

WB = [sys.executable, "-m", "workbench"]
TENSORS = "import torch\nkept = [torch.ones(1000) for _ in range(50)]\n"


def variables(**more: str) -> dict[str, str]:
    kept = {name: text for name, text in os.environ.items() if name != "PYTHONSAFEPATH"}
    return {**kept, **more}


def wb(folder: Path, *arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*WB, *arguments],
        cwd=folder,
        env=variables(**more),
        capture_output=True,
        text=True,
        check=False,
    )


def script(folder: Path, text: str, name: str = "train.py") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def sizes(path: Path, event: str = "alloc") -> list[int]:
    found: list[int] = []
    for file in open_trace(str(path)).files:
        for batch in file.batches(columns=["event", "size"]):
            rows = batch.to_pydict()
            found += [s for e, s in zip(rows["event"], rows["size"], strict=True) if e == event]
    return found


SURROUNDINGS = """
import json, os, signal, sys
import torch
if __name__ == "__main__":
    print(json.dumps({
        "argv": sys.argv, "path": sys.path, "modules": sorted(
            name for name in sys.modules if "sitecustomize" in name or "workbench" in name),
        "main": __file__, "stdin": sys.stdin.read(), "signal": str(signal.getsignal(2)),
        "finders": [type(f).__name__ for f in sys.meta_path],
        "loader": sorted(vars(torch.__spec__.loader))}))
"""


def test_the_program_finds_everything_as_in_a_plain_run(tmp_path: Path) -> None:
    script(tmp_path, SURROUNDINGS)
    arguments = ["train.py", "--lr", "3", "--", "-o", "x"]
    plain, recorded = (
        subprocess.run(
            [*command, *arguments],
            cwd=tmp_path,
            env=variables(),
            input="in",
            capture_output=True,
            text=True,
            check=True,
        )
        for command in ([sys.executable], [*WB, "record"])
    )
    seen, expected = json.loads(recorded.stdout), json.loads(plain.stdout)
    ours = {"_workbench_recorder", "_workbench_torch_build", "_workbench_phases", "_workbench_cuda"}
    assert set(seen.pop("modules")) - ours == set(expected.pop("modules"))
    assert seen == expected
    assert open_trace(str(tmp_path / "train.parquet")).metadata["program"] == arguments
    assert not list(tmp_path.glob("*.spool"))


def test_names_of_the_users_own_meet_none_of_ours(tmp_path: Path) -> None:
    own, custom = tmp_path / "own", tmp_path / "custom"
    own.mkdir()
    custom.mkdir()
    names = ("replay", "reports", "recorders", "workbench", "agent", "phases")
    for name in names:
        script(own, f"print('own {name}')\n", f"{name}.py")
    script(custom, "print('own sitecustomize')\n", "sitecustomize.py")
    text = "import torch\n" + "".join(f"import {name}\n" for name in names)
    script(own, text + "import sitecustomize; print(sitecustomize.__file__)\n")
    done = wb(tmp_path, "record", "own/train.py", PYTHONPATH=str(custom))
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stdout.splitlines() if line != "own sitecustomize"]
    assert lines == [*(f"own {name}" for name in names), str(custom / "sitecustomize.py")]
    assert "own sitecustomize" in done.stdout
    assert (tmp_path / "train.parquet").exists()


@pytest.mark.parametrize(
    ("end", "code"),
    [
        ("import sys; sys.exit(3)", 3),
        ("raise ValueError('mine')", 1),
        ("import os; os._exit(7)", 7),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", 137),
        ("import os, signal; os.kill(os.getpid(), signal.SIGTERM)", 143),
    ],
)
def test_exit_codes_pass_through_and_the_trace_is_kept(tmp_path: Path, end: str, code: int) -> None:
    script(tmp_path, TENSORS + end + "\n")
    done = wb(tmp_path, "record", "train.py")
    assert done.returncode == code, done.stderr
    assert sizes(tmp_path / "train.parquet").count(4000) == 50
    metadata = open_trace(str(tmp_path / "train.parquet")).metadata
    assert metadata["complete"]
    assert metadata["ended"] == ("killed" if code > 128 else "exit")
    assert ("mine" in done.stderr) == ("mine" in end)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_reach_the_program(tmp_path: Path, number: signal.Signals) -> None:
    script(tmp_path, TENSORS + "import time\nprint('ready', flush=True)\ntime.sleep(60)\n")
    with subprocess.Popen(
        [*WB, "record", "train.py"], cwd=tmp_path, env=variables(), stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True, start_new_session=True,
    ) as started:  # fmt: skip
        assert started.stdout is not None
        assert started.stdout.readline() == "ready\n"
        if number == signal.SIGINT:  # as a terminal does: to all of them
            os.killpg(started.pid, number)
        else:
            started.send_signal(number)
        _, errors = started.communicate(timeout=60)
    assert started.returncode == 128 + number, errors
    assert ("KeyboardInterrupt" in errors) == (number == signal.SIGINT)
    assert sizes(tmp_path / "train.parquet").count(4000) == 50


FAMILY = """
import multiprocessing, os, subprocess, sys, threading
import torch
from torch.utils.data import DataLoader, TensorDataset

def work():
    return [torch.ones(2000) for _ in range(20)]

if __name__ == "__main__":
    threads = [threading.Thread(target=work) for _ in range(200)]
    for thread in threads: thread.start()
    for thread in threads: thread.join()
    data = TensorDataset(torch.randn(8, 3))
    assert len(list(DataLoader(data, batch_size=2, num_workers=1))) == 4
    assert len(list(DataLoader(data, batch_size=2, num_workers=1,
                               multiprocessing_context="spawn"))) == 4
    child = os.fork()
    if child == 0:
        work()
        os._exit(0)
    os.waitpid(child, 0)
    sys.stdout.flush()
    os.execv(sys.executable, [sys.executable, "-c", "import torch; x = torch.ones(3000)"])
"""


def test_threads_workers_forks_and_exec(tmp_path: Path) -> None:
    script(tmp_path, FAMILY)
    done = wb(tmp_path, "record", "-o", "run.parquet", "train.py")
    assert done.returncode == 0, done.stderr
    trace = open_trace(str(tmp_path / "run.parquet"))
    assert sizes(tmp_path / "run.parquet").count(8000) == 4000
    assert len(trace.metadata["threads"]) >= 201
    assert trace.metadata["forked_children"] == 2  # the worker and the child
    others = sorted(tmp_path.glob("run.pid-*.parquet"))
    replaced = [path for path in others if 12000 in sizes(path)]
    assert len(replaced) == 1  # what the program became by exec
    assert len(others) >= 2  # and the spawned worker


def test_what_lies_where_a_childs_trace_would_go_is_kept(tmp_path: Path) -> None:
    text = "import os, torch\nx = torch.ones(10)\npid = os.fork()\n"
    text += "if pid: os.waitpid(pid, 0)\n"
    text += "else:\n    y = [torch.ones(2000) for _ in range(5)]\n"
    text += "    open(f'train.pid-{os.getpid()}.parquet', 'w').write('of another program')\n"
    script(tmp_path, text)
    done = wb(tmp_path, "record", "--children", "train.py")
    assert done.returncode == 0, done.stderr
    kept, child = sorted(tmp_path.glob("train.pid-*.parquet"), key=lambda path: len(path.name))
    assert kept.read_text(encoding="utf-8") == "of another program"
    assert child.name == f"{kept.stem}-2.parquet"
    assert sizes(child).count(8000) == 5


def test_forked_children_are_recorded_when_asked(tmp_path: Path) -> None:
    text = "import os, torch\nx = torch.ones(10)\npid = os.fork()\n"
    text += "y = [torch.ones(2000) for _ in range(5)]\nif pid: os.waitpid(pid, 0)\n"
    script(tmp_path, text)
    done = wb(tmp_path, "record", "--children", "train.py")
    assert done.returncode == 0, done.stderr
    (child,) = tmp_path.glob("train.pid-*.parquet")
    assert sizes(child).count(8000) == 5
    assert sizes(tmp_path / "train.parquet").count(8000) == 5
    assert (
        open_trace(str(child)).metadata["parent_process_id"]
        == (open_trace(str(tmp_path / "train.parquet")).metadata["process_id"])
    )


def test_steps_and_phases_of_a_training(tmp_path: Path) -> None:
    text = """
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
model = nn.Linear(4, 4)
optimizer = torch.optim.Adam(model.parameters())
other = torch.optim.SGD(model.parameters(), lr=0.1)
for (x,) in DataLoader(TensorDataset(torch.randn(6, 4)), batch_size=2):
    loss = model(x).sum()
    loss.backward()
    optimizer.step()
    other.step()
    optimizer.zero_grad()
"""
    script(tmp_path, text)
    done = wb(tmp_path, "record", "train.py")
    assert done.returncode == 0, done.stderr
    rows = [
        row
        for batch in open_trace(str(tmp_path / "train.parquet"))
        .files[0]
        .batches(columns=["event", "step", "phase"])
        for row in zip(*batch.to_pydict().values(), strict=True)
    ]
    order: list[tuple[int, str]] = []
    for event, step, phase in rows:
        if event == "alloc" and (not order or order[-1] != (step, phase)):
            order.append((step, phase))
    assert order[0] == (0, "other")
    for step in range(3):
        phases = [phase for at, phase in order if at == step]
        assert "data" in phases
        assert phases[phases.index("backward") - 1] == "forward"
        assert phases.index("backward") < phases.index("optimizer")
    assert max(step for step, _ in order) <= 3


@pytest.mark.parametrize("kind", ["-m", "--exec"])
def test_modules_and_commands(tmp_path: Path, kind: str) -> None:
    script(tmp_path, TENSORS + "import sys\nprint(sys.argv[1:])\n", "tool.py")
    command = ["tool", "-o", "mine"] if kind == "-m" else [sys.executable, "tool.py", "-o", "mine"]
    done = wb(tmp_path, "record", "-o", "run.parquet", kind, *command)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "['-o', 'mine']\n"
    assert sizes(tmp_path / "run.parquet").count(4000) == 50


def test_no_tensors_is_a_trace_and_no_torch_is_none(tmp_path: Path) -> None:
    script(tmp_path, "import torch\n", "empty.py")
    assert wb(tmp_path, "record", "empty.py").returncode == 0
    assert open_trace(str(tmp_path / "empty.parquet")).metadata["complete"]
    script(tmp_path, "print('hello')\n", "plain.py")
    done = wb(tmp_path, "record", "plain.py")
    assert (done.returncode, done.stdout) == (1, "hello\n")
    assert "imported torch" in done.stderr
    assert not list(tmp_path.glob("plain.parquet*"))


def test_a_spool_limit_ends_the_recording_and_counts_the_rest(tmp_path: Path) -> None:
    text = "import torch\nfor _ in range(5000): x = torch.ones(10)\nprint('went on')\n"
    script(tmp_path, text)
    done = wb(tmp_path, "record", "--spool-limit", "100KiB", "train.py")
    assert (done.returncode, done.stdout) == (0, "went on\n")
    assert "INCOMPLETE" in done.stderr
    metadata = open_trace(str(tmp_path / "train.parquet")).metadata
    assert not metadata["complete"]
    wb(tmp_path, "record", "-o", "whole.parquet", "train.py")
    whole = open_trace(str(tmp_path / "whole.parquet")).metadata
    assert metadata["events"] + metadata["lost_events"] == whole["events"]
    assert metadata["events"] > 2000


def test_a_limit_too_small_for_any_event_counts_them_all(tmp_path: Path) -> None:
    script(tmp_path, "import torch\nfor _ in range(50): x = torch.ones(10)\nprint('went on')\n")
    done = wb(tmp_path, "record", "--spool-limit", "1000", "train.py")
    assert (done.returncode, done.stdout) == (0, "went on\n")
    assert "INCOMPLETE" in done.stderr
    metadata = open_trace(str(tmp_path / "train.parquet")).metadata
    assert (metadata["complete"], metadata["events"]) == (False, 0)
    assert metadata["lost_events"] >= 99


def test_a_shell_that_starts_the_program_leaves_the_name_to_it(tmp_path: Path) -> None:
    script(tmp_path, TENSORS)
    line = f"'{sys.executable}' train.py | cat"
    done = wb(tmp_path, "record", "-o", "run.parquet", "--exec", "sh", "-c", line)
    assert done.returncode == 0, done.stderr
    assert sizes(tmp_path / "run.parquet").count(4000) == 50
    assert [path.name for path in tmp_path.glob("*.parquet")] == ["run.parquet"]


def test_a_program_that_removes_the_spool_is_told_so(tmp_path: Path) -> None:
    text = (
        "import os, shutil\nimport torch\nshutil.rmtree('train.parquet.spool')\nprint('went on')\n"
    )
    script(tmp_path, text)
    done = wb(tmp_path, "record", "train.py")
    assert (done.returncode, done.stdout) == (1, "went on\n")
    assert "disappeared while the program ran" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_damaged_process_does_not_keep_the_others_from_recovery(tmp_path: Path) -> None:
    script(tmp_path, "import os, signal\n" + TENSORS + "os.kill(os.getppid(), signal.SIGKILL)\n")
    wb(tmp_path, "record", "train.py")
    spool = tmp_path / "train.parquet.spool"
    damaged = spool / "process-1-999999999999999999"
    damaged.mkdir()
    (damaged / "control").write_bytes(b"WBSPOOL1")
    deadline = time.monotonic() + 60
    while (done := wb(tmp_path, "recover", str(spool), "--force")).returncode == 2:
        if "still records" not in done.stderr or time.monotonic() > deadline:
            break
        time.sleep(0.1)
    assert done.returncode == 2
    assert "process-1-999999999999999999" in done.stderr
    assert "damaged" in done.stderr
    assert "Traceback" not in done.stderr
    assert sizes(tmp_path / "train.parquet").count(4000) == 50
    assert spool.is_dir()


@pytest.mark.parametrize("about", ["[]", '{"output": 5}', "[" * 200_000, "{"])
def test_recover_refuses_a_damaged_description(tmp_path: Path, about: str) -> None:
    spool = tmp_path / "run.parquet.spool"
    spool.mkdir()
    (spool / "recording.json").write_text(about)
    done = wb(tmp_path, "recover", str(spool))
    assert done.returncode == 2
    assert "Traceback" not in done.stderr


def test_a_killed_parent_leaves_what_recover_saves(tmp_path: Path) -> None:
    script(tmp_path, TENSORS + "print('ready', flush=True)\nwhile input() != 'go on': pass\n")
    with subprocess.Popen(
        [*WB, "record", "train.py"], cwd=tmp_path, env=variables(), stdout=subprocess.PIPE,
        stdin=subprocess.PIPE, text=True,
    ) as started:  # fmt: skip
        assert started.stdout is not None
        assert started.stdin is not None
        started.stdout.readline()
        second = wb(tmp_path, "record", "train.py")
        assert second.returncode == 2
        assert "right now" in second.stderr
        started.kill()
        started.wait()
        early = wb(tmp_path, "recover", "train.parquet.spool")
        assert early.returncode == 2
        assert "still records" in early.stderr
        left = wb(tmp_path, "record", "train.py")
        assert left.returncode == 2  # not thrown away unasked
        assert "wb recover" in left.stderr
        started.stdin.write("go on\n")
        started.stdin.flush()
        started.stdout.read()  # until the program ends
        time.sleep(0.5)
    full = subprocess.run(
        ["bash", "-c", 'ulimit -f 2; exec "$@"', "-", *WB, "recover", "train.parquet.spool"],
        cwd=tmp_path, env=variables(), capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert full.returncode == 1
    assert "wb recover" in full.stderr
    assert not (tmp_path / "train.parquet").exists()
    done = wb(tmp_path, "recover", "train.parquet.spool")
    for _ in range(50):  # the end of its output is a moment before its own
        if "still records" not in done.stderr:
            break
        time.sleep(0.1)
        done = wb(tmp_path, "recover", "train.parquet.spool")
    assert done.returncode == 0, done.stderr
    assert sizes(tmp_path / "train.parquet").count(4000) == 50
    assert not (tmp_path / "train.parquet.spool").exists()


def test_recover_takes_spools_only(tmp_path: Path) -> None:
    done = wb(tmp_path, "recover", ".")
    assert done.returncode == 2
    assert "not a spool folder" in done.stderr


def test_wrong_use_is_said_before_the_program_starts(tmp_path: Path) -> None:
    script(tmp_path, "print('started')\n")
    (tmp_path / "old.parquet").write_text("precious")
    for arguments, words in (
        (["nosuch.py"], "nosuch.py does not exist"),
        (["-o", "missing/run.parquet", "train.py"], "missing does not exist"),
        (["-o", "old.parquet", "train.py"], "--force"),
        (["--scope", "color", "train.py"], "'color'"),
        (["--spool-limit", "8Gb", "train.py"], "8Gb"),
        (["-m", "--exec", "train.py"], "exclude"),
        ([], "no program"),
    ):
        done = wb(tmp_path, "record", *arguments)
        assert (done.returncode, done.stdout) == (2, ""), done.stderr
        assert words in done.stderr
        assert "Traceback" not in done.stderr
    assert (tmp_path / "old.parquet").read_text() == "precious"
    assert not list(tmp_path.glob("*.spool"))


def test_no_compiler_is_one_sentence(tmp_path: Path) -> None:
    script(tmp_path, "print('started')\n")
    done = wb(
        tmp_path, "record", "train.py", CXX="no-such-compiler", XDG_CACHE_HOME=str(tmp_path / "c")
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert "CXX='no-such-compiler' was not found" in done.stderr


FULL_DISK = """
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stddef.h>
static size_t used;
int posix_fallocate(int file, off_t offset, off_t bytes) {
  used += bytes;
  return used > 400000 ? ENOSPC : fallocate(file, 0, offset, bytes) == 0 ? 0 : errno;
}
"""


def test_a_full_disk_ends_the_recording_and_not_the_program(tmp_path: Path) -> None:
    (tmp_path / "full.c").write_text(FULL_DISK)
    library = tmp_path / "full.so"
    build = ["cc", "-shared", "-fPIC", str(tmp_path / "full.c"), "-o", str(library)]
    subprocess.run(build, check=True)
    text = "import torch\nfor _ in range(20000): x = torch.ones(10)\nprint('went on')\n"
    script(tmp_path, text)
    done = wb(tmp_path, "record", "train.py", LD_PRELOAD=str(library))
    assert (done.returncode, done.stdout) == (0, "went on\n"), done.stderr
    metadata = open_trace(str(tmp_path / "train.parquet")).metadata
    assert not metadata["complete"]
    assert "disk" in metadata["lost_reason"]
    assert metadata["events"] + metadata["lost_events"] >= 40000
    assert metadata["events"] > 8000


SCOPED = """
import torch
from torch import nn
class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(7, 1000)
    def forward(self, x):
        return self.inner(x)
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList([Block(), Block()])
    def forward(self, x):
        return self.blocks[1](x)
Net()(torch.randn(3, 7))
"""


def test_scopes_and_stacks_say_what_asked_for_memory(tmp_path: Path) -> None:
    script(tmp_path, SCOPED)
    done = wb(tmp_path, "record", "--scope", "op", "--scope", "module", "--stacks", "train.py")
    assert done.returncode == 0, done.stderr
    table = pq.read_table(tmp_path / "train.parquet").to_pylist()
    (row,) = [row for row in table if row["event"] == "alloc" and row["size"] == 12000]
    assert row["scope"] == "blocks.1.inner/aten::addmm"
    stacks = pq.read_table(tmp_path / "train.stacks.parquet").to_pylist()
    (stack,) = [entry["stack"] for entry in stacks if entry["stack_id"] == row["stack_id"]]
    frames = stack.split(";")
    assert frames[0].endswith("train.py:16 <module>")
    assert any(frame.endswith("train.py:9 forward") for frame in frames)
    assert "recorders/agent" not in stack


WITHIN = """
import warnings
import torch, workbench
warnings.simplefilter("error")
before = torch.ones(500)
for name in ("first", "second"):
    try:
        with workbench.record(f"{name}.parquet"):
            kept = [torch.ones(1000) for _ in range(20)]
            workbench.mark_step(7)
            del before, kept
            raise KeyError("mine")
    except KeyError:
        before = torch.ones(500)
with workbench.record("third.parquet"):
    try:
        with workbench.record("fourth.parquet"):
            pass
    except UserWarning as warning:
        print(warning)
"""


def run_script(folder: Path, text: str) -> subprocess.CompletedProcess[str]:
    """Runs `text` without `wb`: a program that records itself."""
    script(folder, text)
    return subprocess.run(
        [sys.executable, "train.py"], cwd=folder, env=variables(), capture_output=True, text=True,
        check=False,
    )  # fmt: skip


def test_the_context_manager_records_its_block(tmp_path: Path) -> None:
    done = run_script(tmp_path, WITHIN)
    assert done.returncode == 0, done.stderr
    assert "recorded already" in done.stdout
    for name in ("first", "second"):
        assert sizes(tmp_path / f"{name}.parquet").count(4000) == 20
        assert sizes(tmp_path / f"{name}.parquet", "free").count(4000) == 20
        assert 2000 not in sizes(tmp_path / f"{name}.parquet", "free")
        assert pq.read_table(tmp_path / f"{name}.parquet")["step"].to_pylist()[-1] == 7
    assert not (tmp_path / "fourth.parquet").exists()
    assert not list(tmp_path.glob("*.spool"))


OTHERS_RECORD = """
import threading, torch, workbench
with workbench.record("first.parquet"):
    kept = [torch.ones(1000) for _ in range(10)]
def record():
    with workbench.record("second.parquet"):
        begun.set()
        mine = [torch.ones(2000) for _ in range(3000)]
        del mine
        done.wait()
begun, done = threading.Event(), threading.Event()
recorder = threading.Thread(target=record)
recorder.start()
begun.wait()
theirs = [torch.ones(3000) for _ in range(3000)]
del theirs, kept
done.set()
recorder.join()
"""


def test_one_thread_records_what_another_does(tmp_path: Path) -> None:
    done = run_script(tmp_path, OTHERS_RECORD)
    assert done.returncode == 0, done.stderr
    assert sizes(tmp_path / "first.parquet").count(4000) == 10
    for event in ("alloc", "free"):
        assert sizes(tmp_path / "second.parquet", event).count(8000) == 3000
        assert sizes(tmp_path / "second.parquet", event).count(12000) == 3000
    assert wb(tmp_path, "info", "second.parquet").returncode == 0  # it breaks no rule
