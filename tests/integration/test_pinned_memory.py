"""Memory that is really page-locked, and systems that let a process lock little."""

from __future__ import annotations

import ctypes
import json
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from command_line import ENVIRONMENT

MakeTrace = Callable[..., Path]
KIB = 2**10
LIMIT = 256 * KIB
_PR_CAPBSET_DROP = 24
_CAP_IPC_LOCK = 14
_LOCKS = (
    "import ctypes, mmap; memory = mmap.mmap(-1, 1 << 20);"
    "address = ctypes.addressof(ctypes.c_char.from_buffer(memory));"
    "raise SystemExit(ctypes.CDLL(None).mlock(ctypes.c_void_p(address), ctypes.c_size_t(1 << 20)))"
)


def lower_the_limit() -> None:
    """In a child: no more than `LIMIT` bytes may be locked, by root neither."""
    ctypes.CDLL(None).prctl(_PR_CAPBSET_DROP, _CAP_IPC_LOCK)
    resource.setrlimit(resource.RLIMIT_MEMLOCK, (LIMIT, LIMIT))


def limited(folder: Path, *command: str) -> subprocess.CompletedProcess[str]:
    """Run Python where little memory may be locked."""
    return subprocess.run(
        [sys.executable, *command],
        capture_output=True,
        text=True,
        cwd=folder,
        env=ENVIRONMENT,
        timeout=240,
        check=False,
        preexec_fn=lower_the_limit,
    )


@pytest.fixture(scope="module", autouse=True)
def _limit_holds(tmp_path_factory: pytest.TempPathFactory) -> None:
    if limited(tmp_path_factory.mktemp("probe"), "-c", _LOCKS).returncode == 0:
        pytest.skip("this process may lock memory whatever the limit says")


@pytest.fixture
def trace(make_trace: MakeTrace) -> Path:
    """One block that may be locked, and one that may not."""
    return make_trace(
        [
            ("alloc", 0, 60 * KIB),
            ("alloc", 1, 200 * KIB),
            ("free", 1, 200 * KIB),
            ("free", 0, 60 * KIB),
        ]
    )


def outcome(folder: Path, allocator: str) -> dict[str, object]:
    """How the cell of `allocator` in `folder` ended."""
    for file in folder.glob("*/cell.json"):
        info = json.loads(file.read_text(encoding="utf-8"))
        if info["label"] == allocator:
            found: dict[str, object] = info["outcome"]
            return found
    raise AssertionError(f"no result of {allocator}")


def test_a_limit_that_is_too_low_is_named_with_what_to_do(trace: Path, tmp_path: Path) -> None:
    done = limited(
        tmp_path, "-m", "workbench", "replay", str(trace), "-a", "host-pinned", "-o", "out"
    )
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr + done.stdout
    ended = outcome(tmp_path / "out", "host-pinned")
    assert ended["status"] == "unavailable"
    for words in (
        "RLIMIT_MEMLOCK is 256 KiB, 64 KiB are pinned, and 256 KiB more were needed",
        "ulimit -l unlimited",
        "/etc/security/limits.conf",
        "docker run --ulimit memlock=-1",
    ):
        assert words in str(ended["reason"])


def test_all_goes_on_without_what_the_limit_forbids(trace: Path, tmp_path: Path) -> None:
    command = ("-m", "workbench", "replay", str(trace), "-a", "all", "--repeat", "1", "-o", "out")
    done = limited(tmp_path, *command)
    assert outcome(tmp_path / "out", "host-pinned")["status"] == "unavailable"
    assert outcome(tmp_path / "out", "direct")["status"] == "ok"
    assert done.returncode == 0, done.stderr


def test_too_little_capacity_is_out_of_memory(trace: Path, tmp_path: Path) -> None:
    command = ("-m", "workbench", "replay", str(trace), "-a", "host-pinned", "--repeat", "1")
    limited(tmp_path, *command, "--capacity", "128KiB", "-o", "out")
    assert outcome(tmp_path / "out", "host-pinned")["status"] == "out_of_memory"


def test_what_the_limit_allows_is_locked(make_trace: MakeTrace, tmp_path: Path) -> None:
    small = make_trace([("alloc", 0, 60 * KIB), ("free", 0, 60 * KIB), ("alloc", 1, 50 * KIB)])
    command = ("-m", "workbench", "replay", str(small), "-a", "host-pinned", "--repeat", "1")
    done = limited(tmp_path, *command, "-o", "out")
    assert done.returncode == 0, done.stderr
    (file,) = (tmp_path / "out").glob("*/cell.json")
    memory = json.loads(file.read_text(encoding="utf-8"))["memory"]
    assert memory["peaks"]["reserved"]["bytes"] == 64 * KIB
    assert memory["reserved_meaning"] == "all bytes pinned, in use or cached"
