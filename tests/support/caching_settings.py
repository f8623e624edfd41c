"""Settings of `caching` as the tests' model reads them, and random ones."""

from __future__ import annotations

import random
import re
from dataclasses import dataclass, field

MIB = 2**20
UNLIMITED = 2**63 - 1


@dataclass
class Conf:
    """Settings of `caching`, read from text that is right."""

    large_segment: int = 20 * MIB
    max_split: int = UNLIMITED
    max_rounding: int = 20 * MIB
    threshold: float = 0.0
    fraction: float = 1.0
    divisions: list[int] = field(default_factory=lambda: [0] * 16)
    expandable: bool = False
    throws: bool = False
    reuses: bool = False
    """During captures."""

    @classmethod
    def read(cls, text: str) -> Conf:
        """Settings from `key:value,key:value`."""
        given = dict(
            re.findall(r"([a-z_0-9]+):(\[[^]]*\]|[^,\[\]]*),", text.replace(" ", "") + ",")
        )
        conf = cls(large_segment=int(given.pop("large_segment_size_mb", 20)) * MIB)
        conf.max_rounding = conf.large_segment
        for key, value in given.items():
            match key:
                case "max_split_size_mb":
                    conf.max_split = int(value) * MIB
                case "max_non_split_rounding_mb":
                    conf.max_rounding = int(value) * MIB
                case "garbage_collection_threshold":
                    conf.threshold = float(value)
                case "per_process_memory_fraction":
                    conf.fraction = float(value)
                case "roundup_power2_divisions":
                    conf.divisions = _divisions(value)
                case "expandable_segments":
                    conf.expandable = value == "True"
                case "throw_on_cudamalloc_oom":
                    conf.throws = value == "True"
                case "graph_capture_record_stream_reuse":
                    conf.reuses = value == "True"
        return conf


def _divisions(text: str) -> list[int]:
    if not text.startswith("["):
        return [int(text)] * 16
    slots = [0] * 16
    last = None
    for entry in text[1:-1].split(","):
        size, divisions = entry.split(":")
        if size == ">":
            start = 1 if last is None else last + 1
            slots[start:] = [int(divisions)] * (16 - start)
            continue
        slot = min(int(size).bit_length() - 1, 15)
        if last is None:
            slots[:slot] = [int(divisions)] * slot
        slots[slot] = int(divisions)
        last = slot
    return slots


def random_settings(rng: random.Random) -> str:
    """Right settings in any combination, small enough to matter on a device of some 100 MiB."""
    large = rng.choice([11, 20, 20, 20, 24, 31])
    split = large + rng.choice([0, 0, 1, 8])
    divisions = rng.choice(
        [
            *("1", "2", "4", "8", "64", "2048", "[1:2,64:8,256:4,>:2]", "[2:4,8:1,>:0]", "[>:4]"),
            *("[4:16]", "[1:0,2:32,4:2]", "[1:4096,>:16384]", "[16:4,1:8,>:2]", "[65536:2]"),
        ]
    )
    choices = [
        (0.4, f"large_segment_size_mb:{large}"),
        (0.4, f"max_split_size_mb:{split}"),
        (0.3, f"max_non_split_rounding_mb:{large + rng.choice([0, 1, 12])}"),
        (0.4, f"garbage_collection_threshold:{rng.choice(['0.01', '0.3', '0.6', '0.95', '.5'])}"),
        (
            0.4,
            f"per_process_memory_fraction:{rng.choice(['0.5', '0.77', '0.9', '0.99', '1', '0'])}",
        ),
        (0.4, f"roundup_power2_divisions:{divisions}"),
        (0.4, f"expandable_segments:{rng.choice(['True', 'True', 'True', 'False'])}"),
        (0.15, f"throw_on_cudamalloc_oom:{rng.choice(['True', 'True', 'False'])}"),
        (0.05, "release_lock_on_cudamalloc:True"),
        (0.05, "graph_capture_record_stream_reuse:True"),
        (0.05, "backend:native"),
    ]
    drawn = [setting for chance, setting in choices if rng.random() < chance]
    if not any(setting.startswith("large_segment") for setting in drawn) and large < 20:
        drawn.append(f"large_segment_size_mb:{large}")  # the others are held against it
    rng.shuffle(drawn)
    return ",".join(drawn)
