"""The replay engine: C++ behind a thin face.

An allocator or backend that a name, setting or value does not fit raises `ValueError` with one
sentence; a fault of an allocator (a double free, a damaged block) raises `RuntimeError`. Running
out of memory is a result, never an exception.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NotRequired, TypedDict

import numpy as np
import numpy.typing as npt

OPS: dict[str, int]
"""Trace events that concern an allocator → their code in the `op` column."""

JOURNAL_ACTIONS: dict[str, int]
"""What a journal's entries say → their code in its `action` column."""

class UnavailableError(RuntimeError):
    """The system does not let this process do what it takes, such as pinning more memory."""

class AllocatorInfo(TypedDict):
    name: str
    summary: str
    kind: Literal["cpu", "pinned", "device"]
    settings: dict[str, str]
    runs_plan: bool
    needs_library: bool
    latency_source: str
    is_model: bool
    passes_calls_on: bool
    available: bool
    reason: str

class BackendInfo(TypedDict):
    name: str
    summary: str
    available: bool
    reason: str
    is_model: bool

class Peak(TypedDict):
    """None: the allocator does not report it."""

    bytes: int | None
    event: int | None

class Waterfall(TypedDict):
    """Bytes; the parts add up to the reserved ones."""

    live_requested: int
    rounding: int
    pending: int
    stranded: int
    cached: int

class OutOfMemory(TypedDict):
    event: int
    requested: int
    allocated: int | None
    reserved: int | None
    active: int | None
    live_requested: int
    largest_free: int | None
    device_free: int | None
    waterfall: Waterfall | None
    message: NotRequired[str]  # what the original's error adds

class Blocks(TypedDict):
    segments: dict[str, npt.NDArray[Any]]
    blocks: dict[str, npt.NDArray[Any]]

class JournalColumns(TypedDict):
    """What the allocator did, in the order and the words of PyTorch's memory snapshots."""

    action: npt.NDArray[np.uint8]  # codes of JOURNAL_ACTIONS
    address: npt.NDArray[np.uint64]  # of an oom: the device's free bytes
    size: npt.NDArray[np.int64]  # bytes: requested, of a segment, or of a piece of one
    stream: npt.NDArray[np.int32]  # the block's own
    pool: npt.NDArray[np.int32]  # likewise; 0 for the default one
    event: npt.NDArray[np.int64]  # index of the event it happened in

class Mismatch(TypedDict):
    """The first place where a plan that must be met was not; `id` is the plan's."""

    event: int
    id: int
    expected: str
    got: str

class PlanCounts(TypedDict):
    """Allocations by where they came from, mismatches, and bytes."""

    planned: int
    unmanaged: int
    other_threads: int
    outside: int
    mismatches: int
    fallback: int
    fallback_bytes: int
    peak_fallback_bytes: int
    arena_bytes: int

class CallTimes(TypedDict):
    """How long the driver's calls of one kind took; quantiles are off by less than 1 %.

    Of a model only the first two, by the prices that it was given.
    """

    count: int
    total_ns: int
    p50_ns: NotRequired[int]
    p99_ns: NotRequired[int]
    max_ns: NotRequired[int]

class MemoryResult(TypedDict):
    outcome: Literal["ok", "out_of_memory", "plan_mismatch"]
    oom: OutOfMemory | None
    ooms: int
    mismatch: Mismatch | None
    plan: PlanCounts | None
    timeline: dict[str, npt.NDArray[np.int64]]
    peaks: dict[str, Peak]
    finals: dict[str, int | None]
    driver_calls: dict[str, int | None]
    driver_time: dict[str, CallTimes] | None  # by kind; None: not measured and without prices
    counters: dict[str, int | None]
    torch_statistics: dict[str, int]
    waterfall: Waterfall | None
    active_at_peak: int | None
    warnings: list[str]  # of the settings and of what the program did
    digest: str | None
    blocks: Blocks | None
    journal: NotRequired[JournalColumns]
    rss_growth_bytes: NotRequired[int]
    minor_faults: NotRequired[int]
    major_faults: NotRequired[int]

class TimedResult(TypedDict):
    ticks: npt.NDArray[np.uint32]
    cause: npt.NDArray[np.uint8]
    causes: list[str]
    ns_per_tick: float
    clock_cost_ns: float
    pass_ns: float
    digest: str | None
    outcome: Literal["ok", "out_of_memory", "plan_mismatch"]

class ThroughputResult(TypedDict):
    ns: list[float]
    events: int
    outcome: Literal["ok", "out_of_memory", "plan_mismatch"]

