"""Rules that a library is held to in its checking pass, each broken once, over malloc."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from libraries import ROOT, build_library
from trace_maker import write_trace

from workbench.replay.job import Options
from workbench.replay.runner import replay_traces

EVENTS = [("alloc", 0, 4096), ("alloc", 1, 1000), ("alloc", 2, 100), ("free", 1, 1000)]
# What is said of the library where it breaks a rule: its configuration, and the reason.
SAID = {
    "misaligned": r"misaligned memory: the 1000 bytes of row 1 begin at 0x\w+, .*",
    "same twice": r"memory handed out twice: the 1000 bytes of row 1 begin where the live block of "
    r"row 0 does",
    "overlaps": r"overlapping memory: the 1000 bytes of row 1 lie at 0x\w+, in the live block of "
    r"row 0 at 0x\w+",
    "gives twice": r"it gave back 4096 bytes at \w+, which it does not have of the workbench at "
    r"row 1",
    "gives what it never took": r"it gave back 64 bytes at \w+, which it does not have of the "
    r"workbench at row 1",
    "gives another size": r"it gave back 64 bytes at \w+, where it took 4096 at row 1",
    "event on no stream": r"it recorded a CUDA event on stream -1, which is none: streams are 0 to "
    r"65535 at row 1",
    "event on a far stream": r"it recorded a CUDA event on stream 2000000000, which is none: "
    r"streams are 0 to 65535 at row 1",
    "names no stream": r"it asked for stream 65536, which is none: streams are 0 to 65535 at row 1",
    "maps what it has not": r"it mapped 4096 bytes at \d+, which it has not reserved at row 1",
    "maps beyond its range": r"it mapped 6291456 bytes at \d+, which it has not reserved at row 1",
    "unmaps what it has not": r"it unmapped 2097152 bytes at \d+, which it has not reserved at "
    r"row 1",
    "gives half a range back": r"it gave back 2097152 bytes at \d+, which it did not reserve so at "
    r"row 1",
    "reserves less than it has": r"it reported 1 reserved bytes at row 1, which is less than 5096 "
    r"bytes that the program has",
    "reports too much": r"it reported 9223372036854775807 reserved bytes at row 1, which cannot be",
    "reports below zero": r"it reported -7 hits at row 1, which cannot be",
    "says bytes": r"made no allocator of the configuration 'says bytes': no \S+ pool.of "
    r".*this kind",
    "crashes in statistics": r"it crashed in statistics.*\(signal SIGSEGV\)",
    "crashes in program_begins": r"it crashed in program_begins.*\(signal SIGSEGV\)",
    "throws in create": r"it threw a C\+\+ exception in create",
    "throws in prepare": r"it threw a C\+\+ exception in prepare",
    "throws in program_begins": r"it threw a C\+\+ exception in program_begins",
    "throws in statistics": r"it threw a C\+\+ exception \(no \S+ numbers\) in statistics.*",
}
INTERFACES = {
    "size 12": r"returned an interface of size 12, below the \d+ bytes of what must be there; .*",
    "version 0": r"returned an interface of version 0; it was asked for one up to 1, .*",
}


@pytest.fixture(scope="module")
def faults(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("faults")
    return build_library(ROOT / "tests" / "data" / "library_of_faults.cpp", folder)


def replayed(folder: Path, library: Path, mode: str) -> dict[str, Any]:
    folder.mkdir(exist_ok=True)
    trace = write_trace(folder / "run.parquet", EVENTS)
    name = f'pluggable:{library},config:"{mode}"'
    session = replay_traces([str(trace)], [name], folder / "out", Options(repeat=1))
    info: dict[str, Any] = session.results[0].info
    return info


def reason(info: dict[str, Any], library: Path) -> str:
    assert info["outcome"]["status"] == "library_fault", info["outcome"]
    said: str = info["outcome"]["reason"]
    assert said.startswith(f"library {library}")
    assert said.isprintable()
    return re.sub(r"^[: ]+", "", said.removeprefix(f"library {library}"))


@pytest.mark.parametrize("mode", SAID)
def test_a_broken_rule_is_said_in_one_sentence(mode: str, faults: Path, tmp_path: Path) -> None:
    said = reason(replayed(tmp_path, faults, mode), faults)
    assert re.fullmatch(SAID[mode], said), said


@pytest.mark.parametrize("fault", INTERFACES)
def test_an_interface_that_cannot_be_read_is_refused(
    fault: str, faults: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAULTY_INTERFACE", fault)
    said = reason(replayed(tmp_path, faults, "healthy"), faults)
    assert re.fullmatch(INTERFACES[fault], said), said


def test_half_a_pointer_is_none(
    faults: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAULTY_INTERFACE", "half a pointer")
    info = replayed(tmp_path, faults, "healthy")
    assert info["outcome"]["status"] == "ok"
    assert info["memory"]["peaks"]["reserved"]["bytes"] is None


def test_what_a_library_keeps_is_warned_about(faults: Path, tmp_path: Path) -> None:
    assert "kept" not in " ".join(replayed(tmp_path / "healthy", faults, "healthy")["warnings"])
    info = replayed(tmp_path / "keeps", faults, "keeps")
    assert info["outcome"]["status"] == "ok"
    assert "the library kept 4096 bytes that it took" in " ".join(info["warnings"])
