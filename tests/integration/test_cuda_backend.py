"""The backend ``cuda``: over the stand-in for the CUDA runtime, and what is said without a GPU."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from command_line import ENVIRONMENT, wb
from cuda_over_stub import OverStub, over_stub

from workbench.replay import _engine
from workbench.replay.results import CellResult, load_results

MakeTrace = Callable[..., Path]
NAMES = ("caching", "async", "direct", "host-pinned", "plan")


@pytest.fixture(scope="module")
def stub(tmp_path_factory: pytest.TempPathFactory) -> OverStub:
    return over_stub(tmp_path_factory.mktemp("stub"))


def cells(folder: Path) -> dict[tuple[str, str], CellResult]:
    found = load_results([folder / "results"])
    return {(cell.info["allocator"]["name"], cell.info["backend"]["name"]): cell for cell in found}


def test_without_a_gpu_one_sentence_says_what_is_missing_and_what_to_do() -> None:
    (info,) = [info for info in _engine.backends() if info["name"] == "cuda"]
    assert not info["is_model"]
    if info["available"]:
        return
    remedies = ("install", "CUDA_VISIBLE_DEVICES", "nvidia-smi")
    assert any(remedy in info["reason"] for remedy in remedies), info["reason"]
    assert "\n" not in info["reason"]
    with pytest.raises(ValueError, match="backend cuda cannot be used here: "):
        _engine.Replay(_no_events(), "caching", backend="cuda")


def _no_events() -> _engine.Events:
    import numpy as np

    kinds = {"op": "u1", "slot": "i4", "size": "i8", "stream": "i4", "thread": "i4"}
    columns: dict[str, Any] = {name: np.empty(0, dtype=kind) for name, kind in kinds.items()}
    return _engine.Events(**columns, slot_count=0)


def test_all_allocators_run_on_it_and_the_drivers_calls_have_times(
    make_trace: MakeTrace, tmp_path: Path, stub: OverStub
) -> None:
    make_trace(device="cuda:0")
    allocators = [word for name in NAMES for word in ("-a", name)]
    options = ("--repeat", "1", "--capacity", "1GiB")
    done = wb(
        *(tmp_path, "replay", "run.parquet", *allocators, "--backend", "cuda", *options),
        environment=stub.environment,
    )
    assert done.returncode == 0, done.stderr + done.stdout
    assert "driver time" in done.stdout
    again = wb(tmp_path, "replay", "run.parquet", *allocators, "--backend", "simulated", *options)
    assert again.returncode == 0, again.stderr
    assert "driver time" not in again.stdout
    found = cells(tmp_path)
    for name in NAMES:
        cuda, simulated = found[name, "cuda"].info, found[name, "simulated"].info
        assert cuda["outcome"]["status"] == "ok", (name, cuda["outcome"])
        assert simulated["memory"]["driver_time"] is None
        found_times = cuda["memory"]["driver_time"]
        assert found_times["source"] == "hardware"
        assert found_times["profile"] is None
        times = found_times["kinds"]
        assert times
        for kind, calls in cuda["memory"]["driver_calls"].items():
            counted = times.get(kind, {"count": 0})["count"]
            # The driver's own events are made when they are first needed.
            assert kind in ("refused", "event_create") or counted >= calls or name == "host-pinned"
        for time in times.values():
            assert 0 <= time["p50_ns"] <= time["p99_ns"] <= time["max_ns"] <= time["total_ns"]
        if name != "async":
            assert cuda["digests"] == simulated["digests"], name
            assert cuda["memory"]["peaks"] == simulated["memory"]["peaks"]
    pool = found["async", "cuda"].info
    assert not pool["allocator"]["is_model"]
    assert pool["allocator"]["latency_source"] == "hardware"
    assert pool["memory"]["reserved_meaning"] == "bytes that the driver's pool holds"
    assert found["async", "simulated"].info["allocator"]["is_model"]


def test_it_is_the_default_for_a_devices_allocators_where_there_is_a_gpu(
    make_trace: MakeTrace, tmp_path: Path, stub: OverStub
) -> None:
    make_trace(device="cuda:0")
    done = wb(
        *(tmp_path, "replay", "run.parquet", "-a", "caching", "--repeat", "1"),
        environment=stub.environment,
    )
    assert done.returncode == 0, done.stderr
    (cell,) = load_results([tmp_path / "results"])
    assert cell.info["backend"] == {"name": "cuda", "is_model": False}
    assert cell.info["capacity"] == {"bytes": None, "source": "device"}
    doctor = wb(tmp_path, "doctor", "--json", environment=stub.environment)
    findings = {one["part"]: one for one in json.loads(doctor.stdout)["findings"]}
    assert findings["backend cuda"]["state"] == "ok"


_VERIFIED = """
import ctypes, json, sys
ctypes.CDLL(sys.argv[1], mode=ctypes.RTLD_GLOBAL)
sys.path[:0] = [sys.argv[2]]
from engine_events import make_events
from workbench.replay import _engine

operations = [("alloc", n, 100 + 997 * n, n % 3) for n in range(200)]
for n in range(0, 200, 2):
    operations += [("record_stream", n, 0, (n + 1) % 3), ("free", n, 0, 0)]
    operations += [("alloc", 200 + n, 100 + 997 * n, n % 3)]
    operations += [("synchronize", -1, 0, n % 3)] if n % 5 == 0 else []
events = make_events(operations)
found = {}
for completion in ("recorded", "immediate", "never", "delay:9"):
    for allocator in ("caching", "async", "direct", "host-pinned"):
        replay = _engine.Replay(events, allocator, backend="cuda", completion=completion)
        assert replay.has_bytes and not replay.has_memory
        found[f"{allocator} {completion}"] = replay.memory(1, verify=True)["outcome"]
print(json.dumps(found))
"""


def test_every_block_is_filled_and_verified(stub: OverStub, tmp_path: Path) -> None:
    support = Path(__file__).parents[1] / "support"
    done = subprocess.run(
        [sys.executable, "-c", _VERIFIED, str(stub.kernels), str(support)],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**ENVIRONMENT, **stub.environment},
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert set(json.loads(done.stdout).values()) == {"ok"}


def test_a_device_that_is_full_is_a_result(
    make_trace: MakeTrace, tmp_path: Path, stub: OverStub
) -> None:
    make_trace([("alloc", number, 64 << 20) for number in range(40)], device="cuda:0")
    environment = {**stub.environment, "WB_CUDA_STUB_BYTES": str(1 << 30)}
    done = wb(
        *(tmp_path, "replay", "run.parquet", "-a", "caching", "-a", "async", "-a", "direct"),
        *("--repeat", "1", "--backend", "cuda", "--capacity", "4GiB"),
        environment=environment,
    )
    assert done.returncode == 0, done.stderr
    for (name, _), cell in cells(tmp_path).items():
        assert cell.info["outcome"]["status"] == "out_of_memory", name
        assert 0 < cell.info["memory"]["peaks"]["reserved"]["bytes"] <= 1 << 30