def allocators() -> list[AllocatorInfo]:
    """Every allocator that is not hidden, sorted by name."""

def backends() -> list[BackendInfo]:
    """Every backend, sorted by name."""

class LibraryFault(RuntimeError):
    """A library of the user's does not do what an allocator must."""

class DamagedBlock(RuntimeError):
    """A live block's bytes changed under its owner."""

def keep_last_words(path: str) -> None:
    """Keep in a file what this process does with a library, for when it ends without a word.

    Raises:
        RuntimeError: the file cannot be written.
    """

def check_settings(allocator: str, settings: str) -> None:
    """Read the settings of `allocator` as far as that can be done without making one.

    Raises:
        ValueError: an unknown name, setting or value.
    """

def assign_slots(
    op: npt.NDArray[np.uint8], id: npt.NDArray[np.int64]
) -> tuple[npt.NDArray[np.int32], int]:
    """Slots in an array as large as the greatest number of ids alive at once.

    Args:
        op: n codes of `OPS`.
        id: n allocation ids.

    Returns:
        n slots, -1 for events without an id, and the number of slots.

    Raises:
        ValueError: an id is allocated twice, or freed without being live.
    """

class Events:
    """The columns of a trace's events; keeps the arrays, copies nothing.

    Args:
        op: n codes of `OPS`.
        slot: n slots, from `assign_slots`.
        size: n sizes in bytes; read on allocations only.
        stream: n stream numbers from 0; -1 (all) only on `synchronize` and `set_fraction`. Of
            allocations numbers of lanes, where there are some.
        thread: n thread numbers.
        slot_count: from `assign_slots`.
        step: n numbers of completed optimizer steps; None where they are not known.
        value: n values: of `event_record` and `event_wait` the number of the CUDA event, 0 … n - 1;
            of `set_fraction` millionths of the device; of `pool_begin`, `pool_end` and
            `pool_release` the number of the private pool, from 1. None where there is nothing to
            tell.
        lane_stream: the stream of each lane, by its number. A lane is a stream's part of a pool.
        lane_pool: the pool of each lane; 0 for the default one. None for both where no private
            pool serves an allocation.

    Raises:
        ValueError: columns of different lengths, or a value outside its range.
    """

    def __init__(
        self,
        op: npt.NDArray[np.uint8],
        slot: npt.NDArray[np.int32],
        size: npt.NDArray[np.int64],
        stream: npt.NDArray[np.int32],
        thread: npt.NDArray[np.int32],
        slot_count: int,
        step: npt.NDArray[np.int32] | None = None,
        value: npt.NDArray[np.int64] | None = None,
        lane_stream: npt.NDArray[np.int32] | None = None,
        lane_pool: npt.NDArray[np.int32] | None = None,
    ) -> None: ...
    def __len__(self) -> int: ...

class PlannerInfo(TypedDict):
    name: str
    summary: str

def planners() -> list[PlannerInfo]:
    """Every planner, sorted by name."""

class Plan:
    """Offsets in one arena for n allocations, which happen at times 0 … n - 1; checked.

    Args:
        size: n sizes in bytes, as requested.
        end: n ends of lifetimes: the number of allocations before the free; -1 for unmanaged.
        offset: n offsets in bytes; -1 for unmanaged.
        alignment: of offsets, and of sizes where the arena is concerned; bytes.
        thread: whose allocations these are.
        steps: first step, and the step past the last; None for a whole trace.
        planner: who made it.
        seconds: that it took.

    Raises:
        ValueError: a value out of range, or two allocations that are alive together overlap; names
            both ids.
    """

    def __init__(
        self,
        size: npt.NDArray[np.int64],
        end: npt.NDArray[np.int64],
        offset: npt.NDArray[np.int64],
        *,
        alignment: int = 64,
        thread: int = 0,
        steps: tuple[int, ...] | None = None,
        planner: str = "",
        seconds: float = 0.0,
    ) -> None: ...
    def __len__(self) -> int: ...
    @property
    def size(self) -> npt.NDArray[np.int64]: ...
    @property
    def end(self) -> npt.NDArray[np.int64]: ...
    @property
    def offset(self) -> npt.NDArray[np.int64]: ...
    @property
    def alignment(self) -> int: ...
    @property
    def thread(self) -> int: ...
    @property
    def steps(self) -> tuple[int, int] | None: ...
    @property
    def height(self) -> int:
        """Bytes of the arena: the greatest offset + size."""

    @property
    def lower_bound(self) -> int:
        """Bytes below which no plan can be: the most alive at once, of the managed ones."""

    @property
    def planner(self) -> str: ...
    @property
    def seconds(self) -> float: ...

