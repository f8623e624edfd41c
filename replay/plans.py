"""Static plans: made from traces, kept in files, held against other traces.

docs/allocators.md tells what a plan is and how its file looks.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from workbench.common.errors import BrokenFileError, UsageError
from workbench.common.outputs import output_file
from workbench.common.units import format_bytes
from workbench.replay import _engine
from workbench.replay.cell import AllocatorSpec, choose_device
from workbench.replay.events import LoadedTrace, Traffic
from workbench.replay.worker import save_plan

FORMAT_VERSION = 1
METADATA_KEY = b"workbench.plan"
COLUMNS = ("id", "size", "offset", "lifetime_end")
_LARGEST_ALIGNMENT = 4096
_REMEDY = "write it again with wb plan"


@dataclass(frozen=True)
class Origin:
    """What a plan was made of.

    Args:
        fingerprint: of the traffic.
        device: in the trace.
        program: the recorded program and its arguments.
    """

    fingerprint: str
    device: str
    program: list[Any]


def plan_facts(plan: _engine.Plan) -> dict[str, Any]:
    """What there is to say of a plan; bytes are bytes, times seconds."""
    managed = plan.end >= 0
    return {
        "planner": plan.planner,
        "alignment": plan.alignment,
        "thread": plan.thread,
        "steps": list(plan.steps) if plan.steps else None,
        "allocations": len(plan),
        "managed": int(managed.sum()),
        "unmanaged": int((~managed).sum()),
        "unmanaged_bytes": int(plan.size[~managed].sum(dtype=np.int64)),
        "height_bytes": plan.height,
        "lower_bound_bytes": plan.lower_bound,
        "ratio": plan.height / plan.lower_bound if plan.lower_bound else None,
        "seconds": plan.seconds,
    }


def threads_of(traffic: Traffic) -> str:
    """Which threads there are, in words."""
    numbers = [str(number) for number in np.unique(traffic.thread)[:9]]
    more = ", …" if traffic.thread_count > len(numbers) else ""
    return (
        f"its threads are {', '.join(numbers)}{more}"
        if len(numbers) > 1
        else (f"its only thread is {numbers[0]}" if numbers else "it has no events")
    )


def plan_of_traffic(traffic: Traffic, settings: str = "") -> _engine.Plan:
    """The plan that allocator ``plan`` with `settings` would make of `traffic`.

    Raises:
        UsageError: a setting that will not do.
    """
    thread = AllocatorSpec("plan", settings).settings_by_key().get("thread", "")
    if thread.isdecimal() and int(thread) not in traffic.thread:
        raise UsageError(
            f"plan: setting thread:{thread}: the trace has no such thread; {threads_of(traffic)}"
        )
    try:
        replay = _engine.Replay(traffic.events(), "plan", settings, backend="simulated")
    except ValueError as error:
        raise UsageError(str(error)) from None
    assert replay.plan is not None
    return replay.plan


def plan_in_file(spec: AllocatorSpec) -> _engine.Plan | None:
    """The plan in the file that the settings of ``plan`` name; None where they name none.

    Raises:
        UsageError: the name is empty.
        BrokenFileError: not a plan.
    """
    file = spec.settings_by_key().get("file") if spec.name == "plan" else None
    if file is None:
        return None
    if not file:
        raise UsageError("plan:file: names no file; write plan:file:PLAN.parquet")
    return read_plan(file)[0]


@dataclass(frozen=True)
class PlanOfCell:
    """The plan that all processes of a cell run: made once, for planners may run out of time.

    Args:
        file: where workers find it.
        facts: what there is to say of it.
    """

    file: Path
    facts: dict[str, Any]

    @classmethod
    def make(cls, traffic: Traffic, spec: AllocatorSpec, file: Path) -> PlanOfCell:
        """Take the plan that the settings name, else make one of `traffic`; write it to `file`.

        Raises:
            UsageError: a setting that will not do.
            BrokenFileError: not a plan.
        """
        plan = plan_in_file(spec)
        if plan is None:
            try:
                plan = plan_of_traffic(traffic, spec.settings)
            except UsageError as error:
                raise UsageError(f"--allocator {spec.label}: {error}") from None
        save_plan(plan, file)
        return cls(file, {**plan_facts(plan), "file": spec.settings_by_key().get("file")})


def traffic_to_plan(loaded: LoadedTrace, wanted: str | None) -> tuple[Traffic, Origin]:
    """The traffic of the device `wanted`, else of the CPU, else of the busiest device."""
    device = choose_device("cpu", loaded.bytes_by_device, wanted)
    traffic = loaded.traffic(device)
    return traffic, Origin(traffic.fingerprint, device, loaded.metadata.get("program", []))


def write_plan(plan: _engine.Plan, origin: Origin, path: Path) -> None:
    """Write a plan file, whole or not at all.

    Raises:
        UsageError: `path` cannot be written to.
        RunError: there is no room for it.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    unmanaged = plan.end < 0
    table = pa.table(
        {
            "id": np.arange(len(plan)),
            "size": plan.size,
            "offset": pa.array(plan.offset, mask=unmanaged),
            "lifetime_end": pa.array(plan.end, mask=unmanaged),
        }
    )
    metadata = {"format_version": FORMAT_VERSION, **asdict(origin), **plan_facts(plan)}
    with output_file(path) as part:
        pq.write_table(
            table.replace_schema_metadata({METADATA_KEY: json.dumps(metadata)}),
            part,
            compression="zstd",
        )


