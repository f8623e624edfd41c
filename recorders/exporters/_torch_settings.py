"""Settings of the caching allocator as PyTorch's snapshots list them."""

from __future__ import annotations

import re
from typing import Any

_MIB = 2**20
# One `key:value`; what is in square brackets is one value.
_SETTING = re.compile(r"([^,:\[\]]+):(\[[^\]]*\]|[^,]*)")
_UNIT = 512  # bytes that a block is a multiple of
_SLOTS = 16  # of the table of divisions: requests of 1 MiB, 2 MiB, … 32 GiB and above


def allocator_settings(text: str) -> dict[str, Any]:
    """The dictionary under ``allocator_settings`` of a snapshot.

    Args:
        text: valid settings in the syntax of ``PYTORCH_ALLOC_CONF``.
    """
    given = {key.strip(): value.strip() for key, value in _SETTING.findall(text)}
    split = int(given.get("max_split_size_mb", 0))
    divisions = _divisions(given.get("roundup_power2_divisions", "0"))
    return {
        "PYTORCH_CUDA_ALLOC_CONF": ",".join(f"{key}:{value}" for key, value in given.items()),
        "max_split_size": split * _MIB if split else -1,
        "garbage_collection_threshold": float(given.get("garbage_collection_threshold", 0)),
        "expandable_segments": _is_on(given, "expandable_segments"),
        "pinned_num_register_threads": int(given.get("pinned_num_register_threads", 1)),
        "release_lock_on_cudamalloc": _is_on(given, "release_lock_on_cudamalloc"),
        "pinned_use_cuda_host_register": _is_on(given, "pinned_use_cuda_host_register"),
        "roundup_power2_divisions": {str(1 << slot): value for slot, value in enumerate(divisions)},
    }


def rounded(size: int, settings: dict[str, Any]) -> int:
    """Bytes of the block that a request of `size` bytes gets, under `allocator_settings`."""
    slot = min(max(size.bit_length() - 1 - 20, 0), _SLOTS - 1)
    divisions = settings["roundup_power2_divisions"][str(1 << slot)]
    unit = _UNIT
    if divisions > 1 and size > _UNIT * divisions:
        floor = 1 << (size.bit_length() - 1)
        if size == floor:
            return size
        unit = floor // divisions or 2 * floor
    return max(-(-size // unit), 1) * unit


def _is_on(given: dict[str, str], key: str) -> bool:
    return given.get(key) == "True"


def _divisions(text: str) -> list[int]:
    """Divisions for each power of two of MiB: the first entry holds below, ``>`` above the last."""
    if not text.startswith("["):
        return [int(text)] * _SLOTS
    slots = [0] * _SLOTS
    last: int | None = None
    for entry in text.strip("[]").split(","):
        size, divisions = (part.strip() for part in entry.split(":"))
        if size == ">":
            start = 1 if last is None else last + 1
            slots[start:] = [int(divisions)] * (_SLOTS - start)
            continue
        slot = min(int(size).bit_length() - 1, _SLOTS - 1)
        if last is None:
            slots[:slot] = [int(divisions)] * slot
        slots[slot] = int(divisions)
        last = slot
    return slots
