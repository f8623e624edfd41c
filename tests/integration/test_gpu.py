"""The backend ``cuda`` on a real GPU; skipped where there is none."""

from __future__ import annotations

import random
import subprocess
from pathlib import Path

import pytest
from command_line import wb
from engine_events import Operation, make_events

from workbench.replay import _engine
from workbench.replay.profiles import read_profile

REASON = next(info["reason"] for info in _engine.backends() if info["name"] == "cuda")
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(bool(REASON), reason=f"needs a GPU: {REASON}"),
]
CAPACITY = 4 << 30
COMPLETIONS = ("recorded", "immediate", "never", "delay:20")


def operations(count: int, seed: int) -> list[Operation]:
    """Allocations on three streams, some used by another stream; the program waits now and then."""
    dice = random.Random(seed)
    made: list[Operation] = []
    live: list[int] = []
    for number in range(count):
        made.append(("alloc", number, int(2 ** dice.uniform(4, 23)), dice.randrange(3)))
        live.append(number)
        if dice.random() < 0.3:
            made.append(("record_stream", dice.choice(live), 0, dice.randrange(3)))
        if len(live) > 40:
            made.append(("free", live.pop(dice.randrange(len(live))), 0, 0))
        if dice.random() < 0.05:
            made.append(("synchronize", -1, 0, dice.randrange(3)))
    return made


def used_bytes() -> int:
    done = subprocess.run(
        ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits", "--id=0"],
        capture_output=True,
        text=True,
        check=True,
    )
    return int(done.stdout.split()[0]) << 20


@pytest.mark.parametrize("completion", COMPLETIONS)
@pytest.mark.parametrize(
    ("allocator", "settings"),
    [
        ("caching", ""),
        ("caching", "expandable_segments:True"),
        ("host-pinned", ""),
        ("host-pinned", "pinned_use_cuda_host_register:True"),
        ("direct", ""),
    ],
)
def test_decisions_are_those_on_the_simulated_device_and_no_byte_is_damaged(
    allocator: str, settings: str, completion: str
) -> None:
    events = make_events(operations(600, 3))
    digests = []
    for backend in ("simulated", "cuda"):
        replay = _engine.Replay(
            events, allocator, settings, backend=backend, capacity=CAPACITY, completion=completion
        )
        memory = replay.memory(verify=replay.has_bytes)
        assert memory["outcome"] == "ok"
        digests.append((memory["digest"], replay.timed("steady")["digest"]))
    assert digests[0] == digests[1]


@pytest.mark.parametrize("completion", COMPLETIONS)
def test_the_drivers_pool_holds_what_it_hands_out(completion: str) -> None:
    replay = _engine.Replay(
        make_events(operations(600, 4)),
        "async",
        backend="cuda",
        capacity=CAPACITY,
        completion=completion,
    )
    memory = replay.memory(verify=True)
    assert memory["outcome"] == "ok"
    peaks = memory["peaks"]
    assert (peaks["reserved"]["bytes"] or 0) >= (peaks["allocated"]["bytes"] or 0) > 0
    times = memory["driver_time"]
    assert times is not None
    assert times["pool_alloc"]["count"] == memory["driver_calls"]["pool_alloc"]


def test_running_out_of_memory_is_a_result_and_the_card_is_left_as_found() -> None:
    events = make_events([("alloc", number, 512 << 20, 0) for number in range(100)])
    _engine.Replay(events, "direct", backend="cuda", capacity=CAPACITY).memory()
    before = used_bytes()
    for allocator in ("caching", "async", "direct"):
        for settings in ("", "expandable_segments:True") if allocator == "caching" else ("",):
            memory = _engine.Replay(
                events, allocator, settings, backend="cuda", capacity=CAPACITY
            ).memory()
            assert memory["outcome"] == "out_of_memory"
            assert 0 < (memory["peaks"]["reserved"]["bytes"] or 0) <= CAPACITY
    # The driver keeps some for itself: contexts, kernels.
    assert used_bytes() <= before + (64 << 20)


def test_a_calibration_is_a_profile_and_the_card_is_left_as_found(tmp_path: Path) -> None:
    before = used_bytes()
    done = wb(tmp_path, "calibrate", "-o", "card.json", "--repeat", "5", "--capacity", "4GiB")
    assert done.returncode == 0, done.stderr
    found = read_profile(tmp_path / "card.json")
    assert "nothing measured" not in found.info["measured"]
    # Larger blocks do not cost less to map, by far.
    mapped = found.info["calls"]["map"]
    assert mapped[0]["p50_ns"] < mapped[-1]["p50_ns"]
    assert used_bytes() <= before + (64 << 20)
