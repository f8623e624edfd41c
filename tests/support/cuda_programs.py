"""Random programs that allocate through PyTorch's CUDA allocator, and the rows they should make."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, field

MIB = 1 << 20
SIZES = (0, 1, 512, 1000, 4096, 200_000, MIB, 3 * MIB, 11 * MIB, 40 * MIB, 200 * MIB)

Row = tuple[str, int, int, int, int, int | None]
"""event, id, size, stream, pool, value"""


def commands(seed: int, count: int = 400, pools: bool = True) -> Iterator[str]:
    """Commands of ``tests/data/cuda_program.cpp``."""
    choose = random.Random(seed)
    live: list[int] = []
    raw: set[int] = set()
    pool = released = 0
    begun = False
    for number in range(count):
        what = choose.random()
        if what < 0.5:
            is_raw = choose.random() < 0.2
            size = choose.choice(SIZES) + choose.randrange(300)
            live.append(number)
            raw |= {number} if is_raw else set()
            yield f"{'raw' if is_raw else 'alloc'} {number} {size} 0 {choose.randrange(3)}"
        elif what < 0.85 and live:
            number = live.pop(choose.randrange(len(live)))
            yield f"free {number}"
        elif what < 0.92 and (owned := [one for one in live if one not in raw]):
            yield f"use {choose.choice(owned)} {choose.randrange(4)}"
        elif what < 0.93:
            yield "empty" if not begun else "query"
        elif what < 0.94:
            yield choose.choice(["query", "wait", "reset"])
        elif what < 0.95:
            yield f"fraction {choose.choice(['1', '0.75', '0.5'])}"
        elif pools and not begun:
            pool += 1
            begun = True
            yield f"begin {pool}"
        elif pools and choose.random() < 0.5:
            begun = False
            yield f"end {pool}"
        elif pools and not begun and released < pool:
            released += 1
            yield f"release {released}"
    if begun:
        yield f"end {pool}"


@dataclass
class Block:
    """A block that the program was given."""

    id: int
    size: int
    stream: int
    pool: int
    used_elsewhere: bool = False


@dataclass
class Expectation:
    """Turns what a program says into the rows that its recording should have."""

    rows: list[Row] = field(default_factory=list)
    peaks: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        self._streams = {0: 0}
        self._pools: dict[str, int] = {}
        self._of_command: dict[str, str] = {}
        self._address: dict[str, Block] = {}
        self._freed: dict[str, Block] = {}
        self._pool = 0
        self._ids = 0

    def hear(self, said: str) -> None:
        """Take in all that the program wrote to its standard output."""
        command: list[str] = []
        freeing = ""
        for line in said.splitlines():
            what, *words = line.split()
            if what == "do":
                command, freeing = words, ""
                if command[0] == "free":
                    freeing = self._free(command[1])
                elif command[0] == "empty":
                    self._add("empty_cache")
            elif what == "address" and words[0] != "0":
                self._allocate(command, words[0])
            elif what == "oom":
                stream = self._stream(command[4])
                self._add("oom", size=int(command[2]), stream=stream, value=int(words[0]))
            elif what == "completed" and words[0] != freeing and words[0] in self._freed:
                block = self._freed.pop(words[0])
                self._add("free_completed", block.id, block.size, block.stream, block.pool)
            elif what.startswith("segment"):
                self._add(what, size=int(words[1]))
            elif what == "peaks":
                self._add("query")
                self.peaks = tuple(map(int, words))
            if what == "do":
                self._control(command)

    def _control(self, command: list[str]) -> None:
        """Calls whose row does not depend on what becomes of them."""
        what, *words = command
        if what == "use" and words[0] in self._of_command:
            block = self._address[self._of_command[words[0]]]
            stream = self._stream(words[1])
            block.used_elsewhere |= stream != block.stream
            self._add("record_stream", block.id, block.size, stream, block.pool)
        elif what in ("begin", "end", "release"):
            pool = self._pools.setdefault(words[0], len(self._pools) + 1)
            self._pool = pool if what == "begin" else 0 if what == "end" else self._pool
            self._add(f"pool_{what}", pool=pool)
        elif what == "fraction":
            self._add("set_fraction", value=round(float(words[0]) * 1_000_000))
        elif what == "query":
            self._add("query")
        elif what in ("capture", "captured"):
            self._add("capture_begin" if what == "capture" else "capture_end")

    def _stream(self, number: str) -> int:
        return self._streams.setdefault(int(number), len(self._streams))

    def _allocate(self, command: list[str], address: str) -> None:
        block = Block(self._ids, int(command[2]), self._stream(command[4]), self._pool)
        self._ids += 1
        self._of_command[command[1]] = address
        self._address[address] = block
        self._freed.pop(address, None)
        self._add("alloc", block.id, block.size, block.stream, block.pool)

    def _free(self, number: str) -> str:
        address = self._of_command.pop(number, "")
        if address:
            block = self._address.pop(address)
            if block.used_elsewhere:
                self._freed[address] = block
            self._add("free", block.id, block.size, block.stream, block.pool)
        return address

    def _add(
        self,
        event: str,
        id: int = -1,
        size: int = 0,
        stream: int = 0,
        pool: int = 0,
        value: int | None = None,
    ) -> None:
        self.rows.append((event, id, size, stream, pool, value))
