"""Operations that make sense: only what lives is used or freed."""

from __future__ import annotations

import random

from caching_settings import MIB
from engine_events import Operation
from hypothesis import strategies as st

STREAMS = 3
Command = tuple[str, int, int, int]
"""(op, size, stream, choice): the choice says which of the allocations there are is meant."""

OPS = {
    "alloc": 10,
    "free": 8,
    "record_stream": 3,
    "synchronize": 1,
    "free_completed": 1,
    "empty_cache": 1,
}
"""How often each is drawn."""
COMMON_SIZES = [
    *(0, 1, 511, 512, 513, MIB - 1, MIB, MIB + 1, 2 * MIB, 5 * MIB, 10 * MIB - 512, 10 * MIB),
    *(10 * MIB + 1, 18 * MIB, 19 * MIB - 1, 20 * MIB, 21 * MIB, 24 * MIB, 32 * MIB, 33 * MIB),
]


def commands(least: int, most: int) -> st.SearchStrategy[list[Command]]:
    """Lists of `least` to `most` commands for `operations_of`."""
    return st.lists(
        st.tuples(
            st.sampled_from([op for op, times in OPS.items() for _ in range(times)]),
            st.builds(random_size, st.randoms(use_true_random=False)),
            st.integers(0, STREAMS - 1),
            st.integers(0, 10**6),
        ),
        min_size=least,
        max_size=most,
    )


def operations_of(commands: list[Command]) -> list[Operation]:
    """What the commands mean; ids are numbered from 0, and so are CUDA events."""
    operations: list[Operation] = []
    live: list[int] = []
    waiting: list[int] = []
    recorded: set[int] = set()
    for number, (op, size, stream, choice) in enumerate(commands):
        if op == "alloc":
            operations.append((op, number, size, stream))
            live.append(number)
        elif op == "free" and live:
            freed = live.pop(choice % len(live))
            operations.append((op, freed, 0, 0))
            if freed in recorded:
                waiting.append(freed)
        elif op == "record_stream" and live:
            recorded.add(live[choice % len(live)])
            operations.append((op, live[choice % len(live)], 0, stream))
        elif op == "free_completed" and waiting:
            operations.append((op, waiting.pop(choice % len(waiting)), 0, 0))
        elif op == "synchronize":
            operations.append((op, -1, 0, stream if choice % 3 else -1))
        elif op in ("event_record", "event_wait"):
            operations.append((op, min(choice % 3, number), 0, stream))
        elif op == "set_fraction":
            operations.append((op, choice, 0, -1))
        elif op in ("capture_begin", "capture_end"):
            operations.append((op, -1, 0, stream))
        elif op == "empty_cache":
            operations.append((op, -1, 0, 0))
    return operations


def random_size(rng: random.Random) -> int:
    """Bytes of a request: around the rules' limits, small, or anything."""
    kind = rng.random()
    if kind < 0.35:
        return rng.choice(COMMON_SIZES)
    if kind < 0.7:
        return int(2 ** rng.uniform(0, 25.3))
    return rng.randrange(1, 24 * MIB)


def random_operations(rng: random.Random, count: int) -> list[Operation]:
    """About `count` operations on three streams; what lives settles at a few dozen blocks."""
    ops = rng.choices(list(OPS), list(OPS.values()), k=count)
    return operations_of(
        [(op, random_size(rng), rng.randrange(STREAMS), rng.randrange(10**6)) for op in ops]
    )
