"""Allocators of the user's own: healthy ones are measured, hostile ones diagnosed, one by one."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from command_line import wb
from libraries import EXAMPLE, HOSTILE, build_library
from trace_maker import write_trace

from workbench.common.errors import UsageError
from workbench.replay.job import Options
from workbench.replay.results import CellResult
from workbench.replay.runner import Session, replay_traces

# Rows: three blocks that live together, and one more after the first is gone.
EVENTS = [
    *(("alloc", 0, 4096), ("alloc", 1, 1000), ("alloc", 2, 100_000), ("free", 0, 4096)),
    *(("alloc", 3, 4096), ("free", 1, 1000), ("free", 2, 100_000), ("free", 3, 4096)),
]
# What is said of each library in tests/data/hostile, without its path.
DIAGNOSES = {
    "crash": r"it crashed in allocate at row 2 \(signal SIGSEGV\)",
    "exits": r"it ended the process in free at row 3 \(exit code 0\)",
    "hang": r"it did not come back within 4 s in allocate at row 1",
    "misaligned": r"misaligned memory: the 4096 bytes of row 0 begin at 0x\w+, which is no "
    r"multiple of 16",
    "needs_symbol": r"cannot be loaded: it needs the symbol pool_of_another_library, which nothing "
    r"defines; link it with what does",
    "no_interface": r"knows no interface of version 1 or older",
    "nothing": r"defines neither workbench_allocator nor my_malloc nor malloc; .*",
    "overlaps": r"overlapping memory: the 1000 bytes of row 1 lie at 0x\w+, in the live block of "
    r"row 0 at 0x\w+",
    "returns_null": r"it returned null for its first request, 4096 bytes at row 0, with [0-9.]+ "
    r"\w+ left",
    "same_twice": r"memory handed out twice: the 1000 bytes of row 1 begin where the live block of "
    r"row 0 does",
    "scribbles": r"the block allocated by row 0 is damaged at offset 10 of 4096 bytes",
    "throws": r"it threw a C\+\+ exception \(the pool is closed\) in allocate at row 0",
    "unmaps": r"memory freed under the program: looking at the block of row 0, which is live, "
    r"ended with signal SIG(SEGV|BUS)",
    "unwritable": r"memory that cannot be written: using the block of row 0 ended with signal "
    r"SIGSEGV",
}


def outcome(result: CellResult) -> dict[str, Any]:
    found: dict[str, Any] = result.info["outcome"]
    return found


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, CellResult], Session]:
    """All hostile libraries and one healthy allocator, in one replay."""
    folder = tmp_path_factory.mktemp("hostile")
    assert {source.stem for source in HOSTILE.glob("*.c*")} == set(DIAGNOSES)
    libraries = [build_library(source, folder) for source in sorted(HOSTILE.glob("*.c*"))]
    trace = write_trace(folder / "run.parquet", EVENTS)
    names = ["direct", *(f"pluggable:{library}" for library in libraries)]
    session = replay_traces([str(trace)], names, folder / "out", Options(repeat=1, timeout=4))
    by_name = {
        Path(result.info["allocator"]["settings"].get("library", "direct")).stem: result
        for result in session.results
    }
    return by_name, session


@pytest.mark.parametrize("name", sorted(DIAGNOSES))
def test_what_a_hostile_library_did_is_said_in_one_sentence(
    name: str, hostile: tuple[dict[str, CellResult], Session]
) -> None:
    result = hostile[0][name]
    library = result.info["allocator"]["settings"]["library"]
    assert outcome(result)["status"] == "library_fault"
    said = outcome(result)["reason"]
    assert said.startswith(f"library {library}")
    assert re.fullmatch(DIAGNOSES[name], said.removeprefix(f"library {library}").lstrip(": "))


def test_beside_hostile_libraries_a_healthy_allocator_gets_its_numbers(
    hostile: tuple[dict[str, CellResult], Session],
) -> None:
    by_name, session = hostile
    assert session.errors == []
    assert len(session.failed) == len(DIAGNOSES)
    direct = by_name["direct"].info
    assert direct["outcome"]["status"] == "ok"
    assert direct["latency"]["states"]["steady"]["alloc"]["count"] == 4
    assert direct["memory"]["peaks"]["live_requested"]["bytes"] == 105_096


def test_files_that_are_no_library_are_said_to_be_none(tmp_path: Path) -> None:
    healthy = build_library(EXAMPLE, tmp_path)
    trace = write_trace(tmp_path / "run.parquet", EVENTS)
    (tmp_path / "text.so").write_text("not a library, but long enough to be looked at" * 9)
    (tmp_path / "short.so").write_bytes(b"\x7fELF")
    narrow = bytearray(healthy.read_bytes())
    narrow[4] = 1  # the word size that the file says it is for
    (tmp_path / "narrow.so").write_bytes(narrow)
    (tmp_path / "other.c").write_text("int other(void) { return 1; }\n")
    (tmp_path / "dependent.c").write_text("int other(void);\nint my(void) { return other(); }\n")
    other = build_library(tmp_path / "other.c", tmp_path)
    build_library(tmp_path / "dependent.c", tmp_path, str(other), "-Wl,--no-as-needed")
    other.unlink()
    said = {
        "text.so": "it is not a shared library; build one with cc -shared -fPIC",
        "short.so": "it is not a shared library; build one with cc -shared -fPIC",
        "narrow.so": "it is built for another word size than this process; build it for 64 bits",
        "missing.so": "there is no such file; write its path",
        "dependent.so": f"it needs {other}, which is not there; install that, or name its folder "
        "in LD_LIBRARY_PATH",
    }
    names = [f"pluggable:{tmp_path / name}" for name in said]
    session = replay_traces([str(trace)], names, tmp_path / "out", Options(repeat=1))
    assert {
        Path(result.info["allocator"]["settings"]["library"]).name: outcome(result)["reason"]
        for result in session.results
    } == {
        name: f"library {tmp_path / name} cannot be loaded: {reason}"
        for name, reason in said.items()
    }


def test_a_fault_of_a_library_is_exit_code_1_and_the_others_are_shown(tmp_path: Path) -> None:
    write_trace(tmp_path / "run.parquet", EVENTS)
    build_library(HOSTILE / "overlaps.c", tmp_path)
    done = wb(
        *(tmp_path, "replay", "run.parquet", "--repeat", "1"),
        *("-a", "pluggable:overlaps.so", "-a", "direct"),
    )
    assert done.returncode == 1, done.stderr
    assert "library fault" in done.stdout
    assert "overlapping memory" in " ".join(done.stdout.split())
    assert "Traceback" not in done.stdout + done.stderr


def test_wrong_settings_are_refused_before_anything_runs(tmp_path: Path) -> None:
    write_trace(tmp_path / "run.parquet", EVENTS)
    for allocator, said in (
        ("pluggable", "pluggable needs a library; name one: pluggable:LIB.so"),
        ("pluggable:a.so,abi:dll", "give workbench, torch or malloc"),
        ("pluggable:a.so,abi:malloc,config:x", "only abi:workbench takes a configuration"),
        ("pluggable:a.so,colour:red", "unknown setting 'colour' of pluggable"),
        ('pluggable:"a.so', "has a quote that does not end"),
    ):
        done = wb(tmp_path, "replay", "run.parquet", "-a", allocator)
        assert (done.returncode, said in " ".join(done.stderr.split())) == (2, True), done.stderr


def test_the_example_reports_what_it_holds_and_takes_a_configuration(tmp_path: Path) -> None:
    folder = tmp_path / "a folder, with blanks"
    folder.mkdir()
    library = build_library(EXAMPLE, folder, "-std=c11", "-pedantic")
    trace = write_trace(tmp_path / "run.parquet", EVENTS)
    names = [f'pluggable:"{library}"', f'pluggable:"{library}",config:chunk_kib=64']
    session = replay_traces([str(trace)], names, tmp_path / "out", Options(repeat=2))
    default, small = session.results
    assert [outcome(result)["status"] for result in session.results] == ["ok", "ok"]
    assert default.info["allocator"]["settings"] == {"library": str(library)}
    assert default.info["memory"]["peaks"]["reserved"]["bytes"] == 2 << 20
    # Chunks of 64 KiB, and 100,000 bytes by themselves.
    assert small.info["memory"]["peaks"]["reserved"]["bytes"] == (64 << 10) + 100_032
    assert small.info["memory"]["driver_calls"]["alloc"] == 2
    assert default.info["latency"]["source"] == "library"
    assert default.info["memory"]["waterfall"] is None
    assert default.timeline["reserved_max"].max() == 2 << 20
    assert default.timeline["largest_free_max"].isna().all()
    with pytest.raises(UsageError, match="a library does not tell where its blocks lie"):
        default.snapshot_at("peak")


def test_a_configuration_that_will_not_do_is_the_librarys_to_refuse(tmp_path: Path) -> None:
    library = build_library(EXAMPLE, tmp_path)
    trace = write_trace(tmp_path / "run.parquet", EVENTS)
    names = [f"pluggable:{library},config:chunk_kib=1"]
    session = replay_traces([str(trace)], names, tmp_path / "out", Options(repeat=1))
    assert (
        "chunk_kib is 1; give a number from 4 to 1048576" in outcome(session.results[0])["reason"]
    )


# As PyTorch's documentation has it, over malloc.
PYTORCH = """
#include <sys/types.h>
#include <stdlib.h>
typedef void* cudaStream_t;
extern "C" {
void* my_malloc(ssize_t size, int device, cudaStream_t stream) {
   (void)device; (void)stream;
   return malloc(size);
}
void my_free(void* ptr, ssize_t size, int device, cudaStream_t stream) {
   (void)size; (void)device; (void)stream;
   free(ptr);
}
}
"""


def test_a_library_for_pytorch_runs_unchanged_and_tells_nothing(tmp_path: Path) -> None:
    (tmp_path / "alloc.cc").write_text(PYTORCH)
    library = build_library(tmp_path / "alloc.cc", tmp_path)
    events = [*EVENTS[:3], ("record_stream", 2, 0), *EVENTS[3:]]
    trace = write_trace(tmp_path / "run.parquet", events)
    session = replay_traces(
        [str(trace)], [f"pluggable:{library}"], tmp_path / "out", Options(repeat=1)
    )
    info = session.results[0].info
    assert info["outcome"]["status"] == "ok"
    memory = info["memory"]
    assert memory["peaks"]["requested"]["bytes"] == 105_096
    for name in ("allocated", "active", "reserved"):
        assert memory["peaks"][name] == {"bytes": None, "event": None, "time_ns": None}
        assert session.results[0].timeline[f"{name}_max"].isna().all()
    assert set(memory["driver_calls"].values()) == {None}
    assert memory["counters"]["hits"] is None
    assert memory["rss_growth_bytes"] > 64 << 10
    assert memory["counters"]["ignored_record_streams"] == 1
    assert "1 calls of record_stream went nowhere" in " ".join(info["warnings"])
    # The library lives on from pass to pass: only a process's first one is cold, which is the timed
    # one. Throughput is read off it where the clock's own cost is next to nothing of it.
    assert {"steady"} <= set(info["throughput"]) <= {"cold", "steady"}
    done = wb(tmp_path, "report", "out", "-o", "page.html")
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "page.html").read_text()
    assert "not reported" in page
    assert "resident growth" in page


def test_functions_of_other_names_and_hooks_are_called(tmp_path: Path) -> None:
    source = PYTORCH.replace("my_malloc", "take").replace("my_free", "give")
    hooks = """
