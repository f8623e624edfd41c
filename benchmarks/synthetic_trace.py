"""Random allocation traces with sizes like those of deep-learning programs.

    python benchmarks/synthetic_trace.py --ops 1000000 --seed 21 > random.csv
    python benchmarks/synthetic_trace.py --ops 1000000 --seed 22 --pattern train > train.csv

One operation a line, ``op,id,size,stream``, as in tests/data/caching_golden. The same options give
the same trace everywhere.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from random import Random
from typing import NamedTuple


class Operation(NamedTuple):
    """One line: ``op`` is alloc, free, record_stream, empty_cache, stream_done or sync."""

    op: str
    id: int = -1
    size: int = 0
    stream: int = 0


@dataclass
class Options:
    """What a trace is made of.

    Args:
        ops: lines, about.
        seed: of the random numbers.
        live: bytes alive that the random pattern hovers below.
        largest: no tensor has more bytes.
        streams: number of streams; most tensors are on stream 0.
        record, done, sync, empty: how often another event follows an operation.
    """

    ops: int = 10_000
    seed: int = 1
    live: int = 8 << 30
    largest: int = 512 << 20
    streams: int = 3
    record: float = 0.03
    done: float = 0.03
    sync: float = 0.001
    empty: float = 0.0003


_SCALARS = [1, 4, 8, 64, 128, 512, 1000, 1024, 2048, 4096]
# Where the allocator's rules change.
_BORDERS = [
    size + step for size in (512, 1 << 20, 2 << 20, 10 << 20, 20 << 20) for step in (-1, 0, 1)
] + [12 << 20, (12 << 20) + 1]


def _tensor_size(random: Random, largest: int) -> int:
    """Bytes of one tensor: scalars and biases, activations, weights, logits."""
    while True:
        kind = random.random()
        if kind < 0.12:
            size = random.choice(_SCALARS)
        elif kind < 0.35:
            size = int(2 ** random.uniform(2, 20))
        elif kind < 0.75:
            batch = random.choice([1, 2, 4, 8, 16, 32])
            sequence = random.choice([128, 256, 512, 1024, 2048, random.randint(1, 2048)])
            hidden = random.choice([64, 128, 768, 1024, 2048, 4096, 5120])
            size = batch * sequence * hidden * random.choice([2, 4])
        elif kind < 0.93:
            hidden = random.choice([768, 1024, 2048, 4096, 5120, 8192])
            columns = random.choice([hidden, 4 * hidden, 3 * hidden, 11008, 1])
            size = hidden * columns * random.choice([1, 2, 4])
        elif kind < 0.97:
            words = random.choice([32000, 50257, 50304, 128256])
            size = words * random.randint(1, 2048) * random.choice([2, 4])
        else:
            size = random.choice(_BORDERS)
        if 0 < size <= largest:
            return size


def _extras(random: Random, options: Options, live: list[tuple[int, int]]) -> Iterator[Operation]:
    chance = random.random()
    if chance < options.record and live:
        number = random.choice(live)[0]
        yield Operation("record_stream", number, stream=random.randrange(options.streams))
    elif chance < options.record + options.done:
        yield Operation("stream_done", stream=random.randrange(options.streams))
    elif chance < options.record + options.done + options.sync:
        yield Operation("sync", stream=-1)
    elif chance < options.record + options.done + options.sync + options.empty:
        yield Operation("empty_cache")


def _stream(random: Random, options: Options) -> int:
    return 0 if random.random() < 0.8 else random.randrange(options.streams)


def random_pattern(options: Options) -> Iterator[Operation]:
    """Tensors of all sizes; mostly recent ones die first; the live total wanders."""
    random = Random(options.seed)
    live: list[tuple[int, int]] = []
    total, next_id, count = 0, 1, 0
    target: float = options.live
    while count < options.ops:
        if random.random() < 0.001:
            target = options.live * random.uniform(0.2, 1.0)
        # The chances are drawn only where they decide, as the golden traces were.
        if (
            not live
            or (total < target and random.random() < 0.7)
            or (total >= target and random.random() < 0.2)
        ):
            size = _tensor_size(random, options.largest)
            yield Operation("alloc", next_id, size, _stream(random, options))
            live.append((next_id, size))
            total += size
            next_id += 1
        else:
            if random.random() < 0.7:
                place = len(live) - 1 - min(int(random.expovariate(1 / 12)), len(live) - 1)
            else:
                place = random.randrange(len(live))
            number, size = live.pop(place)
            yield Operation("free", number)
            total -= size
        count += 1
        for operation in _extras(random, options, live):
            yield operation
            count += 1


class _Training:
    """Weights that stay, then steps: forward keeps activations, backward frees them in reverse."""

    def __init__(self, options: Options) -> None:
        self.options = options
        self.random = Random(options.seed)
        self.layers = self.random.randint(8, 32)
        self.hidden = self.random.choice([1024, 2048, 4096])
        self.live: list[tuple[int, int]] = []
        self.next_id = 1
        self.made: list[Operation] = []

    def alloc(self, size: int, stream: int = 0) -> tuple[int, int]:
        size = max(1, min(size, self.options.largest))
        self.made.append(Operation("alloc", self.next_id, size, stream))
        self.live.append((self.next_id, size))
        self.next_id += 1
        return self.live[-1]

    def free(self, tensor: tuple[int, int]) -> None:
        self.live.remove(tensor)
        self.made.append(Operation("free", tensor[0]))

    def extras(self) -> None:
        self.made.extend(_extras(self.random, self.options, self.live))

    def weights(self) -> None:
        hidden = self.hidden
        for _ in range(self.layers):
            for size in (6 * hidden**2, 2 * hidden**2, 8 * hidden**2, 2 * hidden, 2 * hidden):
                self.alloc(size)

    def step(self) -> None:
        random, hidden = self.random, self.hidden
        batch = random.choice([1, 2, 4])
        length = random.choice([128, 256, 512, random.randint(16, 512)])
        activation = batch * length * hidden * 2
        kept = []
        for _ in range(self.layers):
            attention = [self.alloc(activation) for _ in range(3)]
            wide = self.alloc(4 * activation)
            scores = self.alloc(
                batch * 16 * length * length * 2, _stream(self.random, self.options)
            )
            self.free(attention[1])
            kept.append([attention[0], attention[2], wide, scores])
            self.extras()
        logits = self.alloc(batch * length * 32000 * 2)
        for layer in reversed(kept):
            gradient = self.alloc(activation)
            temporary = self.alloc(4 * activation, _stream(self.random, self.options))
            for tensor in reversed(layer):
                self.free(tensor)
            self.free(temporary)
            self.free(gradient)
            self.free(self.alloc(hidden * hidden * 2))
            self.extras()
        self.free(logits)
        if random.random() < 0.02:
            self.made.append(Operation("empty_cache"))


def train_pattern(options: Options) -> Iterator[Operation]:
    """Training of a transformer with batches of different lengths; whole steps, so a few more."""
    training = _Training(options)
    training.weights()
    count = 0
    while True:
        count += len(training.made)
        yield from training.made
        if count >= options.ops:
            return
        training.made = []
        training.step()


PATTERNS: dict[str, Callable[[Options], Iterator[Operation]]] = {
    "random": random_pattern,
    "train": train_pattern,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n", 1)[0])
    parser.add_argument("--ops", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--pattern", choices=sorted(PATTERNS), default="random")
    options = parser.parse_args()
    sys.stdout.write("op,id,size,stream\n")
    for operation in PATTERNS[options.pattern](Options(ops=options.ops, seed=options.seed)):
        number = operation.id if operation.id >= 0 else ""
        size = operation.size or ""
        on_stream = operation.op in ("alloc", "record_stream", "stream_done")
        stream = operation.stream if on_stream else ""
        sys.stdout.write(f"{operation.op},{number},{size},{stream}".rstrip(",") + "\n")


if __name__ == "__main__":
    main()
