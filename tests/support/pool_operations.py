"""Operations with private pools and captures that make sense."""

from __future__ import annotations

import random

from engine_events import LANE, Operation
from random_operations import OPS, STREAMS, random_size


class PoolProgram:
    """A program as PyTorch lets it be: a pool that nobody uses any more is not begun again, one
    that is begun is not begun a second time, and the default stream is not captured.

    Args:
        rng: decides.
        avoids: where PyTorch's own binary goes wrong is left out: it does not forget streams that
            were recorded in a capture on a block that outlived it, and, with expandable segments,
            miscounts what a pool has where that is given back piece by piece.
        reuses: whether blocks are used again during captures. Then PyTorch's own takes all captured
            streams for those of one capture, which ends before the use of its pool; and since the
            stand-in's graphs have nothing in them, streams do not wait for each other.
    """

    def __init__(self, rng: random.Random, avoids: bool = False, reuses: bool = False) -> None:
        self.rng = rng
        self.avoids = avoids
        self.reuses = reuses
        self.operations: list[Operation] = []
        self.live: dict[int, int] = {}
        """Pools, by id."""
        self.recorded: set[int] = set()
        """Of these, those with streams recorded in a capture."""
        self.uses: dict[int, int] = {}
        self.begun: list[tuple[int, set[int]]] = []
        """Pools, and the streams whose allocations they get; the last one is asked first."""
        self.capturing: list[int] = []
        """Streams."""

    def add(self, op: str, number: int = -1, size: int = 0, stream: int = 0) -> None:
        """One more operation."""
        self.operations.append((op, number, size, stream))

    def begin(self) -> None:
        """Begins a new pool or, as often, one in use."""
        idle = [n for n, uses in self.uses.items() if uses and n not in dict(self.begun)]
        pool = self.rng.choice(idle) if idle and self.rng.random() < 0.5 else len(self.uses) + 1
        self.uses[pool] = self.uses.get(pool, 0) + 1
        self.begun.append(
            (pool, set(self.rng.sample(range(STREAMS), self.rng.randint(1, STREAMS))))
        )
        self.add("pool_begin", pool)

    def end(self) -> None:
        """Ends one of those begun."""
        if self.begun and not (self.reuses and self.capturing):
            pool, _ = self.begun.pop(self.rng.randrange(len(self.begun)))
            self.add("pool_end", pool)

    def release(self) -> None:
        """One of a pool's users releases it; while it is begun, only another of them."""
        found = [n for n, uses in self.uses.items() if uses > (n in dict(self.begun))]
        if not found:
            return
        pool = self.rng.choice(found)
        if self.avoids and self.uses[pool] == 1 and self.capturing:
            return
        self.uses[pool] -= 1
        is_last = self.avoids and not self.uses[pool]
        for number in [n for n, of in self.live.items() if is_last and of == pool]:
            self.free(number)
        self.add("pool_release", pool)
        if is_last:
            self.add("empty_cache")

    def capture(self) -> None:
        """Begins a capture, or ends one."""
        idle = [stream for stream in range(1, STREAMS) if stream not in self.capturing]
        may_begin = len(self.capturing) < (1 if self.reuses else 2)
        if may_begin and (not self.capturing or self.rng.random() < 0.3):
            self.capturing.append(self.rng.choice(idle))
            self.add("capture_begin", stream=self.capturing[-1])
            return
        if self.avoids and len(self.capturing) == 1:
            for number in sorted(self.recorded):
                self.free(number)
        stream = self.capturing.pop(self.rng.randrange(len(self.capturing)))
        self.add("capture_end", stream=stream)

    def free(self, number: int) -> None:
        """Of what lives."""
        del self.live[number]
        self.recorded.discard(number)
        self.add("free", number)

    def step(self, op: str) -> None:
        """One of `OPS`, or of those on CUDA events."""
        rng = self.rng
        stream = rng.randrange(STREAMS)
        if op == "alloc":
            pool = next((pool for pool, of in reversed(self.begun) if stream in of), 0)
            self.live[len(self.operations)] = pool
            self.add(op, len(self.operations), random_size(rng), stream + LANE * pool)
        elif op == "free" and self.live:
            self.free(rng.choice(list(self.live)))
        elif op == "record_stream" and self.live:
            number = rng.choice(list(self.live))
            if self.capturing:
                self.recorded.add(number)
            self.add(op, number, stream=stream)
        elif op == "synchronize":
            self.add(op, stream=rng.randrange(-1, STREAMS))
        elif op == "empty_cache":
            self.add(op)
        elif op == "set_fraction":
            self.add(op, rng.choice([300_000, 770_000, 900_001, 999_999, 1_000_000]), stream=-1)
        elif op in ("event_record", "event_wait") and not self.reuses:
            self.add(op, rng.randrange(3), stream=stream)


def random_pool_operations(
    rng: random.Random, count: int, avoids: bool = False, reuses: bool = False
) -> list[Operation]:
    """About `count` operations with private pools and captures, as of a `PoolProgram`."""
    program = PoolProgram(rng, avoids, reuses)
    moves = [program.begin, program.end, program.release, program.capture]
    often = OPS | {"record_stream": 5, "event_record": 3, "event_wait": 3}
    if rng.random() < 0.3:
        often["set_fraction"] = 1
    for op in rng.choices(list(often), list(often.values()), k=count):
        if rng.random() < 0.12:
            rng.choice(moves)()
        program.step(op)
    return program.operations