#include <stdio.h>
static FILE* told() { static FILE* file = fopen("told.txt", "a"); setbuf(file, 0); return file; }
extern "C" {
void begin(int devices) { fprintf(told(), "init %d\\n", devices); }
void drop(void) { fprintf(told(), "reset\\n"); }
void used(void* block, cudaStream_t stream) { (void)block; fprintf(told(), "used %p\\n", stream); }
}
"""
    (tmp_path / "alloc.cc").write_text(source + hooks)
    build_library(tmp_path / "alloc.cc", tmp_path)
    events = [("alloc", 0, 64), ("record_stream", 0, 0), ("free", 0, 64), ("empty_cache", -1, 0)]
    write_trace(tmp_path / "run.parquet", events, stream=[0, 3, 0, 0])
    names = "alloc:take,free:give,init:begin,reset:drop,record_stream:used"
    done = wb(
        *(tmp_path, "replay", "run.parquet", "--repeat", "1", "-a", f"pluggable:alloc.so,{names}")
    )
    assert done.returncode == 0, done.stdout + done.stderr
    told = (tmp_path / "told.txt").read_text().split("\n")
    assert {"init 1", "reset", "used 0x3"} <= set(told)
    wrong = wb(tmp_path, "replay", "run.parquet", "-a", "pluggable:alloc.so,alloc:take,free:gvie")
    assert wrong.returncode == 1
    assert "hasnofunction'gvie'" in "".join(wrong.stdout.split())


@pytest.mark.parametrize(
    "library",
    ["libc.so.6", "libjemalloc.so.2", "libmimalloc.so.2", "libtcmalloc_minimal.so.4"],
)
def test_a_library_with_malloc_runs_on_a_trace(
    library: str, make_big_trace: Callable[[], Path]
) -> None:
    trace = make_big_trace()
    session = replay_traces(
        [str(trace)], [f"pluggable:{library}"], trace.parent / "out", Options(repeat=1)
    )
    info = session.results[0].info
    if "there is no such file" in (info["outcome"]["reason"] or ""):
        pytest.skip(f"the system has no {library}")
    assert info["outcome"] == {"status": "ok", "reason": None, "oom": None}
    live = info["trace"]["peak_live_bytes"]
    # What the process has left over from before counts for nothing.
    assert 0.95 * live <= info["memory"]["rss_growth_bytes"] <= 2 * live


@pytest.fixture
def make_big_trace(tmp_path: Path) -> Callable[[], Path]:
    """64 blocks of 1 MiB that live together, twice."""
    events = []
    for turn in range(2):
        events += [("alloc", 64 * turn + i, 1 << 20) for i in range(64)]
        events += [("free", 64 * turn + i, 1 << 20) for i in range(64)]
    return lambda: write_trace(tmp_path / "run.parquet", events)


@pytest.mark.parametrize("compiler", ["cc -std=c11", "c++ -std=c++17"])
def test_the_header_is_clean(compiler: str, tmp_path: Path) -> None:
    source = tmp_path / ("use.c" if compiler.startswith("cc") else "use.cpp")
    source.write_text(
        '#include "workbench_allocator.h"\n'
        "const wb_interface* workbench_allocator(uint32_t version);\n"
        "const wb_interface* workbench_allocator(uint32_t version) {\n"
        "  static const wb_interface none = {0};\n"
        "  return version == WB_VERSION ? &none : NULL;\n}\n"
    )
    build_library(
        source, tmp_path, compiler.split()[1], "-pedantic", "-Wno-missing-field-initializers"
    )