def lifetimes(
    events: Events, steps: tuple[int, int] | None = None, thread: int | None = None
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], int]:
    """Sizes and ends, as `Plan` takes them, of one thread's allocations of more than 0 bytes.

    Args:
        events: where they are.
        steps: first step, and the step past the last; None for all events.
        thread: whose; None for the thread that makes most.

    Returns:
        n sizes, n ends, and the thread.

    Raises:
        ValueError: there is no such step.
    """

def make_plan(
    size: npt.NDArray[np.int64],
    end: npt.NDArray[np.int64],
    planner: str = "best",
    alignment: int = 64,
    seconds: float = 10.0,
) -> Plan:
    """A plan for lifetimes; see `Plan`.

    Args:
        planner: a name of `planners()`.
        seconds: that planners which can give up may take.

    Raises:
        ValueError: an unknown planner, a value out of range, or no plan was found in time.
    """

def plan_buffers(
    lower: npt.NDArray[np.int64],
    upper: npt.NDArray[np.int64],
    size: npt.NDArray[np.int64],
    planner: str = "best",
    seconds: float = 10.0,
) -> npt.NDArray[np.int64] | None:
    """n offsets for buffers alive in [lower, upper), at any times; None where there was no time.

    Sizes are taken as they are, and nothing is checked.
    """

class Replay:
    """One cell: events against an allocator on a backend; each pass makes both afresh.

    Args:
        events: what to replay.
        allocator: a name of `allocators()`, or "null", which does nothing.
        settings: ``key:value,key:value``.
        backend: a name of `backends()`.
        capacity: bytes the backend has; None for unlimited.
        completion: "recorded", "immediate", "never" or "delay:EVENTS".
        after_oom: "stop", or "continue", which skips later events of the failed id.
        order: "global": one thread makes all calls as recorded; "handoff": the recorded threads
            do, and wait where a block comes from another; "free": they do, and nobody waits. One
            recorded thread has one order.
        plan: for an allocator that runs one; None for one made of the events as `settings` say.
        prices: of driver calls, which memory passes on the backend simulated add up.

    Raises:
        ValueError: an unknown name, setting or value.
    """

    def __init__(
        self,
        events: Events,
        allocator: str,
        settings: str = "",
        *,
        backend: str,
        capacity: int | None = None,
        completion: str = "recorded",
        after_oom: str = "stop",
        order: str = "global",
        plan: Plan | None = None,
        prices: DriverPrices | None = None,
    ) -> None: ...
    @property
    def plan(self) -> Plan | None:
        """What an allocator that runs a plan runs; None for others."""

    @property
    def threads(self) -> int:
        """How many threads replay."""

    @property
    def has_memory(self) -> bool:
        """Whether addresses can be read and written."""

    @property
    def has_bytes(self) -> bool:
        """Whether blocks can be filled and verified."""

    @property
    def starts_afresh(self) -> bool:
        """Whether each pass starts without what the last one's allocator kept."""

    @property
    def warnings(self) -> list[str]:
        """One sentence each, without a full stop, about settings that do nothing or hurt."""

    def memory(
        self,
        buckets: int = 20000,
        full: bool = False,
        blocks_at: int | None = None,
        verify: bool = False,
        journal: bool = False,
        ranges: bool = False,
        progress: Callable[[int, int], object] | None = None,
    ) -> MemoryResult:
        """The untimed pass: statistics after every event.

        Args:
            buckets: rows of the timeline; each has the minimum and maximum of every column.
            full: one row per event instead, with more columns.
            blocks_at: the event after which to list segments and blocks.
            verify: fill every block with a pattern and check it when it is freed; needs real
                memory.
            ranges: see that blocks are aligned and that no two live ones overlap.
            journal: keep every entry of what the allocator did; segments and delayed frees only
                from `caching`.
            progress: called with (events done, events).

        Returns:
            What the allocator does not report is None, and no column of the timeline.
            ``torch_statistics`` is the flat dictionary of torch.cuda.memory_stats after the last
            event, empty where PyTorch's original keeps none. ``waterfall`` is at the event of the
            peak of reserved.

        Where several threads replay, events are sampled as they happen, which `buckets` count; the
        digest is None there.

        Raises:
            ValueError: `verify` on a backend without memory; `blocks_at` or `journal` where several
                threads replay.
            DamagedBlock: a live block's bytes changed.
            LibraryFault: a library of the user's did not do what an allocator must.
        """

    def timed(self, state: str = "cold", digest: bool = True) -> TimedResult:
        """One pass with the time-stamp counter around each call.

        Args:
            state: "cold", or "steady": after one unmeasured pass and the end of its live blocks.
            digest: hash every decision, outside the timed part; never where several threads
                replay.

        Returns:
            Ticks per event, 0 for events without a call; the clock's own cost is in them.
        """

    def throughput(self, state: str = "cold", repeat: int = 1) -> ThroughputResult:
        """Passes without a clock inside; nanoseconds of each."""

