"""The hook for pinned memory, in front of a stand-in for PyTorch's allocator of it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("torch")

from workbench.common import torch_build
from workbench.recorders import recording
from workbench.recorders.spool import convert_process
from workbench.recorders.trace import open_trace

pytestmark = pytest.mark.torch

SCRIPT = """
import ctypes, sys, torch
memory, hook, pinned = (ctypes.CDLL(path) for path in sys.argv[1:4])
hook.wb_start.argtypes = [ctypes.c_char_p, ctypes.c_uint64, ctypes.c_uint64, ctypes.c_int]
hook.wb_face.restype = ctypes.c_void_p
pinned.wb_pinned_start.argtypes = [ctypes.c_void_p, ctypes.c_void_p]
memory.allocate.argtypes, memory.allocate.restype = [ctypes.c_size_t], ctypes.c_void_p
memory.release.argtypes = memory.use.argtypes = [ctypes.c_void_p]

memory.install()
before = memory.allocate(50)
assert hook.wb_start(sys.argv[4].encode(), 1 << 30, 0, 1) == 0
NUMBER = ctypes.CFUNCTYPE(ctypes.c_int32, ctypes.c_int, ctypes.c_int64)
number = NUMBER(lambda device, stream: 4)
pinned.wb_pinned_start(hook.wb_face(), number)
assert not memory.is_installed()
first, second, nothing = memory.allocate(100), memory.allocate(200), memory.allocate(0)
assert memory.use(first) == 1
assert memory.use(nothing) == 0
memory.release(nothing)
memory.release(before)
memory.release(first)
assert memory.empty_cache() == 1
pinned.wb_pinned_stop()
assert memory.is_installed()
memory.release(memory.allocate(300))
memory.release(second)
hook.wb_stop()
"""


def test_pinned_memory_is_recorded(tmp_path: Path) -> None:
    source = Path(__file__).parents[1] / "data" / "pinned_memory.cpp"
    memory = torch_build.build("pinned_memory", [source], libraries=("c10", "torch_cpu"))
    agent = recording.load_agent()
    hook = agent.build_parts(torch_build, None, False, False, cuda=False)["hook"]
    pinned = agent.build_pinned_part(torch_build, torch_build.find_torch())
    spool = tmp_path / "process-1-1"
    spool.mkdir()
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(memory), hook, pinned, str(spool)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    convert_process(spool, tmp_path / "run.parquet", metadata={})
    (file,) = open_trace(tmp_path / "run.parquet").files
    rows = [row for batch in file.batches() for row in batch.to_pylist()]
    assert [
        (row["event"], row["id"], row["size"], row["stream"])
        for row in rows
        if row["device"] == "pinned"
    ] == [
        ("alloc", 0, 100, 0),
        ("alloc", 1, 200, 0),
        ("record_stream", 0, 100, 4),
        ("free", 0, 100, 0),
        ("empty_cache", -1, 0, 0),
        ("free", 1, 200, 0),
    ]
