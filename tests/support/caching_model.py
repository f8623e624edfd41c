"""The rules of `caching` a second time: slow, obvious, and written from the rules alone.

The numbers in docstrings and comments are the rules of docs/allocators.md.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from caching_captures import Captures
from caching_settings import MIB, UNLIMITED, Conf
from caching_state import Block, Segment
from engine_events import LANE, Operation
from stream_events import Streams


class Rejected(Exception):
    """By throw_on_cudamalloc_oom."""


class Model(Captures):
    """The allocator on a device of `capacity` bytes."""

    def __init__(self, conf: Conf, capacity: int, completion: str = "recorded") -> None:
        super().__init__(conf)
        self.capacity = capacity
        self.set_fraction(conf.fraction)
        self.streams = Streams(completion)
        self.numbered = 0
        self.live: dict[int, Block] = {}
        self.freed: dict[int, tuple[list[int], int]] = {}
        """Streams and last CUDA event at its free, by id."""
        self.look_ups = Counter[str]()
        self.pending: dict[int, list[tuple[tuple[int, int], Block]]] = {}

    # -- What the program does ---------------------------------------------------------------

    def run(self, operations: Iterable[Operation]) -> list[dict[str, int]]:
        """The row after each operation, going on after a failed allocation."""
        rows = []
        for number, (op, name, size, stream) in enumerate(operations):
            self.streams.now = number
            oom = False
            if op == "alloc":
                oom = not self.allocate(name, size, stream)
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
            elif op == "set_fraction":
                self.set_fraction(name / 1_000_000)
            else:
                self.lead(op, name, stream)
            rows.append({**self.row(), "oom": int(oom)})
        return rows

    def set_fraction(self, fraction: float) -> None:
        """Of the device, from here on."""
        self.fraction = fraction
        self.limit = self.share(fraction)

    def share(self, fraction: float) -> int:
        """Bytes of the device."""
        return self.capacity if fraction >= 1 else int(fraction * self.capacity)

    def allocate(self, name: int, requested: int, stream: int) -> bool:
        """False where memory ran out."""
        self.freed.pop(name, None)
        if requested == 0:
            return True
        if not self.captures:
            self.take_completed()
        elif self.conf.reuses:
            self.end_safe_deferrals(stream % LANE)
        if stream >= LANE:
            self.uses.setdefault(stream // LANE, 1)
        size = self.round(requested)
        pool = "small" if size <= MIB else "large"  # 2
        block = self.best_fit(pool, stream, size)
        self.counts["misses" if block is None else "hits"] += 1
        if block is None:
            block = self.miss(pool, stream, size)
        if block is None:
            return False
        remainder = block.size - size  # 6
        if pool == "small" or self.conf.expandable:
            splits = remainder >= 512
        else:
            splits = size < self.conf.max_split and remainder > MIB
        if splits:
            self.cut(block, size)
        block.state = "allocated"
        block.requested = requested
        self.live[name] = block
        self.live_requested[name] = requested
        self.step()
        return True

    def free(self, name: int) -> None:
        """Rule 11."""
        if name not in self.live:
            return
        block = self.live.pop(name)
        del self.live_requested[name]
        used_on, block.used_on = block.used_on, []
        streams = sorted({*used_on} - {block.segment.stream % LANE}, key=used_on.index)
        if streams:
            block.state = "pending"
            if self.captures:
                self.defer(block, streams)
            else:
                self.wait_for(block, streams)
            self.step()
        else:
            block.state = "pending"  # no longer allocated, then no longer active
            self.step()
            self.become_free(block)
        self.freed[name] = (used_on, self.streams.recorded)

    def free_completed(self, name: int) -> None:
        """The trace says that the streams a block was used on have come past its free."""
        if name in self.freed and self.streams.policy == "recorded":
            streams, up_to = self.freed[name]
            for stream in streams:
                self.streams.complete(stream, up_to)

    def record_stream(self, name: int, stream: int) -> None:
        """Rule 11."""
        if name not in self.live:
            return
        self.live[name].used_on.append(stream)
        if self.captures:
            self.live[name].used_in_capture.append(stream)

    # -- The rules ---------------------------------------------------------------------------

    def round(self, size: int) -> int:
        """Rule 1."""
        if size < 512:
            return 512
        divisions = self.conf.divisions[min(max(size.bit_length() - 1 - 20, 0), 15)]
        if divisions > 1 and size > 512 * divisions:
            floor = 2 ** (size.bit_length() - 1)
            if size == floor:
                return size
            self.counts["rounded up by divisions"] += 1
            step = floor // divisions
            return 2 * floor if step == 0 else -(-size // step) * step
        return -(-size // 512) * 512

    def segment_size(self, size: int) -> int:
        """Rule 3."""
        if size <= MIB:
            return 2 * MIB
        if size < 10 * MIB:
            return self.conf.large_segment
        return -(-size // (2 * MIB)) * 2 * MIB

    def wait_for(self, block: Block, streams: list[int]) -> None:
        """Rule 11: for what each stream was given up to now."""
        self.counts["waiting frees"] += 1
        block.used_in_capture = []
        for stream in streams:
            event = self.streams.record(stream)
            self.pending.setdefault(stream, []).append((event, block))
            block.waits += 1

    def take_completed(self) -> None:
        """Rule 4."""
        self.end_deferral()
        for stream in sorted(self.pending):
            queue = self.pending[stream]
            while queue and self.streams.completed(queue[0][0]):
                self.counts["events taken"] += 1
                self.end_wait(queue.pop(0)[1])

    def end_wait(self, block: Block) -> None:
        """One of a block's CUDA events has completed."""
        block.waits -= 1
        if block.waits == 0:
            self.become_free(block)

    def best_fit(self, pool: str, stream: int, size: int) -> Block | None:
        """Rule 5."""
        self.look_ups[pool] += stream < LANE
        fits = [block for block in self.free_blocks(pool, stream) if block.size >= size]
        if not fits:
            return None
        found = fits[0]
        if self.conf.expandable:
            for following in fits[1:]:
                if following.room >= found.room:
                    break
                self.counts["stepped to less room"] += 1
                found = following
        if size < self.conf.max_split:
            refused = found.size >= self.conf.max_split
        else:
            refused = found.size >= size + self.conf.max_rounding
        self.counts["fit refused"] += refused
        return None if refused else found

    def cut(self, block: Block, size: int) -> Block:
        """Parts a block in two; the rest, free since now."""
        rest = Block(block.segment, block.offset + size, block.size - size, block.mapped)
        rest.free_since = self.look_ups[block.segment.pool]
        block.size = size
        block.segment.blocks.insert(block.segment.blocks.index(block) + 1, rest)
        return rest

    def become_free(self, block: Block) -> None:
        """Rule 11: for real, with its free neighbours."""
        block.state = "free"
        block.requested = 0
        block.free_since = self.look_ups[block.segment.pool]
        self.merge(block)
        self.step()

    def merge(self, block: Block) -> None:
        """With the free neighbours that have memory, where it has; that have none, where not."""
        for step in (1, -1):
            other = block.neighbour(step)
            if other and other.state == "free" and other.mapped == block.mapped:
                block.offset = min(block.offset, other.offset)
                block.size += other.size
                block.segment.blocks.remove(other)

    def miss(self, pool: str, stream: int, size: int) -> Block | None:
        """Rule 7."""
        self.collect_garbage()
        try:
            block = self.new_segment(pool, stream, size)
            if block is None and self.release_available(pool, stream, size):
                self.counts["released available"] += 1
                block = self.new_segment(pool, stream, size)
            if block is None and not self.captures:
                self.release_cached()
                self.counts["retries"] += 1
                block = self.new_segment(pool, stream, size)
                self.counts["retries that helped"] += block is not None
        except Rejected:
            self.counts["rejections"] += 1
            return None
        if block is None:
            self.counts["ooms"] += 1
        return block

    def new_segment(self, pool: str, stream: int, size: int) -> Block | None:
        """Rule 7: null where it is refused."""
        bytes_ = self.segment_size(size)
        if self.fraction < 1 and self.reserved() + bytes_ > self.limit:
            self.counts["refused by the fraction"] += 1
            return None
        if self.conf.throws and self.reserved() + bytes_ > self.share(self.conf.fraction):
            raise Rejected
        if self.conf.expandable:
            return self.grow(pool, stream, size)
        pages = -(-bytes_ // (2 * MIB)) * 2 * MIB
        if self.device_used + pages > self.capacity:
            return None
        self.device_used += pages
        self.counts["device_allocs"] += 1
        block = self.add_segment(pool, stream, bytes_)
        self.step()
        return block

    def add_segment(self, pool: str, stream: int, size: int) -> Block:
        """A segment of one block."""
        segment = Segment(self.numbered, pool, stream, size, self.conf.expandable)
        self.numbered += 1
        self.segments.append(segment)
        segment.blocks = [Block(segment, 0, size, mapped=not self.conf.expandable)]
        return segment.blocks[0]

    def release_segment(self, block: Block) -> None:
        """Gives a free block that is a whole segment back."""
        assert block.is_whole
        assert block.state == "free"
        self.segments.remove(block.segment)
        self.device_used -= -(-block.size // (2 * MIB)) * 2 * MIB
        self.counts["device_frees"] += 1
        self.step()

    def collect_garbage(self) -> None:
        """Rule 8."""
        if self.fraction >= 1 or self.conf.threshold == 0:
            return
        threshold = int(self.conf.threshold * self.limit)
        target = self.reserved() - threshold
        if target <= 0:
            return
        whole = [
            block
            for block in self.free_blocks("large")
            if block.is_whole and not block.segment.expandable
        ]
        age = {block: self.look_ups["large"] - block.free_since for block in whole}
        released = 0
        while released < target and whole:
            mean = sum(age[block] for block in whole) / len(whole)
            old = [block for block in whole if age[block] >= mean]
            if not old:
                break
            for block in old:
                self.counts["collected"] += 1
                released += block.size
                whole.remove(block)
                self.release_segment(block)

    def release_available(self, pool: str, stream: int, size: int) -> bool:
        """Rule 9."""
        if self.conf.max_split == UNLIMITED:
            return False
        need = max(size, self.conf.max_split)
        free = [b for b in self.free_blocks(pool, stream) if not b.segment.expandable]
        for block in free:
            if block.size >= need:
                self.release_segment(block)
                return True
        released = 0
        for block in reversed(free):
            if released >= need or block.size < self.conf.max_split:
                break
            released += block.size
            self.counts["released downward"] += 1
            self.release_segment(block)
        return released >= need

    def release_cached(self) -> None:
        """Rules 10, 15 and 16."""
        if not self.captures:
            self.wait_for_all()
            for pool in ("large", "small"):
                self.release_free(pool, 0)
        for private in sorted(number for number, uses in self.uses.items() if not uses):
            for pool in ("small", "large"):
                before = self.counts["device_frees"]
                self.release_free(pool, private)
                self.counts["given back with a pool"] += self.counts["device_frees"] - before

    def wait_for_all(self) -> None:
        """Rule 10."""
        self.counts["waits for all"] += 1
        self.end_deferral()
        for stream in sorted(self.pending):
            queue = self.pending[stream]
            while queue:
                event, block = queue.pop(0)
                self.counts["events waited for"] += 1
                self.streams.complete(*event)
                self.end_wait(block)

    def release_free(self, pool: str, private: int) -> None:
        """Rule 10."""
        for block in self.free_blocks(pool, private=private):
            if block.segment.expandable:
                self.unmap(block)
            elif block.is_whole:
                self.release_segment(block)

    def page(self, pool: str) -> int:
        """Rule 12."""
        return 2 * MIB if pool == "small" else self.conf.large_segment

    def grow(self, pool: str, stream: int, size: int) -> Block | None:
        """Rule 12."""
        block = self.find_run(pool, stream, size)
        if block is None:
            return None
        if not block.mapped and not self.map(block, min(block.size, size)):
            return None
        while block.size < size:
            after = block.neighbour(1)
            assert after is not None
            assert not after.mapped
            if not self.map(after, min(after.size, size - block.size)):
                self.counts["growth stopped halfway"] += 1
                return None
            self.counts["grew in place"] += 1
            block = after
        return block

    def find_run(self, pool: str, stream: int, size: int) -> Block | None:
        """The first block of a run of free blocks that together reach `size`."""
        for segment in self.segments:
            if (segment.pool, segment.stream) != (pool, stream):
                continue
            for unmapped in [block for block in segment.blocks if not block.mapped]:
                before = unmapped.neighbour(-1)
                start = before if before and before.state == "free" else unmapped
                room = 0
                for block in segment.blocks[segment.blocks.index(start) :]:
                    if block.state != "free":
                        break
                    room += block.size
                if room >= size:
                    return start
        page = self.page(pool)
        pages = -(-9 * self.capacity // (8 * page))
        # One too small for `size` is made all the same, and found when memory is asked for it.
        return self.add_segment(pool, stream, pages * page)

    def map(self, block: Block, size: int) -> bool:
        """Puts memory behind the first whole pages of a block that hold `size` bytes."""
        page = self.page(block.segment.pool)
        bytes_ = -(-size // page) * page
        if self.device_used + bytes_ > self.capacity:
            return False
        self.device_used += bytes_
        self.counts["device_allocs"] += 1
        if bytes_ < block.size:
            self.cut(block, bytes_)
        block.mapped = True
        block.free_since = self.look_ups[block.segment.pool]
        self.merge(block)
        self.step()
        return True

    def unmap(self, block: Block) -> None:
        """Takes the memory of the whole pages inside a free block."""
        page = self.page(block.segment.pool)
        begin = -(-block.offset // page) * page
        end = (block.offset + block.size) // page * page
        if begin >= end:
            return
        if begin > block.offset:
            self.counts["unmapped behind a rest"] += 1
            block.free_since = self.look_ups[block.segment.pool]
            block = self.cut(block, begin - block.offset)
        if block.size > end - begin:
            self.cut(block, end - begin)
        block.mapped = False
        self.device_used -= block.size
        self.counts["device_frees"] += 1
        self.merge(block)
        if block.is_whole:
            self.counts["ranges given back"] += 1
            self.segments.remove(block.segment)
        self.step()
