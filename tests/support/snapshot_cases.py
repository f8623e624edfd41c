"""Random programs as snapshots of our own making, and what the self-check says of snapshots."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from caching_settings import MIB
from engine_events import Operation
from random_operations import random_operations, random_size
from snapshot_maker import Snapshot, cut, device_of, make_snapshot

from workbench.recorders.importers._snapshot_file import ShapeError, read_snapshot
from workbench.recorders.importers._snapshot_history import NotReconstructible, build_history
from workbench.recorders.importers._snapshot_settings import settings_text
from workbench.replay.self_check import Verdict, check_history

SETTINGS = (
    "",
    "expandable_segments:True",
    "max_split_size_mb:64",
    "max_split_size_mb:20,max_non_split_rounding_mb:32",
    "max_split_size_mb:21,max_non_split_rounding_mb:200",
    "roundup_power2_divisions:8",
    "roundup_power2_divisions:[1:4,64:8,>:2]",
    "roundup_power2_divisions:[256:1,512:2,1024:4,>:8]",
    "large_segment_size_mb:40",
    "large_segment_size_mb:64,max_split_size_mb:100",
    "expandable_segments:True,max_split_size_mb:128",
    "expandable_segments:True,large_segment_size_mb:32,roundup_power2_divisions:4",
)
CAPACITIES = (None, None, 3 << 30, 1 << 30, 300 * MIB)
COMPLETIONS = ("recorded", "immediate", "delay:7", "never")
RULES = ("2.13", "address-order")
# Sizes that leave rests just below and above what a split leaves.
_TIGHT = [MIB + 512, 2 * MIB, 5 * MIB, 10 * MIB, 18 * MIB, 19 * MIB, 19 * MIB + 512, 20 * MIB]


@dataclass(frozen=True)
class Case:
    """A program and how its allocator was set; see `make_snapshot`."""

    operations: list[Operation] = field(repr=False)
    settings: str = ""
    capacity: int | None = None
    rules: str = "2.13"
    completion: str = "recorded"
    seed: int | None = None

    def snapshot(self) -> Snapshot:
        """What PyTorch would have written."""
        return make_snapshot(
            self.operations,
            self.settings,
            capacity=self.capacity,
            rules=self.rules,
            completion=self.completion,
            seed=self.seed,
        )


def random_case(rng: random.Random, most: int = 1500) -> Case:
    """A program of up to `most` operations under settings drawn from those above."""
    operations = random_operations(rng, rng.randrange(most // 20, most))
    kind = rng.random()
    if kind < 0.25:  # few sizes: ties between equal blocks
        sizes = [random_size(rng) for _ in range(rng.randrange(1, 5))]
        operations = _resized(operations, lambda: rng.choice(sizes))
    elif kind < 0.5:  # blocks that hold more than was asked for
        operations = _resized(
            operations,
            lambda: max(1, rng.choice(_TIGHT) - rng.choice([0, 512, rng.randrange(MIB)])),
        )
    if rng.random() < 0.3:
        operations = [one for one in operations if one[0] != "empty_cache"]
    return Case(
        operations,
        rng.choice(SETTINGS),
        rng.choice(CAPACITIES),
        rng.choice(RULES),
        rng.choice(COMPLETIONS),
        rng.choice([None, rng.randrange(1 << 30)]),
    )


def _resized(operations: list[Operation], size: Any) -> list[Operation]:
    return [
        (op, name, size() if op == "alloc" else was, stream) for op, name, was, stream in operations
    ]


def random_cuts(rng: random.Random, snapshot: Snapshot, count: int) -> list[Snapshot]:
    """`snapshot` whole, and from `count` random entries on."""
    entries = len(snapshot["device_traces"][device_of(snapshot)])
    starts = [rng.randrange(entries) for _ in range(count if entries else 0)]
    return [cut(snapshot, start) for start in [0, *starts]]


def verdicts(snapshot: Any) -> list[Verdict]:
    """The self-check's verdict on each device, as ``wb import`` has it."""
    try:
        file = read_snapshot(snapshot, 1 << 40)
    except ShapeError as error:
        return [Verdict("", "not_reconstructible", problem=str(error))]
    pointers = [np.zeros(1, dtype=np.uint64)]
    for entries, final in file.devices.values():
        pointers += [entries.stream, final.segments["stream"]]
    streams = np.unique(np.concatenate(pointers))
    found = []
    for number, (entries, final) in file.devices.items():
        device = f"cuda:{number}"
        try:
            history = build_history(
                device,
                entries,
                final,
                streams,
                settings_text(file.settings),
                file.settings is not None,
            )
        except NotReconstructible as error:
            found.append(Verdict(device, "not_reconstructible", problem=str(error)))
        else:
            found.append(check_history(history))
    return found


def is_exact(snapshot: Any) -> bool:
    """Whether all devices of a snapshot are reproduced."""
    return all(verdict.kind == "exact" for verdict in verdicts(snapshot))


def write_case(case: Case, path: Path) -> None:
    """The operations of a case, one a line, below what it was run with."""
    lines = [f"# {case!r}", *(",".join(map(str, operation)) for operation in case.operations)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
