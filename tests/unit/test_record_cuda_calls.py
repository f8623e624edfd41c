"""What the agent watches of torch.cuda, on a torch that is made up."""

from __future__ import annotations

import atexit
import importlib.util
import json
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

import workbench.recorders

ALL_STREAMS = 2**64 - 1


class Stream:
    def __init__(self, device_index: int, cuda_stream: int) -> None:
        self.device_index, self.cuda_stream = device_index, cuda_stream

    def synchronize(self) -> str:
        return "synchronized"


class Event:
    def record(self, stream: Stream | None = None) -> None: ...
    def wait(self, stream: Stream | None = None) -> None: ...
    def synchronize(self) -> None: ...


class Graph:
    def capture_begin(self, pool: object = None) -> None: ...
    def capture_end(self) -> None: ...
    def replay(self) -> None: ...


class Library:
    """Both compiled hooks; remembers what it is told."""

    def __init__(self) -> None:
        self.told: list[tuple[int, ...]] = []
        self.calls: list[str] = []
        self.is_in_front, self.sees_captures, self.time = 1, 1, 0
        self.wb_cuda_stream_number = None

    def wb_cuda_event(self, *arguments: int) -> None:
        self.told.append(arguments)

    def wb_cuda_now(self) -> int:
        self.time += 1
        return self.time

    def wb_cuda_is_in_front(self) -> int:
        return self.is_in_front

    def wb_cuda_sees_captures(self) -> int:
        return self.sees_captures

    def __getattr__(self, name: str) -> Any:
        return lambda *arguments: self.calls.append(name)


class Hook:
    def __init__(self) -> None:
        self.names: list[tuple[bytes, bytes]] = []

    def wb_face(self) -> int:
        return 7

    def wb_define_name(self, kind: bytes, text: bytes) -> None:
        self.names.append((kind, text))


@pytest.fixture
def torch() -> Any:
    def mem_get_info(device: int | None = None) -> tuple[int, int]:
        return 1, 2

    def synchronize(device: int | None = None) -> None: ...
    def change_current_allocator(allocator: object) -> None: ...

    def fail() -> None:
        raise ValueError("the program's own")

    shared: dict[str, Any] = {
        "mem_get_info": mem_get_info,
        "change_current_allocator": change_current_allocator,
    }
    cuda = SimpleNamespace(
        **shared,
        memory=SimpleNamespace(**shared),
        synchronize=synchronize,
        fail=fail,
        Stream=type("Stream", (Stream,), dict(vars(Stream))),
        Event=type("Event", (Event,), dict(vars(Event))),
        CUDAGraph=type("Graph", (Graph,), dict(vars(Graph))),
        current_stream=lambda device=None: Stream(device or 1, 50),
        _utils=SimpleNamespace(_get_device_index=lambda device, optional: device or 1),
    )
    return SimpleNamespace(cuda=cuda)


@pytest.fixture
def library() -> Library:
    return Library()


@pytest.fixture
def agent(monkeypatch: pytest.MonkeyPatch, library: Library) -> Iterator[ModuleType]:
    path = Path(workbench.recorders.__file__).parent / "agent" / "cuda.py"
    spec = importlib.util.spec_from_file_location("_agent_cuda", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    registered: list[Any] = []
    monkeypatch.setattr(atexit, "register", registered.append)
    monkeypatch.setattr(atexit, "unregister", registered.remove)
    monkeypatch.setattr(module, "load_cuda", lambda path: library)
    monkeypatch.setattr(module, "load_pinned", lambda path: library)
    yield module
    assert not registered


def test_calls_are_told_with_device_stream_and_time(
    agent: ModuleType, torch: Any, library: Library
) -> None:
    before = dict(vars(torch.cuda))
    recording = agent.CudaRecording(torch, Hook(), {"cuda": "", "pinned": ""})
    cuda = torch.cuda
    one, two = cuda.Event(), cuda.Event()
    side = cuda.Stream(0, 60)
    cuda.synchronize()
    cuda.synchronize(3)
    assert side.synchronize() == "synchronized"
    one.record()
    two.record(side)
    one.wait(stream=side)
    two.wait()
    one.synchronize()
    cuda.Event().synchronize()  # was never recorded
    assert cuda.mem_get_info(2) == (1, 2)
    cuda.memory.mem_get_info()
    cuda.CUDAGraph().replay()
    cuda.CUDAGraph().capture_begin()
    shown = [event[:4] for event in library.told]
    assert shown == [
        (7, 1, ALL_STREAMS, -1),
        (7, 3, ALL_STREAMS, -1),
        (7, 0, 60, -1),
        (8, 1, 50, 0),
        (8, 0, 60, 1),
        (9, 0, 60, 0),
        (9, 1, 50, 1),
        (7, 1, 50, -1),
        (22, 2, 0, -1),
        (22, 1, 0, -1),
        (17, 1, 50, -1),
    ]
    assert [event[4] for event in library.told] == [1, 2, 3, 4, 5, 6, 7, 8, 10, 11, 12]
    recording.remove()
    assert dict(vars(torch.cuda)) == before
    assert library.calls[-2:] == ["wb_pinned_stop", "wb_cuda_stop"]
    assert "wb_cuda_tell_peaks" in library.calls


def test_captures_are_told_where_pytorch_does_not_tell_the_allocator(
    agent: ModuleType, torch: Any, library: Library
) -> None:
    library.sees_captures = 0
    recording = agent.CudaRecording(torch, Hook(), {"cuda": "", "pinned": ""})
    graph = torch.cuda.CUDAGraph()
    graph.capture_begin(pool=(0, 1))
    graph.capture_end()
    assert [event[:3] for event in library.told] == [(15, 1, 50), (16, 1, 50)]
    recording.remove()


def test_errors_of_the_program_pass_and_ours_do_not(
    agent: ModuleType, torch: Any, library: Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    recording = agent.CudaRecording(torch, Hook(), {"cuda": "", "pinned": ""})
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device=None: None)
    torch.cuda.Event().record()
    recording._wrap(torch.cuda, "fail", lambda began: None)
    with pytest.raises(ValueError, match="the program's own"):
        torch.cuda.fail()
    assert not library.told
    recording.remove()


def test_after_a_change_of_the_allocator_the_hook_stands_before_the_new_one(
    agent: ModuleType, torch: Any, library: Library
) -> None:
    hook = Hook()
    recording = agent.CudaRecording(torch, hook, {"cuda": "", "pinned": ""})
    torch.cuda.memory.change_current_allocator(object())
    assert library.calls.count("wb_cuda_start") == 2
    library.is_in_front = 0
    recording.remove()
    ((kind, text),) = hook.names
    assert kind == b"note"
    assert "in the place of the recorded one" in json.loads(text)["text"]