def is_plan(path: str | Path) -> bool:
    """Whether a file says that it is a plan; it may be a broken one."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return METADATA_KEY in (pq.read_metadata(path).metadata or {})
    except (OSError, pa.ArrowException):
        return False


def read_plan(path: str | Path) -> tuple[_engine.Plan, Origin]:
    """A plan file, checked: a plan that comes back can be run.

    Raises:
        BrokenFileError: not a plan, of another version, or one whose allocations overlap.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    if not Path(path).is_file():
        problem = "is no regular file" if os.path.lexists(path) else "no such file"
        raise BrokenFileError(path, problem, "name a plan that wb plan wrote")
    try:
        table = pq.read_table(path)
    except (OSError, pa.ArrowException) as error:
        problem = str(error).splitlines()[0]
        raise BrokenFileError(path, f"cannot be read as Parquet ({problem})", _REMEDY) from None
    metadata = _metadata(path, (table.schema.metadata or {}).get(METADATA_KEY))
    columns = {name: _column(path, table, name) for name in COLUMNS}
    if not np.array_equal(columns["id"], np.arange(len(table))):
        raise BrokenFileError(path, "column id does not count from 0", _REMEDY)
    _check_reach(path, columns)
    try:
        plan = _engine.Plan(
            columns["size"],
            columns["lifetime_end"],
            columns["offset"],
            alignment=metadata["alignment"],
            thread=metadata["thread"],
            steps=metadata["steps"] and tuple(metadata["steps"]),
            planner=metadata["planner"],
            seconds=float(metadata["seconds"]),
        )
    except (ValueError, TypeError) as error:
        raise BrokenFileError(path, str(error).splitlines()[0], _REMEDY) from None
    return plan, Origin(metadata["fingerprint"], metadata["device"], metadata["program"])


_KINDS: dict[str, tuple[type, ...]] = {
    "fingerprint": (str,),
    "device": (str,),
    "program": (list,),
    "alignment": (int,),
    "thread": (int,),
    "steps": (list, type(None)),
    "planner": (str,),
    "seconds": (int, float),
}


def _problem_of(found: Mapping[str, Any]) -> str | None:
    """What no plan's metadata can say, in words."""
    for name, kinds in _KINDS.items():
        value = found.get(name, ...)
        if not isinstance(value, kinds) or isinstance(value, bool):
            return f"lacks {name}" if value in (..., None) else f"has a {name} that is none"
    for name, lowest in (("alignment", 1), ("thread", 0)):
        if not lowest <= found[name] < 2**31:
            return f"has {name} {_short(found[name])}, outside {lowest} to {2**31 - 1}"
    steps = found["steps"]
    if steps is not None and not (
        len(steps) == 2 and all(type(one) is int and 0 <= one < 2**31 for one in steps)
    ):
        return f"has steps {_short(steps)}, which are not the first and the one past the last"
    if not 0 <= found["seconds"] < math.inf:
        return f"has seconds {_short(found['seconds'])}, which is no time"
    return None


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 40 else text[:40] + "…"


