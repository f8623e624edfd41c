"""PyTorch's memory snapshot: a pickle that pytorch.org/memory_viz and its likes open."""

from __future__ import annotations

import pickle
import re
from pathlib import Path
from typing import Any, Final

import numpy as np

from workbench.common.units import format_bytes
from workbench.common.words import some
from workbench.recorders.exporters import Progress, ReplaySource, Written
from workbench.recorders.exporters._torch_settings import allocator_settings, rounded
from workbench.recorders.trace.history import ACTIONS, STATES

NAME = "torch-snapshot"
SUMMARY = "PyTorch memory snapshot of a replayed state, for pytorch.org/memory_viz"
SUFFIX = ".pickle"
NEEDS = "replay"

PROTOCOL: Final = 4
"""Of the pickle: memory_viz reads none above."""

_CHUNK = 100_000
_FRAME = re.compile(r"(.+):(\d{1,9}) (.+)", re.DOTALL)
_INDEX = re.compile(r"[^:]+:(\d{1,3})")
_MOST_DEVICES = 128  # that PyTorch can number


def write(source: ReplaySource, path: Path, progress: Progress) -> Written:
    """Write the snapshot that `snapshot_of` makes."""
    snapshot = snapshot_of(source, progress)
    with path.open("wb") as file:
        pickle.dump(snapshot, file, protocol=PROTOCOL)
    history = source.history
    count = len(history.action)
    return Written(
        f"{count:,} {'entry' if count == 1 else 'entries'} and "
        f"{some(len(snapshot['segments']), 'segment')} of "
        f"{history.device}, {format_bytes(history.after.reserved)} reserved",
        "drop {path} onto https://pytorch.org/memory_viz, or: "
        "python -m torch.cuda._memory_viz trace_plot {path} -o memory.html",
        {
            "device": history.device,
            "entries": len(history.action),
            "segments": len(snapshot["segments"]),
            "reserved_bytes": history.after.reserved,
        },
    )


def snapshot_of(source: ReplaySource, progress: Progress = lambda *_: None) -> dict[str, Any]:
    """What ``torch.cuda.memory._snapshot()`` would have given at the end of a history.

    Streams are their numbers instead of pointers; stacks are one list each, shared by all entries
    that have it. The device's number is that in its name, 0 where it has none. Pool n is (0, n),
    which entries say where there is a private one.

    Args:
        source: a history whose final state tells the sizes of its blocks.
        progress: called with the entries done and the entries in all.
    """
    found = _INDEX.fullmatch(source.history.device)
    device = int(found[1]) if found and int(found[1]) < _MOST_DEVICES else 0
    stacks = _Frames(source.origins.stacks)
    settings = allocator_settings(source.history.settings)
    trace = _entries(source, stacks, progress)
    # The size of a request that failed is told as rounded, other than that of one that did not.
    for number in np.flatnonzero(source.history.action == ACTIONS.index("oom")).tolist():
        trace[number]["size"] = rounded(trace[number]["size"], settings)
    return {
        "segments": _segments(source, device, stacks),
        "device_traces": [*([] for _ in range(device)), trace],
        "allocator_settings": settings,
        "external_annotations": [
            {"stage": "START" if begins else "END", "name": name, "device": device, "time_us": time}
            for name, begins, time in source.origins.annotations
        ],
    }


class _Frames:
    """Stacks as lists of frames, innermost first; equal frames are one dictionary."""

    def __init__(self, stacks: list[str]) -> None:
        self._stacks = stacks
        self._lists: dict[int, list[dict[str, Any]]] = {-1: []}
        self._frames: dict[str, dict[str, Any]] = {}

    def __getitem__(self, number: int) -> list[dict[str, Any]]:
        if number not in self._lists:
            texts = self._stacks[number].split(";")
            self._lists[number] = [self._frame(text) for text in reversed(texts)]
        return self._lists[number]

    def _frame(self, text: str) -> dict[str, Any]:
        if text not in self._frames:
            place = _FRAME.fullmatch(text)
            # PyTorch names a file that it does not know by two question marks.
            file, line, name = place.groups() if place else ("??", 0, text)
            self._frames[text] = {"name": name, "filename": file, "line": int(line)}
        return self._frames[text]


def _entries(source: ReplaySource, stacks: _Frames, progress: Progress) -> list[dict[str, Any]]:
    history, origins = source.history, source.origins
    # A request that failed has no address; in its place PyTorch tells what the device had left.
    address = ["device_free" if name == "oom" else "addr" for name in ACTIONS]
    columns = (
        history.action,
        history.address,
        history.size,
        history.stream,
        origins.time_us,
        origins.stack,
    )
    entries: list[dict[str, Any]] = []
    for start in range(0, len(history.action), _CHUNK):
        part = [column[start : start + _CHUNK].tolist() for column in columns]
        entries += [
            {
                "action": ACTIONS[action],
                address[action]: at,
                "size": size,
                "stream": stream,
                "time_us": time,
                "frames": stacks[stack],
            }
            for action, at, size, stream, time, stack in zip(*part, strict=True)
        ]
        progress(len(entries), len(history.action))
    if history.pool.any():
        for entry, pool in zip(entries, history.pool.tolist(), strict=True):
            entry["pool_id"] = (0, pool)
    return entries


def _segments(source: ReplaySource, device: int, stacks: _Frames) -> list[dict[str, Any]]:
    segments = source.history.after.segments
    blocks = _Blocks(source, stacks)
    names = ("address", "size", "stream", "pool", "is_small", "is_expandable")
    listed = []
    for address, size, stream, pool, is_small, is_expandable, stack in zip(
        *(segments[name].tolist() for name in names),
        source.origins.segment_stack.tolist(),
        strict=True,
    ):
        inside = blocks.between(address, address + size)
        active = [block for block in inside if block["state"] != "inactive"]
        allocated = [block for block in active if block["state"] == "active_allocated"]
        listed.append(
            {
                "device": device,
                "address": address,
                "total_size": size,
                "allocated_size": sum(block["size"] for block in allocated),
                "active_size": sum(block["size"] for block in active),
                "requested_size": sum(block["requested_size"] for block in active),
                "stream": stream,
                "segment_type": "small" if is_small else "large",
                "segment_pool_id": (0, pool),
                "is_expandable": is_expandable,
                "frames": stacks[stack],
                "blocks": inside,
            }
        )
    return listed


class _Blocks:
    """The blocks of a state in order of addresses, and what is free between them."""

    def __init__(self, source: ReplaySource, stacks: _Frames) -> None:
        self._stacks = stacks
        columns = source.history.after.blocks
        names = ("address", "size", "requested", "state")
        self._rest = zip(
            *(columns[name].tolist() for name in names),
            source.origins.block_stack.tolist(),
            strict=True,
        )
        self._next = next(self._rest, None)

    def between(self, start: int, end: int) -> list[dict[str, Any]]:
        """The blocks of the segment from `start` to `end`, which lies behind the last asked for.

        What is free between two blocks is one block, since free neighbours are always merged.
        """
        found = []
        at = start
        while self._next is not None and self._next[0] < end:
            address, size, requested, state, stack = self._next
            if address > at:
                found.append(self._block(at, address - at))
            found.append(self._block(address, size, requested, STATES[state], stack))
            at = address + size
            self._next = next(self._rest, None)
        if at < end:
            found.append(self._block(at, end - at))
        return found

    def _block(
        self, address: int, size: int, requested: int = 0, state: str = "inactive", stack: int = -1
    ) -> dict[str, Any]:
        return {
            "address": address,
            "size": size,
            "requested_size": requested,
            "state": state,
            "frames": self._stacks[stack],
        }
