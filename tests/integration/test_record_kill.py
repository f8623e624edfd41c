"""A trace of a killed training has every event that an independent counter saw."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

pytest.importorskip("torch")
pytestmark = pytest.mark.torch


@pytest.fixture(scope="module")
def kills() -> ModuleType:
    path = Path(__file__).parents[2] / "benchmarks" / "kill_recording.py"
    spec = importlib.util.spec_from_file_location("kill_recording", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch = pytest.MonkeyPatch()
    monkeypatch.setitem(sys.modules, spec.name, module)  # dataclasses look their module up
    spec.loader.exec_module(module)
    monkeypatch.undo()
    return module


def test_no_recorded_event_is_lost_to_kill_9(
    kills: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PYTHONSAFEPATH", raising=False)
    counter = kills.build_counter(tmp_path)
    for seconds in (0.0, 0.317, 1.523):
        found = kills.kill_once(tmp_path, counter, seconds)
        assert found.equal, found
        assert found.exit_code == 137
    assert found.counted[0] > 1000  # of the last one, which had the time
