"""Memory snapshots of our own making, shaped like PyTorch's, old ones and new ones.

What is in them comes from a replay, its journal and its blocks at one event; or from the slow model
of the allocator, which knows where drivers put segments.
"""

from __future__ import annotations

import copy
import pickle
from collections.abc import Iterable, Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
from engine_events import LANE
from snapshot_model import record

from workbench.recorders.exporters import ReplaySource
from workbench.recorders.exporters.torch_snapshot import snapshot_of
from workbench.recorders.trace.origins import Origins
from workbench.replay import _engine
from workbench.replay.events import LoadedTrace, load_trace
from workbench.replay.journal import replay_history

Snapshot = dict[str, Any]
START = "2026-01-02T03:04:05+00:00"
STEP_NS = 10_000
_OUTER = "train.py:1 <module>;train.py:7 step"

_GOLDEN_NAMES = {"stream_done": "synchronize", "sync": "synchronize"}
_SCOPES = [f"model.py:{10 + number} layer_{number}" for number in range(9)]
_PHASES = ["forward", "backward", "other"]


def loaded_trace(operations: Iterable[Sequence[Any]], device: str = "cuda:0") -> LoadedTrace:
    """A trace in memory, 10 µs from one operation to the next.

    Args:
        operations: op, id, size, stream: of benchmarks/synthetic_trace.py, of the golden traces or
            of random_operations. An empty_cache has no stream; its number is ignored.
        device: whose they are.
    """
    listed = [tuple(operation) for operation in operations]
    count = len(listed)
    rows = np.arange(count)
    numbers = [(number, size, stream) for _, number, size, stream in listed]
    ids, sizes, streams = np.array(numbers, dtype=np.int64).reshape(-1, 3).T
    codes = [_engine.OPS[_GOLDEN_NAMES.get(op, op)] for op, *_ in listed]
    return LoadedTrace(
        path="made.parquet",
        metadata={"start_wall_clock": START, "devices": {}},
        columns={
            "time_ns": rows * STEP_NS,
            "id": np.ascontiguousarray(ids),
            "size": np.ascontiguousarray(sizes),
            "stream": np.where(streams >= LANE, streams % LANE, streams).astype(np.int32),
            "pool": (np.maximum(streams, 0) // LANE).astype(np.int32),
            "value": np.ascontiguousarray(ids),
            "thread": np.zeros(count, dtype=np.int32),
            "step": (rows // 1000).astype(np.int32),
            "event": np.array(codes, dtype=np.uint8),
            "device": np.zeros(count, dtype=np.int32),
            "phase": (rows // 300 % len(_PHASES)).astype(np.int32),
            "scope": (ids % len(_SCOPES)).astype(np.int32),
        },
        texts={"event": [], "device": [device], "phase": _PHASES, "scope": _SCOPES},
        rows=count,
    )


def make_source(
    source: Iterable[Sequence[Any]] | LoadedTrace | Path | str,
    settings: str = "",
    *,
    capacity: int | None = None,
    rules: str = "2.13",
    device: int = 0,
    completion: str = "recorded",
    at: str | int = "end",
    seed: int | None = None,
    **more: Any,
) -> ReplaySource:
    """What `make_snapshot` writes, as columns."""
    if seed is not None:
        return _by_model(source, settings, capacity, rules, device, completion, seed, more)
    if isinstance(source, str | Path):
        (loaded,) = load_trace(str(source))
    elif isinstance(source, LoadedTrace):
        loaded = source
    else:
        loaded = loaded_trace(source, f"cuda:{device}")
    (name,) = loaded.bytes_by_device or [f"cuda:{device}"]
    made = replay_history(
        loaded,
        name,
        ",".join(filter(None, [settings, f"rules:{rules}"])),
        capacity=capacity,
        completion=completion,
        at=at,
    )
    stacks = [f"{_OUTER};{text}" for text in made.origins.stacks]
    return ReplaySource(
        replace(made.history, device=f"cuda:{device}"), replace(made.origins, stacks=stacks)
    )


def start_us() -> int:
    """Microseconds since 1970 of the first operation."""
    return int(datetime.fromisoformat(START).timestamp()) * 1_000_000


def _by_model(
    operations: Any,
    settings: str,
    capacity: int | None,
    rules: str,
    device: int,
    completion: str,
    seed: int,
    more: dict[str, Any],
) -> ReplaySource:
    model = record(operations, settings, capacity or 1 << 40, rules, completion, seed, **more)
    history, events = model.history(f"cuda:{device}", settings, rules)
    after = history.after
    event = np.array(events, dtype=np.int64)
    return ReplaySource(
        history,
        Origins(
            time_us=start_us() + event * (STEP_NS // 1000),
            stack=(event % len(_SCOPES)).astype(np.int32),
            segment_stack=np.zeros(len(after.segments["address"]), dtype=np.int32),
            block_stack=np.zeros(len(after.blocks["address"]), dtype=np.int32),
            stacks=[f"{_OUTER};{text}" for text in _SCOPES],
            annotations=[],
        ),
    )


def make_snapshot(
    source: Iterable[Sequence[Any]] | LoadedTrace | Path | str,
    settings: str = "",
    *,
    capacity: int | None = None,
    rules: str = "2.13",
    device: int = 0,
    completion: str = "recorded",
    at: str | int = "end",
    seed: int | None = None,
    **more: Any,
) -> Snapshot:
    """The snapshot that PyTorch would have written after running some operations.

    Args:
        source: operations (op, id, size, stream), or a trace with one device.
        settings: of the allocator, without `rules`.
        capacity: bytes of the device; None for unlimited. Where it runs out, the history ends.
        rules: how ties between equal free blocks are broken: ``2.13`` or ``address-order``.
        device: its number, so its place in ``device_traces``.
        completion: when work on streams completes, as for a replay.
        at: ``end``, ``peak``, ``oom`` or the number of an operation.
        seed: of a driver that puts segments anywhere and uses addresses again, without which the
            two rule sets are one. Made by the slow model from operations, so a few thousand of
            them, and `at` the end.
        more: for that model: `goes_on` after a failed request, `first_private` stream.
    """
    return snapshot_of(
        make_source(
            source,
            settings,
            capacity=capacity,
            rules=rules,
            device=device,
            completion=completion,
            at=at,
            seed=seed,
            **more,
        )
    )


def save(snapshot: Any, path: Path, protocol: int = 4) -> Path:
    """Pickle `snapshot`, as ``torch.cuda.memory._dump_snapshot`` does."""
    with path.open("wb") as file:
        pickle.dump(snapshot, file, protocol=protocol)
    return path


def device_of(snapshot: Snapshot) -> int:
    """The number of the device that has a history."""
    return max((at for at, trace in enumerate(snapshot["device_traces"]) if trace), default=0)


def old_shape(snapshot: Snapshot, kind: str = "2.0") -> Any:
    """`snapshot` as older releases of PyTorch wrote it.

    Args:
        snapshot: left as it is.
        kind: ``2.1``: no settings and no annotations; ``2.0``: blocks without address and
            requested size, with ``history`` and ``real_size``, and no times either; ``bare``: as
            that, and nothing but the list of segments.
    """
    made = copy.deepcopy(snapshot)
    del made["allocator_settings"], made["external_annotations"]
    if kind == "2.1":
        return made
    for entry in [entry for trace in made["device_traces"] for entry in trace]:
        del entry["time_us"]
    for segment in made["segments"]:
        for name in ("segment_pool_id", "is_expandable", "requested_size", "frames"):
            del segment[name]
        for block in segment["blocks"]:
            told = {"addr": block.pop("address"), "frames": block.pop("frames")}
            requested = block.pop("requested_size")
            if block["state"] != "inactive":
                block["history"] = [told | {"real_size": requested}]
    return made["segments"] if kind == "bare" else made


def newest_shape(snapshot: Snapshot) -> Snapshot:
    """`snapshot` with what newer releases add, known and unknown."""
    made = copy.deepcopy(snapshot)
    for entry in [entry for trace in made["device_traces"] for entry in trace]:
        entry |= {
            "pool_id": (0, 0),
            "compile_context": "N/A",
            "user_metadata": "",
            "internal_metadata": "",
            "category": "unknown",
            "not_yet_invented": {"nested": [None, True, 1.5]},
        }
    for segment in made["segments"]:
        segment["not_yet_invented"] = -1
        for block in segment["blocks"]:
            if block["state"] == "active_pending_free":
                block["state"] = "active_awaiting_free"
    made["allocator_settings"] |= {
        "graph_capture_record_stream_reuse": False,
        "trace_alloc_overflowed": False,
        "trace_alloc_max_entries": 1_000_000,
    }
    return made | {"host_segments": [], "host_traces": []}


def with_private_pools(snapshot: Snapshot, first: int, told: bool = True) -> Snapshot:
    """`snapshot` with streams from `first` on as those of a private pool, and numbered from 0.

    Args:
        snapshot: left as it is.
        first: as the `first_private` that it was made with.
        told: whether entries say their pool, as newer releases do.
    """
    made = copy.deepcopy(snapshot)
    for entry in [entry for trace in made["device_traces"] for entry in trace]:
        is_private = entry["stream"] >= first
        entry["stream"] -= first * is_private
        if told:
            entry["pool_id"] = (0, 1) if is_private else (0, 0)
    for segment in made["segments"]:
        if segment["stream"] >= first:
            segment["stream"] -= first
            segment["segment_pool_id"] = (0, 1)
    return made


def only_alloc_and_free_completed(snapshot: Snapshot) -> Snapshot:
    """`snapshot` without entries of segments and without requests of frees."""
    made = dict(snapshot)
    made["device_traces"] = [
        [entry for entry in trace if entry["action"] in ("alloc", "free_completed")]
        for trace in snapshot["device_traces"]
    ]
    return made


def cut(snapshot: Snapshot, start: int) -> Snapshot:
    """`snapshot` without the first `start` entries of its device, as a full ring leaves it."""
    made = dict(snapshot)
    made["device_traces"] = [trace[start:] for trace in snapshot["device_traces"]]
    return made
