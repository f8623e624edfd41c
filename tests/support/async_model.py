"""The rules of `async` and its pool (docs/allocators.md), as plain as can be, and slow."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field, replace

UNIT = 512
ANYONES = "anyone's"
UNIFYING = -2


@dataclass
class Settings:
    """Bytes, and the rules of reuse; `threshold` None: unlimited; `completion`: of the replay."""

    capacity: int
    chunk: int
    threshold: int | None = None
    follow: bool = True
    opportunistic: bool = True
    internal: bool = True
    remap: bool = True
    fraction: float | None = None
    completion: str = "recorded"


@dataclass
class Piece:
    """A piece of the pool: where, whose, and when it was freed."""

    at: int
    size: int
    lane: int | str | None = None  # None while allocated
    freed: int = 0

    @property
    def end(self) -> int:
        return self.at + self.size


@dataclass
class Pointer:
    piece: Piece
    size: int
    stream: int
    captured: bool
    recorded: list[int] = field(default_factory=list)
    deferred: bool = False


class Pool:
    """Pieces in order of their position; each range begins where the last one ended."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.pieces: list[Piece] = []
        self.ranges: list[tuple[int, int]] = []  # start, end
        self.known: dict[int, dict[int, int]] = defaultdict(dict)
        self.events: dict[int, dict[int, int]] = {}
        self.now = 0
        self.done: dict[int, int] = defaultdict(int)
        self.own_frees: list[tuple[int, list[tuple[int, int]]]] = []
        self.own_waits: list[tuple[int, int]] = []

    @property
    def reserved(self) -> int:
        return sum(piece.size for piece in self.pieces)

    @property
    def used(self) -> int:
        return sum(piece.size for piece in self.pieces if piece.lane is None)

    @property
    def largest_free(self) -> int:
        return max((piece.size for piece in self.pieces if piece.lane is not None), default=0)

    def range_of(self, piece: Piece) -> int:
        return next(n for n, (start, end) in enumerate(self.ranges) if start <= piece.at < end)

    def tick(self) -> int:
        self.now += 1
        return self.now

    # Order and completion.

    def clock(self, stream: int) -> dict[int, int]:
        return {**self.known[stream], stream: self.now}

    def learn(self, stream: int, clock: dict[int, int]) -> None:
        mine = self.known[stream]
        for on, position in clock.items():
            mine[on] = max(mine.get(on, 0), position)

    def join(self, waiter: int, on: int) -> None:
        position = self.tick()
        self.learn(waiter, self.clock(on))
        if waiter == UNIFYING:
            self.own_waits.append((on, position))

    def ordered(self, piece: Piece, stream: int) -> bool:
        assert isinstance(piece.lane, int)
        return piece.freed <= self.known[stream].get(piece.lane, 0)

    def passed(self, stream: int, position: int) -> bool:
        return self.settings.completion == "immediate" or position <= self.done[stream]

    def completed(self, piece: Piece) -> bool:
        assert isinstance(piece.lane, int)
        if piece.lane != UNIFYING:
            return self.passed(piece.lane, piece.freed)
        before = [waits for freed, waits in self.own_frees if freed <= piece.freed]
        return all(self.passed(*wait) for waits in before for wait in waits)

    def complete(self, stream: int, position: int) -> None:
        self.done[stream] = max(self.done[stream], position)

    # Allocation.

    def allocate(self, size: int, stream: int) -> Piece | None:
        held = -(-size // UNIT) * UNIT
        piece = self.find(held, stream)
        if piece is None:
            return None
        if piece.size > held:
            rest = replace(piece, at=piece.at + held, size=piece.size - held)
            self.pieces.insert(self.pieces.index(piece) + 1, rest)
            piece.size = held
        piece.lane = None
        return piece

    def best(self, held: int, usable: Callable[[Piece], bool]) -> Piece | None:
        found = [
            piece
            for piece in self.pieces
            if piece.lane is not None and piece.size >= held and usable(piece)
        ]
        return min(found, key=lambda piece: (piece.size, piece.at), default=None)

    def find(self, held: int, stream: int) -> Piece | None:
        def mine(piece: Piece) -> bool:
            return piece.lane in (stream, ANYONES)

        def follows(piece: Piece) -> bool:
            return self.settings.follow and (not mine(piece)) and self.ordered(piece, stream)

        piece = self.best(held, mine) or self.best(held, follows)
        if piece is None and self.settings.opportunistic:
            self.collect()
            piece = self.best(held, mine)
        if piece is None:
            piece = self.together(held, stream, lambda piece: mine(piece) or follows(piece))
        if piece is None and self.settings.internal:
            piece = self.best(held, lambda piece: True)
            if piece is None:
                return self.together(held, stream, lambda piece: True)
            self.wait_for(piece, stream)
        return piece

    def wait_for(self, piece: Piece, stream: int) -> None:
        if piece.lane not in (stream, ANYONES) and not self.ordered(piece, stream):
            assert isinstance(piece.lane, int)
            self.learn(stream, {piece.lane: piece.freed})

    def together(self, held: int, stream: int, usable: Callable[[Piece], bool]) -> Piece | None:
        return self.side_by_side(held, stream, usable) or self.grow(held, stream, usable)

    def runs(self, usable: Callable[[Piece], bool]) -> list[list[Piece]]:
        """Usable free pieces side by side, in one range."""
        runs: list[list[Piece]] = []
        for piece in self.pieces:
            if piece.lane is None or not usable(piece):
                continue
            last = runs[-1][-1] if runs else None
            together = last is not None and last.end == piece.at
            if last is not None and together and self.range_of(last) == self.range_of(piece):
                runs[-1].append(piece)
            else:
                runs.append([piece])
        return runs

    def side_by_side(self, held: int, stream: int, usable: Callable[[Piece], bool]) -> Piece | None:
        found = [run for run in self.runs(usable) if run[-1].end - run[0].at >= held]
        if not found:
            return None
        run = min(found, key=lambda run: (run[-1].end - run[0].at, run[0].at))
        end = run[0].at + held
        for piece in run:
            if piece.at < end:
                self.wait_for(piece, stream)
        self.cut(run[0].at, end)
        whole = Piece(run[0].at, held)
        self.pieces = sorted([*self.pieces, whole], key=lambda piece: piece.at)
        return whole

    def collect(self) -> None:
        for piece in list(self.pieces):
            is_there = any(piece is one for one in self.pieces)
            if is_there and isinstance(piece.lane, int) and self.completed(piece):
                self.release(piece, ANYONES)

    def release(self, piece: Piece, lane: int | str) -> None:
        """Give `piece` to `lane`, merged with the neighbours of `lane`."""
        piece.lane = lane
        at = self.pieces.index(piece)
        for neighbour in self.pieces[at + 1 : at + 2] + self.pieces[max(at - 1, 0) : at]:
            touches = neighbour.at == piece.end or neighbour.end == piece.at
            same_range = self.range_of(neighbour) == self.range_of(piece)
            if touches and same_range and neighbour.lane == lane:
                piece.at = min(piece.at, neighbour.at)
                piece.size += neighbour.size
                self.pieces = [one for one in self.pieces if one is not neighbour]

    def chunks(self, run: list[Piece]) -> list[int]:
        chunk = self.settings.chunk
        end = run[-1].end
        return [at for at in range(-(-run[0].at // chunk) * chunk, end, chunk) if at + chunk <= end]

    def grow(self, held: int, stream: int, usable: Callable[[Piece], bool]) -> Piece | None:
        chunk = self.settings.chunk
        wanted = -(-held // chunk)
        found = [at for run in self.runs(usable) for at in self.chunks(run)]
        taken = found[:wanted] if self.settings.remap else []
        if self.reserved + (wanted - len(taken)) * chunk > self.settings.capacity:
            return None
        anyones = True
        for piece in self.pieces:
            if any(piece.at < at + chunk and at < piece.end for at in taken):
                anyones = anyones and piece.lane == ANYONES
                self.wait_for(piece, stream)
        for at in taken:
            self.cut(at, at + chunk)
        start = self.ranges[-1][1] if self.ranges else 0
        self.ranges.append((start, start + wanted * chunk))
        fresh = Piece(start, wanted * chunk, ANYONES)
        if not anyones:
            fresh.lane, fresh.freed = stream, self.tick()
        self.pieces.append(fresh)
        return fresh

    def cut(self, start: int, end: int) -> None:
        """Take what lies from `start` to `end` out of the free pieces there."""
        left: list[Piece] = []
        for piece in self.pieces:
            if piece.end <= start or end <= piece.at:
                left.append(piece)
                continue
            if piece.at < start:
                left.append(replace(piece, size=start - piece.at))
            if end < piece.end:
                left.append(replace(piece, at=end, size=piece.end - end))
        self.pieces = left

    def free(self, piece: Piece, lane: int, made_on: int) -> None:
        freed = self.tick()
        if lane == UNIFYING:
            waits = [wait for wait in self.own_waits if wait[0] != made_on]
            self.own_frees.append((freed, waits))
            self.own_waits = []
        self.release(piece, lane)
        piece.freed = freed

    def trim(self, left: int) -> None:
        self.collect()
        for piece in [one for one in reversed(self.pieces) if one.lane == ANYONES]:
            for at in reversed(self.chunks([piece])):
                if self.reserved > left:
                    self.cut(at, at + self.settings.chunk)

    def synchronize(self) -> None:
        streams = {piece.lane for piece in self.pieces if isinstance(piece.lane, int)}
        for stream in streams - {UNIFYING}:
            assert isinstance(stream, int)
            self.complete(stream, self.now)
        for _, waits in self.own_frees:
            for stream, position in waits:
                self.complete(stream, position)


class AsyncModel:
    """The layer above the pool, with one method for each operation of a trace."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.pool = Pool(settings)
        self.live: dict[int, Pointer] = {}
        self.deferred: list[Pointer] = []
        self.freed: dict[int, tuple[list[int], int]] = {}
        self.recorded: dict[int, list[int]] = defaultdict(list)
        self.used = 0
        self.captures = 0
        self.joins: list[int] = []
        fraction = settings.fraction
        self.limit = None if fraction is None else int(fraction * settings.capacity)
        self.ooms = 0

    def apply(self, op: str, number: int, size: int, stream: int) -> None:
        """One operation; `number` is the id, the CUDA event, or millionths."""
        getattr(self, op)(number, size, stream)

    def alloc(self, number: int, size: int, stream: int) -> None:
        if size == 0:
            return
        if self.captures == 0:
            for pointer in self.deferred:
                self.free_now(pointer)
            self.deferred = []
        if self.limit is not None and self.used + size > self.limit:
            piece = None
        else:
            piece = self.pool.allocate(size, stream)
        if piece is None:
            self.ooms += 1
            return
        self.used += size
        self.live[number] = Pointer(piece, size, stream, self.captures > 0)

    def free(self, number: int, size: int, stream: int) -> None:
        pointer = self.live.pop(number, None)
        if pointer is None:
            return
        if self.captures and not pointer.captured:
            pointer.deferred = True
            self.deferred.append(pointer)
        else:
            self.free_now(pointer)
        self.freed[number] = self.recorded[number], self.pool.now

    def free_now(self, pointer: Pointer) -> None:
        stream = pointer.stream
        if pointer.recorded:
            for on in (stream, *pointer.recorded):
                self.pool.join(UNIFYING, on)
            stream = UNIFYING
        if self.captures and stream not in self.joins:
            self.joins.append(stream)
        self.used -= pointer.size
        self.pool.free(pointer.piece, stream, pointer.stream)

    def record_stream(self, number: int, size: int, stream: int) -> None:
        self.recorded[number].append(stream)
        if number not in self.live:
            return
        pointer = self.live[number]
        if stream not in (pointer.stream, *pointer.recorded):
            pointer.recorded.append(stream)

    def free_completed(self, number: int, size: int, stream: int) -> None:
        # Of one that was refused there is nothing to complete.
        recorded, position = self.freed.get(number, ([], 0))
        if self.settings.completion == "recorded":
            for on in recorded:
                self.pool.complete(on, position)

    def synchronize(self, number: int, size: int, stream: int) -> None:
        if self.settings.completion != "never":
            for on in range(-1, 16) if stream < 0 else [stream]:
                self.pool.complete(on, self.pool.now)
        if self.settings.threshold is not None and self.pool.reserved > self.settings.threshold:
            self.pool.trim(self.settings.threshold)

    def empty_cache(self, number: int, size: int, stream: int) -> None:
        self.pool.synchronize()
        self.pool.trim(0)

    def event_record(self, number: int, size: int, stream: int) -> None:
        self.pool.events[number] = self.pool.clock(stream)

    def event_wait(self, number: int, size: int, stream: int) -> None:
        self.pool.learn(stream, self.pool.events.get(number, {}))

    def capture_begin(self, number: int, size: int, stream: int) -> None:
        self.captures += 1

    def capture_end(self, number: int, size: int, stream: int) -> None:
        if self.captures == 0:
            return
        self.captures -= 1
        if self.captures == 0:
            for on in self.joins:
                self.pool.join(stream, on)
            self.joins = []

    def set_fraction(self, number: int, size: int, stream: int) -> None:
        self.limit = int(number / 1e6 * self.settings.capacity)
