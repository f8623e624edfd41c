"""``wb replay --profile`` and ``wb calibrate``, as a user runs them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from command_line import wb
from cuda_over_stub import over_stub

import workbench
from workbench.common.errors import UsageError
from workbench.replay import _engine
from workbench.replay.profiles import read_profile
from workbench.replay.results import load_results

MakeTrace = Callable[..., Path]
SYNTHETIC = Path(__file__).parents[1] / "data" / "synthetic_profile.json"
SIMULATED = ("--backend", "simulated", "--repeat", "1")


def priced(folder: Path, *arguments: str) -> dict[str, Any]:
    done = wb(folder, "replay", "run.parquet", *arguments, *SIMULATED, "--json", "--force")
    assert done.returncode == 0, done.stderr
    (cell,) = json.loads(done.stdout)["cells"]
    assert isinstance(cell, dict)
    return cell


def test_a_priced_replay_names_its_profile_everywhere(
    make_trace: MakeTrace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # where a snapshot finds the trace again
    make_trace(device="cuda:0")
    shutil.copy(SYNTHETIC, tmp_path / "card.json")
    allocators = ("-a", "direct", "-a", "caching", "-a", "async")
    done = wb(
        *(tmp_path, "replay", "run.parquet", *allocators, *SIMULATED),
        *("--profile", "card.json", "--html", "page.html"),
    )
    assert done.returncode == 0, done.stderr
    assert "driver time" in done.stdout
    assert "(model)" in done.stdout
    told = " ".join(done.stdout.split())
    assert "in the profile synthetic, measured on no device (synthetic numbers for tests)" in told
    assert "It is in no latency." in told
    assert "chunk_mb, reuse_follow_event_dependencies" in told
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert ", a model</span>" in page
    assert "times their price in profile synthetic" in page
    found = {
        cell.info["allocator"]["name"]: cell.info for cell in load_results([tmp_path / "results"])
    }
    profile = read_profile(SYNTHETIC)
    for info in found.values():
        time = info["memory"]["driver_time"]
        assert (time["source"], time["profile"]) == ("model", "synthetic")
        assert info["key"]["profile"] == info["profile"]["digest"] == profile.digest
        assert info["name"].endswith("profile-synthetic")
    # Every block of `direct` is a call, at its own size.
    calls = found["direct"]["memory"]["driver_calls"]
    time = found["direct"]["memory"]["driver_time"]["kinds"]
    assert (time["alloc"]["count"], time["free"]["count"]) == (calls["alloc"], calls["free"])
    # The pool has grown by the profile's chunk, and its state can be looked at again.
    assert found["async"]["memory"]["peaks"]["reserved"]["bytes"] % (64 << 20) == 0
    assert found["async"]["allocator"]["settings"] == {}
    assert found["async"]["profile"]["settings"]["chunk_mb"] == "64"
    (pool,) = [cell for cell in load_results([tmp_path / "results"]) if "async" in cell.name]
    assert pool.snapshot_at("peak").segments["size"].sum() % (64 << 20) == 0


def test_without_a_profile_nothing_is_priced_and_nothing_is_zero(
    make_trace: MakeTrace, tmp_path: Path
) -> None:
    make_trace(device="cuda:0")
    done = wb(
        *(tmp_path, "replay", "run.parquet", "-a", "caching", *SIMULATED, "--html", "page.html"),
    )
    assert done.returncode == 0, done.stderr
    assert "not priced" in done.stdout
    assert "not priced" in (tmp_path / "page.html").read_text(encoding="utf-8")
    (cell,) = load_results([tmp_path / "results"])
    assert cell.info["memory"]["driver_time"] is None
    assert cell.info["profile"] is None
    assert "profile" not in cell.info["key"]


def test_another_profile_is_another_cell(make_trace: MakeTrace, tmp_path: Path) -> None:
    make_trace(device="cuda:0")
    info = json.loads(SYNTHETIC.read_text(encoding="utf-8"))
    replay = ("replay", "run.parquet", "-a", "caching", *SIMULATED, "--profile", "card.json")
    for count in range(2):
        info["calls"]["alloc"][0]["p50_ns"] += count
        (tmp_path / "card.json").write_text(json.dumps(info), encoding="utf-8")
        done = wb(tmp_path, *replay)
    assert done.returncode == 2
    assert "--force" in done.stderr


def test_a_setting_of_the_users_goes_before_the_profiles(
    make_trace: MakeTrace, tmp_path: Path
) -> None:
    make_trace(device="cuda:0")
    cell = priced(tmp_path, "-a", "async:chunk_mb:2", "--profile", str(SYNTHETIC))
    assert "chunk_mb" not in cell["profile"]["settings"]
    assert cell["memory"]["peaks"]["reserved"]["bytes"] % (64 << 20)


def test_the_timed_passes_decide_as_without_prices(make_trace: MakeTrace, tmp_path: Path) -> None:
    make_trace(device="cuda:0")
    with_, without = (
        priced(tmp_path, "-a", "caching", *more) for more in (("--profile", str(SYNTHETIC)), ())
    )
    assert with_["digests"] == without["digests"]
    assert set(with_["latency"]["states"]["cold"]) == set(without["latency"]["states"]["cold"])


def test_python_has_the_same(make_trace: MakeTrace, tmp_path: Path) -> None:
    trace = make_trace(device="cuda:0")
    result = workbench.replay(trace, "caching", backend="simulated", repeat=1, profile=SYNTHETIC)
    (row,) = result.to_pandas().to_dict("records")
    assert row["driver_ns"] > 0
    assert row["driver_time_is_model"]
    with pytest.raises(UsageError, match="would price nothing"):
        workbench.replay(trace, "direct", backend="host", repeat=1, profile=SYNTHETIC)


@pytest.mark.parametrize("name", ["none.json", "broken.json", "h2000"])
def test_a_profile_that_will_not_do_is_one_sentence(
    make_trace: MakeTrace, tmp_path: Path, name: str
) -> None:
    make_trace(device="cuda:0")
    (tmp_path / "broken.json").write_text('{"format_version": 1, "calls": []}', encoding="utf-8")
    done = wb(tmp_path, "replay", "run.parquet", "-a", "caching", *SIMULATED, "--profile", name)
    assert done.returncode == 2
    assert done.stderr.startswith("wb: ")
    assert len(done.stderr.splitlines()) == 1
    assert not list(tmp_path.glob("results/*"))


def test_without_a_gpu_calibrate_says_what_is_missing(tmp_path: Path) -> None:
    (cuda,) = [info for info in _engine.backends() if info["name"] == "cuda"]
    if cuda["available"]:
        pytest.skip("there is a GPU, and measuring it takes a minute")
    done = wb(tmp_path, "calibrate", "-o", "card.json")
    assert done.returncode == 1
    assert "nothing can be calibrated here" in done.stderr
    assert cuda["reason"] in done.stderr
    assert not (tmp_path / "card.json").exists()


def test_calibrate_runs_over_the_stand_in_and_keeps_nothing_of_it(tmp_path: Path) -> None:
    stub = over_stub(tmp_path)
    environment = {**stub.environment, "WB_CUDA_STUB_MEMORY": "none"}
    few = ("--repeat", "3", "--capacity", "2GiB")
    done = wb(tmp_path, "calibrate", "-o", "card.json", *few, environment=environment)
    assert done.returncode == 2
    assert "the stand-in for tests" in done.stderr
    assert not (tmp_path / "card.json").exists()
    done = wb(
        *(tmp_path, "calibrate", "-o", "card.json", "--stand-in", "--name", "stub", *few),
        environment=environment,
    )
    assert done.returncode == 0, done.stderr
    assert "--profile card.json" in done.stdout
    found = read_profile(tmp_path / "card.json")
    assert found.name == "stub"
    assert "nothing measured" in found.info["measured"]
    assert found.info["pool"]["chunk_bytes"] == 32 << 20
    assert found.info["pool"]["reuse_allow_opportunistic"]
    assert found.info["pool"]["releases_above_threshold"]
    assert found.info["calls"]["alloc"][-1]["bytes"] == 2 << 30
    again = wb(tmp_path, "calibrate", "-o", "card.json", "--stand-in", environment=environment)
    assert again.returncode == 2
    assert "--force" in again.stderr


def test_the_doctor_lists_profiles(tmp_path: Path) -> None:
    done = wb(tmp_path, "doctor", "--json")
    findings = {one["part"]: one for one in json.loads(done.stdout)["findings"]}
    assert findings["profiles of driver calls"]["state"] == "ok"
