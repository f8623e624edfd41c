"""A snapshot's ``allocator_settings`` in the syntax of ``PYTORCH_ALLOC_CONF``."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

_MIB: Final = 2**20
# Settings that the dictionary names in its text only.
_OF_TEXT: Final = (
    "large_segment_size_mb",
    "max_non_split_rounding_mb",
    "per_process_memory_fraction",
    "throw_on_cudamalloc_oom",
)
_PAIR: Final = re.compile(r"\s*([a-z0-9_]{1,60})\s*:\s*(\[[^\]]{0,1000}\]|[^,\s]{1,60})")


def settings_text(settings: Mapping[str, Any] | None) -> str:
    """The settings that move memory and are not at their defaults.

    What is not understood is left out: the self-check shows whether it mattered.
    """
    if settings is None:
        return ""
    text = settings.get("PYTORCH_CUDA_ALLOC_CONF") or settings.get("PYTORCH_ALLOC_CONF") or ""
    said = dict(_PAIR.findall(text[:10_000])) if isinstance(text, str) else {}
    found = {key: said[key] for key in _OF_TEXT if key in said}
    split = settings.get("max_split_size")
    if type(split) is int and 0 < split < 2**62:
        found["max_split_size_mb"] = str(split // _MIB)
    threshold = settings.get("garbage_collection_threshold")
    if isinstance(threshold, float) and 0 < threshold < 1:
        found["garbage_collection_threshold"] = repr(threshold)
    if settings.get("expandable_segments") is True:
        found["expandable_segments"] = "True"
    divisions = _divisions(settings.get("roundup_power2_divisions"))
    if divisions:
        found["roundup_power2_divisions"] = divisions
    return ",".join(f"{key}:{value}" for key, value in found.items())


def odd_settings(settings: Mapping[str, Any] | None) -> list[str]:
    """A sentence for each setting whose value is none, for which the default is taken."""
    odd = []
    for name, may_be in _VALUES.items():
        if settings is not None and name in settings and not may_be(settings[name]):
            odd.append(f"settings: {name} is {_shown(settings[name])}; its default is taken")
    return odd


def _is_size(value: Any) -> bool:
    return type(value) is int and -1 <= value < 2**63


def _is_share(value: Any) -> bool:
    return type(value) in (int, float) and 0 <= value < 1


def _is_table(value: Any) -> bool:
    return isinstance(value, Mapping) and all(
        type(one) is int and one >= 0 and not one & (one - 1) for one in value.values()
    )


_VALUES: Final = {
    "max_split_size": _is_size,
    "garbage_collection_threshold": _is_share,
    "expandable_segments": lambda value: isinstance(value, bool),
    "roundup_power2_divisions": _is_table,
}


def _shown(value: Any) -> str:
    return (
        repr(value[:40] if isinstance(value, str) else value)[:40]
        if isinstance(value, str | int | float)
        else type(value).__name__
    )


def _divisions(table: Any) -> str:
    """``[MB:divisions,…]`` of a table by size in MiB; empty where sizes are not rounded further."""
    if not isinstance(table, Mapping):
        return ""
    slots = []
    for slot in range(16):
        value = table.get(str(1 << slot), 0)
        if type(value) is not int or value < 0 or value & (value - 1) or value > 1 << 40:
            return ""
        slots.append(value)
    if max(slots) <= 1:
        return ""
    if len(set(slots)) == 1:
        return str(slots[0])
    # The first entry holds for smaller sizes too; 1 rounds nothing further, as 0 does not.
    listed = [f"{1 << slot}:{value or 1}" for slot, value in enumerate(slots)]
    return f"[{','.join(listed)}]"
