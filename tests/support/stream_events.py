"""CUDA events by the rules of `--completion` (docs/allocators.md)."""

from __future__ import annotations


class Streams:
    """Which CUDA events have completed."""

    def __init__(self, completion: str) -> None:
        self.policy, _, delay = completion.partition(":")
        self.delay = int(delay or 0)
        self.recorded = 0
        self.now = 0
        self.open: dict[tuple[int, int], int] = {}

    def record(self, stream: int) -> tuple[int, int]:
        """A new CUDA event on `stream`."""
        self.recorded += 1
        self.open[stream, self.recorded] = self.now
        return stream, self.recorded

    def complete(self, stream: int, up_to: int) -> None:
        """Completes the CUDA events of `stream` (-1: of all) up to a number."""
        for event in list(self.open):
            if stream in (-1, event[0]) and event[1] <= up_to:
                del self.open[event]

    def synchronize(self, stream: int) -> None:
        """The program waited."""
        if self.policy != "never":
            self.complete(stream, self.recorded)

    def completed(self, event: tuple[int, int]) -> bool:
        """Whether the work before `event` is complete."""
        if event not in self.open or self.policy == "immediate":
            return True
        return self.policy == "delay" and self.now - self.open[event] >= self.delay
