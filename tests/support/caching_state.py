"""What the model of `caching` holds: segments as lists of blocks, and sums over them.

Every question is answered by looking at all of them. Statistics are not kept but summed up after
every step, and what they gained or lost is added to running totals.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from caching_settings import UNLIMITED, Conf
from engine_events import LANE

POOLS = {"small": "small_pool", "large": "large_pool"}
KINDS = ("all", *POOLS.values())
_BY_POOL = "reserved_bytes_by_private_pools"


@dataclass(eq=False)
class Segment:
    """One device allocation, or one range of addresses."""

    number: int
    pool: str
    stream: int
    """And private pool, as engine_events numbers them."""
    size: int
    expandable: bool
    blocks: list[Block] = field(default_factory=list)

    @property
    def private(self) -> int:
        """The number of its private pool; 0 where it is of none."""
        return self.stream // LANE


@dataclass(eq=False)
class Block:
    """A part of a segment; `state` is free, allocated or pending."""

    segment: Segment
    offset: int
    size: int
    mapped: bool = True
    state: str = "free"
    requested: int = 0
    used_on: list[int] = field(default_factory=list)
    """Streams of its record_stream calls, all of them and in order."""
    used_in_capture: list[int] = field(default_factory=list)
    """Those of calls during a capture."""
    waits: int = 0
    free_since: int = 0

    def neighbour(self, step: int) -> Block | None:
        """The block before (-1) or after (1) this one in its segment."""
        at = self.segment.blocks.index(self) + step
        return self.segment.blocks[at] if 0 <= at < len(self.segment.blocks) else None

    @property
    def is_whole(self) -> bool:
        """Whether it is all of its segment."""
        return len(self.segment.blocks) == 1

    @property
    def room(self) -> int:
        """What it could hold in place."""
        after = self.neighbour(1)
        return self.size + (after.size if after and not after.mapped else 0)


class State:
    """Of the allocator, at one moment and summed up so far."""

    def __init__(self, conf: Conf) -> None:
        self.conf = conf
        self.segments: list[Segment] = []
        self.device_used = 0
        self.live_requested: dict[int, int] = {}
        self.counts = Counter[str]()
        """Running totals, and how often the rarer rules applied."""
        self.current = Counter[str]()
        self.peak = Counter[str]()
        self.gained = Counter[str]()
        self.lost = Counter[str]()

    def blocks(self) -> list[Block]:
        """All blocks with memory, in the order of segment numbers and offsets."""
        return [block for segment in self.segments for block in segment.blocks if block.mapped]

    def free_blocks(self, pool: str, stream: int | None = None, private: int = 0) -> list[Block]:
        """Free blocks of a pool in best-fit order.

        Args:
            pool: small or large.
            stream: one stream's, of a private pool as `Segment` has it; else all streams'.
            private: of this private pool, where all streams are meant; 0 for the default pool.
        """
        found = [
            block
            for block in self.blocks()
            if block.state == "free"
            and block.segment.pool == pool
            and (block.segment.private == private or stream is not None)
            and stream in (None, block.segment.stream)
        ]
        return sorted(found, key=lambda b: (b.segment.stream, b.size, b.segment.number, b.offset))

    def reserved(self) -> int:
        """Bytes of memory taken from the device."""
        return sum(block.size for block in self.blocks())

    def step(self) -> None:
        """Sums up what there is after a step, and what it gained or lost."""
        now = Counter[str]()
        for segment in self.segments:
            for pool in ("all", POOLS[segment.pool]):
                now[f"segment.{pool}"] += not segment.expandable
            now["oversize_segments"] += (
                not segment.expandable and segment.size >= self.conf.max_split
            )
        for block in self.blocks():
            is_split = block.state == "free" and not block.segment.expandable and not block.is_whole
            used = block.state == "allocated"
            active = block.state != "free"
            now["oversize_allocations"] += used and block.size >= self.conf.max_split
            for pool in ("all", POOLS[block.segment.pool]):
                now[f"reserved_bytes.{pool}"] += block.size
                if block.segment.private:
                    now[f"{_BY_POOL}.0_{block.segment.private}.{pool}"] += block.size
                now[f"allocation.{pool}"] += used
                now[f"allocated_bytes.{pool}"] += used * block.size
                now[f"active.{pool}"] += active
                now[f"active_bytes.{pool}"] += active * block.size
                now[f"requested_bytes.{pool}"] += active * block.requested
                now[f"inactive_split.{pool}"] += is_split
                now[f"inactive_split_bytes.{pool}"] += is_split * block.size
        for name in now.keys() | self.current.keys():
            change = now[name] - self.current[name]
            self.gained[name] += max(change, 0)
            self.lost[name] += max(-change, 0)
            self.peak[name] = max(self.peak[name], now[name])
        self.current = now

    def row(self) -> dict[str, int]:
        """The columns of a full timeline, but `oom`."""
        current = self.current
        free = [block for block in self.blocks() if block.state == "free"]
        split_bytes = current["inactive_split_bytes.all"]
        return {
            "requested": current["requested_bytes.all"],
            "live_requested": sum(self.live_requested.values()),
            "allocated": current["allocated_bytes.all"],
            "active": current["active_bytes.all"],
            "reserved": current["reserved_bytes.all"],
            "segments": current["segment.all"],
            "largest_free": max((block.size for block in free), default=0),
            "inactive_split": split_bytes,
            "stranded": sum(b.size for b in free) if self.conf.expandable else split_bytes,
            "n_alloc": current["allocation.all"],
            "n_segment": current["segment.all"],
            "n_active": current["active.all"],
            "n_inactive_split": current["inactive_split.all"],
            "device_used": self.device_used,
            **{
                name: self.counts[name]
                for name in ("retries", "ooms", "device_allocs", "device_frees", "hits", "misses")
            },
        }

    def torch_statistics(self) -> dict[str, int]:
        """What torch.cuda.memory_stats would say."""
        names = ["oversize_allocations", "oversize_segments"]
        for name in (
            *("allocation", "allocated_bytes", "active", "active_bytes", "requested_bytes"),
            *("inactive_split", "inactive_split_bytes", "segment", "reserved_bytes"),
        ):
            names += [f"{name}.{kind}" for kind in KINDS]
        pools = {name.rpartition(".")[0] for name in self.gained if name.startswith(_BY_POOL)}
        names += [f"{name}.{kind}" for name in pools for kind in KINDS]
        found = {
            f"{name}.{kind}": numbers[name]
            for name in names
            for kind, numbers in {
                "current": self.current,
                "peak": self.peak,
                "allocated": self.gained,
                "freed": self.lost,
            }.items()
        }
        found["max_split_size"] = -1 if self.conf.max_split == UNLIMITED else self.conf.max_split
        found["num_alloc_retries"] = self.counts["retries"]
        found["num_ooms"] = self.counts["ooms"]
        found["num_oom_rejections"] = self.counts["rejections"]
        found["num_device_alloc"] = self.counts["device_allocs"]
        found["num_device_free"] = self.counts["device_frees"]
        found["num_sync_all_streams"] = self.counts["waits for all"]
        return found