def _check_reach(path: str | Path, columns: Mapping[str, Any]) -> None:
    """A plan has gaps, but never so many that most of its arena is empty at all times."""
    managed = columns["lifetime_end"] >= 0
    offset, size = columns["offset"][managed], columns["size"][managed]
    total = int(size.sum(dtype=np.float64)) + _LARGEST_ALIGNMENT * len(size)
    for at in np.flatnonzero(offset > total)[:1].tolist():
        raise BrokenFileError(
            path,
            f"id {np.flatnonzero(managed)[at]} lies at offset {offset[at]:,}, and end to end all "
            f"its blocks take {format_bytes(total)} at most",
            _REMEDY,
        )


def _metadata(path: str | Path, text: bytes | None) -> Mapping[str, Any]:
    if text is None:
        raise BrokenFileError(path, "is not a plan", "name a plan that wb plan wrote")
    try:
        found = json.loads(text)
        version = found["format_version"]
    except (ValueError, KeyError, TypeError, RecursionError):
        raise BrokenFileError(path, "its metadata is not that of a plan", _REMEDY) from None
    if type(version) is not int:
        problem = f"its metadata has format_version {_short(version)}, which is no whole number"
        raise BrokenFileError(path, problem, _REMEDY)
    if version != FORMAT_VERSION:
        raise BrokenFileError(
            path,
            f"plan format version {_short(version)}, and this workbench reads version "
            f"{FORMAT_VERSION}",
            _REMEDY,
        )
    wrong = _problem_of(found)
    if wrong is not None:
        raise BrokenFileError(path, f"its metadata {wrong}", _REMEDY)
    return dict(found)


def _column(path: str | Path, table: Any, name: str) -> Any:
    import pyarrow as pa

    if name not in table.column_names or table[name].type != pa.int64():
        raise BrokenFileError(path, f"has no column {name} of 64-bit whole numbers", _REMEDY)
    column = table[name].combine_chunks()
    if name in ("id", "size") and column.null_count:
        raise BrokenFileError(path, f"column {name} has rows without a value", _REMEDY)
    # The engine's word for an allocation that the plan leaves out.
    filled = column.fill_null(-1)
    return np.ascontiguousarray(filled.to_numpy(zero_copy_only=False), dtype=np.int64)


@dataclass(frozen=True)
class Comparison:
    """Whether other traffic is what a plan was made of.

    Args:
        planned: allocations in the plan.
        found: allocations in the other traffic.
        sizes_differ: ids, up to the shorter length, of another size.
        lifetimes_differ: ids of another lifetime, or of none in one of the two.
        first: id of the first difference; None where there is none.
        problem: what differs there, in words; None where nothing does.
    """

    planned: int
    found: int
    sizes_differ: int
    lifetimes_differ: int
    first: int | None
    problem: str | None

    @property
    def matches(self) -> bool:
        """In ids, sizes, lifetimes and length."""
        return self.problem is None


def compare(plan: _engine.Plan, traffic: Traffic) -> Comparison:
    """Hold a plan against the same steps of other traffic, and the same thread.

    Raises:
        UsageError: the traffic has none of the plan's steps.
    """
    try:
        size, end, _ = _engine.lifetimes(traffic.events(), plan.steps, plan.thread)
    except ValueError as error:
        raise UsageError(str(error)) from None
    both = min(len(plan), len(size))
    sizes = plan.size[:both] != size[:both]
    ends = plan.end[:both] != end[:both]
    differing = np.flatnonzero(sizes | ends)
    first = problem = None
    if differing.size:
        first = int(differing[0])
        if sizes[first]:
            expected, got = (format_bytes(int(of[first])) for of in (plan.size, size))
            problem = f"id {first} has {got} ({size[first]:,} B), planned were {expected} "
            problem += f"({plan.size[first]:,} B)"
        else:
            expected, got = (_end_text(int(of[first])) for of in (plan.end, end))
            problem = f"id {first} is {got}, planned was {expected}"
    elif len(plan) != len(size):
        first = both
        problem = f"there are {len(size):,} allocations, planned were {len(plan):,}"
    return Comparison(
        planned=len(plan),
        found=len(size),
        sizes_differ=int(sizes.sum()),
        lifetimes_differ=int(ends.sum()),
        first=first,
        problem=problem,
    )


def _end_text(end: int) -> str:
    return "never freed" if end < 0 else f"freed after {end:,} allocations"
