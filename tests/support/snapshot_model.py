"""Histories by the slow model of `caching`, with segments where a driver might put them.

The engine's simulated device never uses an address twice and hands them out in order, so that its
histories cannot tell rules that look at addresses from rules that do not. Real ones can.
"""

from __future__ import annotations

import random
from collections.abc import Iterable
from typing import Any

import numpy as np
from caching_model import Model
from caching_settings import MIB, Conf
from caching_state import Block, Segment
from engine_events import Operation

from workbench.recorders.trace.history import ACTIONS, STATES, History, State

_LOWEST = 0x7F00_0000_0000
_STATE_NAMES = {"allocated": "active_allocated", "pending": "active_pending_free"}


class RecordingModel(Model):
    """The model, with addresses and a journal; it keeps no statistics.

    Args:
        conf: settings.
        capacity: bytes of the device.
        rules: ``2.13`` or ``address-order``.
        completion: when work on streams completes.
        seed: of the driver's addresses; None for addresses that rise and are used once.
        goes_on: whether the program does after a request that failed.
        first_private: streams from here on stand for those of private pools, whose segments are
            kept when cached ones are released.
    """

    def __init__(
        self,
        conf: Conf,
        capacity: int,
        rules: str = "2.13",
        completion: str = "recorded",
        seed: int | None = None,
        goes_on: bool = False,
        first_private: int | None = None,
    ) -> None:
        super().__init__(conf, capacity, completion)
        self.goes_on = goes_on
        self.first_private = first_private
        self.by_address = rules == "address-order"
        self.driver = None if seed is None else random.Random(seed)
        self.journal: list[tuple[str, int, int, int, int]] = []
        """Action, address, size, stream, number of the operation."""
        self.start: dict[Segment, int] = {}
        self.next = 2 * MIB

    def record(self, operations: Iterable[Operation]) -> int | None:
        """Run `operations`; the number of the one that ran out of memory, where it ends."""
        for number, operation in enumerate(operations):
            self.streams.now = number
            op, name, size, stream = operation
            if op == "alloc":
                if not self.allocate(name, size, stream):
                    self.write("oom", self.capacity - self.device_used, size, stream)
                    if not self.goes_on:
                        return number
                elif size:
                    self.write_block("alloc", self.live[name])
            elif op == "free":
                self.free(name)
            elif op == "record_stream":
                self.record_stream(name, stream)
            elif op in ("synchronize", "stream_done", "sync"):
                self.streams.synchronize(stream)
            elif op == "free_completed":
                self.free_completed(name)
            elif op == "empty_cache":
                self.release_cached()
        return None

    def history(self, device: str, settings: str, rules: str) -> tuple[History, list[int]]:
        """What was recorded, and the number of the operation of each entry."""
        columns: Any = list(zip(*self.journal, strict=True)) or [()] * 5
        action, address, size, stream, event = columns
        after = self.state()
        return (
            History(
                device=device,
                action=np.array([ACTIONS.index(name) for name in action], dtype=np.uint8),
                address=np.array(address, dtype=np.uint64),
                size=np.array(size, dtype=np.int64),
                stream=np.array(stream, dtype=np.int32),
                pool=np.zeros(len(action), dtype=np.int32),
                before=State(
                    {name: column[:0] for name, column in after.segments.items()},
                    {name: column[:0] for name, column in after.blocks.items()},
                ),
                after=after,
                settings=settings,
                settings_told=True,
                rules=(rules,),
            ),
            list(event),
        )

    def state(self) -> State:
        """Segments and blocks now; stretches of memory of expandable segments are segments."""
        segments: list[tuple[Any, ...]] = []
        blocks: list[tuple[int, int, int, int]] = []
        end = -1
        for segment in sorted(self.segments, key=lambda one: self.start[one]):
            for block in segment.blocks:
                if not block.mapped:
                    continue
                at = self.address(block)
                if at != end or segment.blocks[0] is block:
                    small = segment.pool == "small"
                    segments.append((at, 0, segment.stream, 0, small, segment.expandable))
                segments[-1] = (segments[-1][0], segments[-1][1] + block.size, *segments[-1][2:])
                end = at + block.size
                if block.state != "free":
                    state = STATES.index(_STATE_NAMES[block.state])
                    blocks.append((at, block.size, block.requested, state))
        return State(
            _columns(
                segments,
                {
                    "address": "u8",
                    "size": "i8",
                    "stream": "i4",
                    "pool": "i4",
                    "is_small": "?",
                    "is_expandable": "?",
                },
            ),
            _columns(blocks, {"address": "u8", "size": "i8", "requested": "i8", "state": "u1"}),
        )

    # -- What is written, and where segments lie -----------------------------------------------

    def write(self, action: str, address: int, size: int, stream: int) -> None:
        self.journal.append((action, address, size, stream, self.streams.now))

    def write_block(self, action: str, block: Block) -> None:
        self.write(action, self.address(block), block.requested, block.segment.stream)

    def address(self, block: Block) -> int:
        return self.start[block.segment] + block.offset

    def place(self, segment: Segment) -> int:
        """Where the driver puts a segment: free addresses may be used again."""
        span = -(-segment.size // (2 * MIB)) * 2 * MIB
        if self.driver is None:
            self.next += span
            return self.next - span
        taken = [(self.start[other], other.size) for other in self.segments if other in self.start]
        room = 2 * (sum(size for _, size in taken) + span) // (2 * MIB) + 1
        while True:
            at = _LOWEST + self.driver.randrange(room) * 2 * MIB
            if all(at + span <= low or low + size <= at for low, size in taken):
                return at
            room += 1

    # -- The rules, overheard ------------------------------------------------------------------

    def step(self) -> None:
        """Statistics are slow and not wanted here."""

    def free_blocks(self, pool: str, stream: int | None = None, private: int = 0) -> list[Block]:
        found = super().free_blocks(pool, stream, private)
        if stream is None and self.first_private is not None:
            found = [block for block in found if block.segment.stream < self.first_private]
        if self.by_address:
            found.sort(key=lambda block: (block.segment.stream, block.size, self.address(block)))
        return found

    def find_run(self, pool: str, stream: int, size: int) -> Block | None:
        if self.by_address:
            self.segments.sort(key=lambda segment: self.start[segment])
        found = super().find_run(pool, stream, size)
        self.segments.sort(key=lambda segment: segment.number)
        return found

    def add_segment(self, pool: str, stream: int, size: int) -> Block:
        block = super().add_segment(pool, stream, size)
        self.start[block.segment] = self.place(block.segment)
        if not block.segment.expandable:
            self.write("segment_alloc", self.address(block), size, stream)
        return block

    def release_segment(self, block: Block) -> None:
        self.write("segment_free", self.address(block), block.size, block.segment.stream)
        super().release_segment(block)

    def map(self, block: Block, size: int) -> bool:
        at, page = self.address(block), self.page(block.segment.pool)
        if not super().map(block, size):
            return False
        self.write("segment_map", at, -(-size // page) * page, block.segment.stream)
        return True

    def unmap(self, block: Block) -> None:
        page, start = self.page(block.segment.pool), self.start[block.segment]
        begin = -(-block.offset // page) * page
        end = (block.offset + block.size) // page * page
        if begin < end:
            self.write("segment_unmap", start + begin, end - begin, block.segment.stream)
        super().unmap(block)

    def free(self, name: int) -> None:
        if name in self.live:
            self.write_block("free_requested", self.live[name])
        super().free(name)

    def become_free(self, block: Block) -> None:
        self.write_block("free_completed", block)
        super().become_free(block)


def _columns(rows: list[tuple[Any, ...]], kinds: dict[str, str]) -> dict[str, Any]:
    columns: Any = list(zip(*rows, strict=True)) or [()] * len(kinds)
    return {
        name: np.array(column, dtype=kind)
        for (name, kind), column in zip(kinds.items(), columns, strict=True)
    }


def record(
    operations: Iterable[Operation],
    settings: str = "",
    capacity: int = 1 << 40,
    rules: str = "2.13",
    completion: str = "recorded",
    seed: int | None = None,
    **more: Any,
) -> RecordingModel:
    """A model that has run `operations`, up to where it ran out of memory."""
    model = RecordingModel(Conf.read(settings), capacity, rules, completion, seed, **more)
    model.record(operations)
    return model
