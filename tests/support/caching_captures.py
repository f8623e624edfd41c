"""Who uses private pools, and what a capture defers: rules 15 and 16 of docs/allocators.md."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass

from caching_settings import Conf
from caching_state import Block, State
from engine_events import LANE


@dataclass(frozen=True)
class Deferred:
    """A free that waits for the end of captures."""

    number: int
    block: Block
    streams: list[int]
    is_captured: bool
    """All of them, and its own."""


class Captures(State):
    """Of the allocator's state, what private pools and captures add."""

    def __init__(self, conf: Conf) -> None:
        super().__init__(conf)
        self.uses: dict[int, int] = {}
        """By private pool."""
        self.captures = 0
        self.deferred: list[Deferred] = []
        self.captured: set[int] = set()
        """Streams."""
        self.waited: dict[int, set[tuple[int, int]]] = {}
        """By captured stream: uses by others, before deferred frees, that it has waited for."""
        self.marked: dict[int, set[tuple[int, int]]] = {}
        """The same by CUDA event."""

    @abstractmethod
    def wait_for(self, block: Block, streams: list[int]) -> None:
        """Rule 11: for what each stream was given up to now."""

    @abstractmethod
    def become_free(self, block: Block) -> None:
        """Rule 11: for real."""

    def lead(self, op: str, number: int, stream: int) -> None:
        """What the program does to private pools, captures and CUDA events."""
        if op == "pool_begin":
            self.uses[number] = self.uses.get(number, 0) + 1
        elif op == "pool_end" and self.conf.reuses:
            of_pool = [free for free in self.deferred if free.block.segment.private == number]
            self.deferred = [free for free in self.deferred if free not in of_pool]
            self.end_deferrals(of_pool)
        elif op == "pool_release":
            self.uses[number] = max(self.uses.get(number, 1) - 1, 0)
        elif op == "capture_begin":
            self.captures += 1
            self.captured.add(stream)
        elif op == "capture_end":
            self.end_capture()
        elif op == "event_record":
            self.marked.pop(number, None)
            if stream in self.captured:
                self.marked[number] = self.waited.get(stream, set()) | self.frees_used_by(stream)
        elif op == "event_wait" and number in self.marked:
            self.captured.add(stream)
            self.waited[stream] = self.waited.get(stream, set()) | self.marked[number]

    def defer(self, block: Block, streams: list[int]) -> None:
        """Rule 16: a free waits for the end of captures, and then for `streams`."""
        self.counts["deferred frees"] += 1
        is_captured = {block.segment.stream % LANE, *streams} <= self.captured
        number = self.counts["deferred frees"]
        self.deferred.append(Deferred(number, block, streams, is_captured))

    def end_deferral(self) -> None:
        """Of all."""
        deferred, self.deferred = self.deferred, []
        self.end_deferrals(deferred)

    def end_deferrals(self, deferred: list[Deferred]) -> None:
        """Rule 16: of streams that were only recorded during a capture nothing is waited for."""
        for free in deferred:
            block = free.block
            before = [stream for stream in free.streams if stream not in block.used_in_capture]
            block.used_in_capture = []
            if before:
                self.counts["deferred frees that wait"] += 1
                self.wait_for(block, before)
            else:
                self.become_free(block)
        self.step()

    def end_capture(self) -> None:
        """One of them; with the last, nothing is captured."""
        self.captures = max(self.captures - 1, 0)
        if not self.captures:
            self.captured, self.waited, self.marked = set(), {}, {}

    def frees_used_by(self, stream: int) -> set[tuple[int, int]]:
        """The deferred frees so far of blocks that `stream` had used, by number and stream."""
        return {(free.number, stream) for free in self.deferred if stream in free.streams}

    def end_safe_deferrals(self, stream: int) -> None:
        """Rule 16, of blocks of `stream`."""
        waited = self.waited.get(stream, set())
        for free in list(self.deferred):
            uses = {(free.number, other) for other in free.streams}
            own = free.block.segment.stream % LANE
            if stream in self.captured and own == stream and free.is_captured and uses <= waited:
                self.counts["deferred frees that end early"] += 1
                self.deferred.remove(free)
                free.block.used_in_capture = []
                self.become_free(free.block)