class DriverPrices:
    """What calls of a driver cost by kind and size.

    Args:
        prices: for each kind of call points of bytes and nanoseconds; sizes rise from point to
            point. Between two points the logarithm of the price is linear in that of the size.

    Raises:
        ValueError: a kind that is not known or that is not there, or points in no order.
    """

    def __init__(self, prices: Mapping[str, Sequence[tuple[int, float]]]) -> None: ...
    def of(self, kind: str, size: int) -> float:
        """Nanoseconds of one call about `size` bytes.

        Raises:
            ValueError: there is no such kind.
        """

class CalibrationFound(TypedDict):
    """``facts`` about the device and the rules of its pool, and for each kind and size of ``calls``
    the nanoseconds of each (size 0: of a kind for which that means nothing).
    """

    facts: dict[str, str]
    calls: list[tuple[str, int, npt.NDArray[np.uint64]]]

def calibrate(
    capacity: int, rounds: int, progress: Callable[[int, int], None] | None = None
) -> CalibrationFound:
    """Measure what the calls of this GPU's driver cost.

    Args:
        capacity: bytes taken at once, at most.
        rounds: in each of which every call is made once.
        progress: called with rounds done and rounds in all.

    Raises:
        UnavailableError: there is no GPU that can be used, or too little of it is free.
        RuntimeError: the driver failed.
    """

class Difference(TypedDict):
    entry: int
    problem: str
    recorded_address: int
    recorded_size: int
    address: int
    size: int

class CheckedHistory(TypedDict):
    """What came of following a recorded history.

    ``created_before``: places of segments, of which the first must have been made before the
    second; ``slacks``: by place of a block whose size was not told, how much more than its request
    it holds; ``deduced``: how many more hold what no split leaves; ``segments`` and ``blocks``: at
    the end or at `state_at`; ``entry`` of a block: what allocated it, -1 - place where it was
    there before; ``reserved`` and ``allocated``: bytes after each entry; ``flushes``: entries at
    which all cached segments began to be released.
    """

    difference: Difference | None
    created_before: list[tuple[int, int]]
    slacks: dict[int, int]
    deduced: int
    segments: dict[str, npt.NDArray[Any]]
    blocks: dict[str, npt.NDArray[Any]]
    reserved: npt.NDArray[np.int64]
    allocated: npt.NDArray[np.int64]
    flushes: npt.NDArray[np.int64]
    collected: int
    pool_releases: int
    begins_in_request: bool

def check_history(
    segments: dict[str, npt.NDArray[Any]],
    blocks: dict[str, npt.NDArray[Any]],
    entries: dict[str, npt.NDArray[Any]],
    *,
    lanes: dict[str, npt.NDArray[np.int32]],
    settings: str,
    learning: Literal["nothing", "order", "size"],
    state_at: int | None = None,
) -> CheckedHistory:
    """Hold the caching allocator against a recorded history (workbench.recorders.trace.history).

    Args:
        segments: ``address`` (uint64), ``size`` (int64), ``stream`` (int32), ``is_small``,
            ``is_expandable`` (uint8), in order of their creation.
        blocks: ``address`` (uint64), ``size``, ``requested``, ``slack`` (int64), ``pending``
            (uint8), in order of addresses.
        entries: ``action`` (uint8), ``address`` (uint64), ``size`` (int64), ``stream`` (int32).
        lanes: ``stream`` and ``pool`` of each lane, whose numbers the others have in ``stream``;
            empty where these are streams, all of the default pool.
        settings: ``key:value,key:value``.
        learning: ``nothing``, or take the record's word where the starting state leaves room: one
            of two equal blocks came first in ``order``, or the other's ``size`` was smaller.
        state_at: the entry after which to list segments and blocks; None for the last.

    Raises:
        ValueError: a starting state that contradicts itself, or a wrong setting.
    """
