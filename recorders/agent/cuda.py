"""Records CUDA: starts the compiled hooks, and tells them of calls that allocators do not see.

Nothing here initialises CUDA: a program that never uses its GPU must not take memory on it.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import functools
import json
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any

# As in spool_format.h.
_SYNCHRONIZE, _EVENT_RECORD, _EVENT_WAIT = 7, 8, 9
_CAPTURE_BEGIN, _CAPTURE_END, _GRAPH_REPLAY, _QUERY = 15, 16, 17, 22
_ALL_STREAMS = (1 << 64) - 1
_NO_VALUE = -1


class CudaRecording:
    """The hooks of a recording in progress.

    Args:
        torch: a CUDA build.
        hook: the recorder's library, which is recording.
        parts: paths of the libraries ``cuda`` and ``pinned``.
    """

    def __init__(self, torch: ModuleType, hook: Any, parts: Mapping[str, str]) -> None:
        self._torch = torch
        self._hook = hook
        self._cuda = load_cuda(parts["cuda"])
        self._pinned = load_pinned(parts["pinned"])
        self._undo: list[Callable[[], None]] = []
        self._events = 0  # CUDA events that have a number
        self._cuda.wb_cuda_start(hook.wb_face())
        self._pinned.wb_pinned_start(hook.wb_face(), self._cuda.wb_cuda_stream_number)
        self._watch()
        atexit.register(self._tell_end)

    def remove(self) -> None:
        """Takes all of it out again."""
        atexit.unregister(self._tell_end)
        self._tell_end()
        for undo in self._undo:
            undo()
        self._pinned.wb_pinned_stop()
        self._cuda.wb_cuda_stop()

    def _tell_end(self) -> None:
        """What PyTorch reports of itself, while there is somebody to ask."""
        if not self._cuda.wb_cuda_is_in_front():
            self._note(
                "the program put another CUDA allocator in the place of the recorded one, or in "
                "front of it; what went past the recorder is not in the trace"
            )
        self._cuda.wb_cuda_tell_peaks()

    def _note(self, text: str) -> None:
        self._hook.wb_define_name(b"note", json.dumps({"text": text}).encode())

    def _watch(self) -> None:
        cuda = self._torch.cuda
        self._wrap(cuda, "synchronize", self._synchronized)
        for owner in (cuda, cuda.memory):
            self._wrap(owner, "mem_get_info", self._asked)
            self._wrap(owner, "change_current_allocator", self._changed)
        self._wrap(cuda.Stream, "synchronize", self._stream_synchronized)
        self._wrap(cuda.Event, "record", self._event_recorded)
        self._wrap(cuda.Event, "wait", self._event_waited_for)
        self._wrap(cuda.Event, "synchronize", self._event_synchronized)
        self._wrap(cuda.CUDAGraph, "replay", self._replayed)
        if not self._cuda.wb_cuda_sees_captures():
            self._wrap(cuda.CUDAGraph, "capture_begin", self._capture_begun)
            self._wrap(cuda.CUDAGraph, "capture_end", self._capture_ended)

    def _wrap(self, owner: Any, name: str, tell: Callable[..., None]) -> None:
        """Has `tell` called after each ``owner.name(…)`` with the time before and its arguments."""
        original = getattr(owner, name, None)
        if original is None:  # another version of torch
            return
        now = self._cuda.wb_cuda_now

        @functools.wraps(original)
        def told(*args: Any, **kwargs: Any) -> Any:
            began = now()
            result = original(*args, **kwargs)
            with contextlib.suppress(Exception):  # of ours: the program's call was in order
                tell(began, *args, **kwargs)
            return result

        setattr(owner, name, told)

        def undo() -> None:
            if getattr(owner, name) is told:
                setattr(owner, name, original)

        self._undo.append(undo)

    def _tell(
        self, event: int, began: int, stream: Any, value: int = _NO_VALUE, device: int | None = None
    ) -> None:
        if stream is None:
            stream = self._torch.cuda.current_stream(device)
        self._cuda.wb_cuda_event(event, stream.device_index, stream.cuda_stream, value, began)

    def _index(self, device: Any) -> int:
        return int(self._torch.cuda._utils._get_device_index(device, optional=True))

    def _synchronized(self, began: int, device: Any = None) -> None:
        self._cuda.wb_cuda_event(_SYNCHRONIZE, self._index(device), _ALL_STREAMS, _NO_VALUE, began)

    def _asked(self, began: int, device: Any = None) -> None:
        self._cuda.wb_cuda_event(_QUERY, self._index(device), 0, _NO_VALUE, began)

    def _changed(self, began: int, allocator: Any) -> None:
        self._cuda.wb_cuda_start(self._hook.wb_face())

    def _stream_synchronized(self, began: int, stream: Any) -> None:
        self._tell(_SYNCHRONIZE, began, stream)

    def _number(self, event: Any) -> int:
        number = getattr(event, "_workbench_number", None)
        if number is None:
            number = event._workbench_number = self._events
            self._events += 1
        return int(number)

    def _event_recorded(self, began: int, event: Any, stream: Any = None) -> None:
        stream = stream or self._torch.cuda.current_stream()
        event._workbench_stream = (stream.device_index, stream.cuda_stream)
        self._tell(_EVENT_RECORD, began, stream, self._number(event))

    def _event_waited_for(self, began: int, event: Any, stream: Any = None) -> None:
        self._tell(_EVENT_WAIT, began, stream, self._number(event))

    def _event_synchronized(self, began: int, event: Any) -> None:
        """What the stream got after the event counts as complete, too: nobody tells it apart."""
        recorded_on = getattr(event, "_workbench_stream", None)
        if recorded_on is not None:
            self._cuda.wb_cuda_event(_SYNCHRONIZE, *recorded_on, _NO_VALUE, began)

    def _replayed(self, began: int, graph: Any) -> None:
        self._tell(_GRAPH_REPLAY, began, None)

    def _capture_begun(self, began: int, graph: Any, *args: Any, **kwargs: Any) -> None:
        self._tell(_CAPTURE_BEGIN, began, None)

    def _capture_ended(self, began: int, graph: Any) -> None:
        self._tell(_CAPTURE_END, began, None)


def load_cuda(path: str) -> Any:
    """The compiled hook for CUDA memory with the types of its functions."""
    library = ctypes.CDLL(path)
    library.wb_cuda_start.argtypes = [ctypes.c_void_p]
    library.wb_cuda_start.restype = None
    library.wb_cuda_now.argtypes = []
    library.wb_cuda_now.restype = ctypes.c_uint64
    library.wb_cuda_event.argtypes = [
        ctypes.c_uint32,
        ctypes.c_int,
        ctypes.c_uint64,
        ctypes.c_int64,
        ctypes.c_uint64,
    ]
    for name in ("wb_cuda_stop", "wb_cuda_tell_peaks", "wb_cuda_event"):
        getattr(library, name).restype = None
    return library


def load_pinned(path: str) -> Any:
    """The compiled hook for pinned memory with the types of its functions."""
    library = ctypes.CDLL(path)
    library.wb_pinned_start.argtypes = [ctypes.c_void_p, ctypes.c_void_p]
    library.wb_pinned_start.restype = library.wb_pinned_stop.restype = None
    return library
