"""`cpu-caching` against the real `c10::CPUCachingAllocator` of the installed torch."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("torch", reason="the reference is PyTorch's own allocator")

from workbench.common.torch_build import build
from workbench.replay import _engine
from workbench.replay.events import load_trace

pytestmark = pytest.mark.torch

HERE = Path(__file__).parent
EXAMPLES = sorted((HERE.parents[1] / "examples").glob("*.py"))
STEPS = 6
KNOWN = {"alloc": 0, "free": 1, "empty_cache": 2}

Columns = dict[str, Any]
Reference = Callable[[Columns], "Watched"]


@dataclass(frozen=True)
class Watched:
    """What the original did: totals after each event, and the block in each slot at the end."""

    hits: np.ndarray
    misses: np.ndarray
    held: np.ndarray
    serials: np.ndarray


@pytest.fixture(scope="module")
def reference() -> Reference:
    library = ctypes.CDLL(str(build("cpu_caching_reference", [HERE / "cpu_caching_reference.cpp"])))
    replay = library.replay_reference
    replay.restype = ctypes.c_int64

    def run(columns: Columns) -> Watched:
        op = columns["op"]
        codes = np.full(256, 255, np.uint8)
        for name, code in KNOWN.items():
            codes[_engine.OPS[name]] = code
        kinds = codes[op]
        assert (kinds != 255).all()
        count = len(op)
        hits, misses, held = (np.zeros(count, np.int64) for _ in range(3))
        serials = np.zeros(columns["slot_count"], np.int64)

        def pointer(array: np.ndarray) -> ctypes.c_void_p:
            return ctypes.c_void_p(array.ctypes.data)

        remembered = replay(
            ctypes.c_int64(count),
            pointer(kinds),
            pointer(columns["slot"]),
            pointer(columns["size"]),
            ctypes.c_int32(columns["slot_count"]),
            *(pointer(array) for array in (hits, misses, held, serials)),
        )
        assert remembered == (held[-1] if count else 0)
        return Watched(hits, misses, held, serials)

    return run


def assert_the_same(columns: Columns, watched: Watched, backend: str) -> None:
    """Hits, misses and held bytes at every event, and which block each live allocation has."""
    count = len(columns["op"])
    made = _engine.Replay(_engine.Events(**columns), "cpu-caching", backend=backend)
    memory = made.memory(full=True, blocks_at=count - 1 if count else None)
    timeline = memory["timeline"]
    for name, theirs in (
        ("hits", watched.hits),
        ("misses", watched.misses),
        ("reserved", watched.held),
    ):
        different = np.flatnonzero(timeline[name] != theirs)
        assert not different.size, f"{name} differs from event {different[0]} on"
    if memory["blocks"] is None:
        return
    blocks = memory["blocks"]["blocks"]
    live = blocks["state"] == "active_allocated"
    slots = columns["slot"][blocks["slot_event"][live]]
    assert np.array_equal(blocks["segment"][live], watched.serials[slots])
    assert live.sum() == (watched.serials >= 0).sum()


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_the_examples_get_the_same_blocks(
    example: Path, reference: Reference, tmp_path: Path
) -> None:
    trace = tmp_path / "run.parquet"
    variables = {key: text for key, text in os.environ.items() if key != "PYTHONSAFEPATH"}
    recording = [sys.executable, "-P", "-m", "workbench", "record", "-o", str(trace)]
    done = subprocess.run(
        [*recording, str(example), "--steps", str(STEPS)],
        cwd=tmp_path,
        env=variables,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    traffic = load_trace(str(trace))[0].traffic("cpu")
    names = ("op", "slot", "size", "stream", "thread", "slot_count")
    columns: Columns = {name: getattr(traffic, name) for name in names}
    assert len(traffic.op) > 1000
    watched = reference(columns)
    assert watched.hits[-1] > watched.misses[-1]
    assert_the_same(columns, watched, "simulated")


commands = st.lists(
    st.tuples(
        st.sampled_from(["alloc"] * 10 + ["free"] * 9 + ["empty_cache"]),
        # Few different sizes, so that the cache is hit; around the edge between the C library and
        # a mapping of its own too.
        st.sampled_from([1, 63, 64, 65, 1000, 4096, 65535, 65536, 65537, 300_000]),
        st.integers(0, 10**6),
    ),
    max_size=200,
)


@pytest.mark.parametrize("backend", ["host", "simulated"])
@settings(max_examples=150, deadline=None)
@given(drawn=commands)
def test_random_traces_get_the_same_blocks(
    backend: str, reference: Reference, drawn: list[tuple[str, int, int]]
) -> None:
    rows: list[tuple[int, int, int]] = []
    live: list[int] = []
    for number, (op, size, choice) in enumerate(drawn):
        if op == "alloc":
            rows.append((_engine.OPS[op], number, size))
            live.append(number)
        elif op == "empty_cache":
            rows.append((_engine.OPS[op], -1, 0))
        elif live:
            rows.append((_engine.OPS[op], live.pop(choice % len(live)), 0))
    op_column, number_column, size_column = np.array(rows, np.int64).reshape(-1, 3).T
    codes = op_column.astype(np.uint8)
    slot, slot_count = _engine.assign_slots(codes, np.ascontiguousarray(number_column))
    zeros = np.zeros(len(rows), np.int32)
    columns: Columns = {
        "op": codes,
        "slot": slot,
        "size": np.ascontiguousarray(size_column),
        "stream": zeros,
        "thread": zeros,
        "slot_count": slot_count,
    }
    assert_the_same(columns, reference(columns), backend)
