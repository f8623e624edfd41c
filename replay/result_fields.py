"""The fields of ``cell.json``, as docs/result-format.md tells them, and whether a file has them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class _Null:
    """Null, or what `kind` says."""

    kind: Any


@dataclass(frozen=True)
class _Each:
    """An object whose values are all of `kind`, except those that `named` describes.

    Args:
        kind: of each value.
        named: fields that must be there, and their kinds.
        filled: whether an object without any field is refused.
    """

    kind: Any
    named: Mapping[str, Any] = field(default_factory=dict)
    filled: bool = False


# What a result holds, as docs/result-format.md tells it: a type, a list of one kind, an object of
# named fields (a name with ? may be left out) or one of the classes above. Unknown fields are kept.
_NUMBER = (int, float)
_PLAIN = (str, int, float, bool, type(None))
_INTERVAL = {
    "median": _NUMBER,
    "low": _Null(_NUMBER),
    "high": _Null(_NUMBER),
    "samples": [_NUMBER],
}
_QUANTILES = ("p50_ns", "p90_ns", "p99_ns", "p99_9_ns", "p99_99_ns", "max_ns", "mean_ns")
_CALLS = {"count": _NUMBER, **dict.fromkeys(_QUANTILES, _INTERVAL)}
_TOTAL = {"count": _NUMBER, "total_ns": _NUMBER}
_STATE = _Each(_CALLS, {"causes": _Each(_TOTAL)})
_THREAD = {"alloc?": _CALLS, "free?": _CALLS, "lock_wait": _TOTAL}
_COUNTED = ("requested", "live_requested", "allocated", "active", "reserved")
# Null in these: the allocator does not report it.
_PEAK = {"bytes": _Null(int), "event": _Null(int), "time_ns": _Null(int)}
# The parts of reserved memory, in the order in which they are shown; they add up to it.
WATERFALL = ("live_requested", "rounding", "pending", "stranded", "cached")

# Of the driver's calls of one kind; times in nanoseconds.
CALL_TIMES = {"count": int, "total_ns": int, "p50_ns?": int, "p99_ns?": int, "max_ns?": int}
# How a plan served its traffic: allocations by where they came from, mismatches, bytes.
SERVED = (
    *("planned", "unmanaged", "other_threads", "outside", "mismatches", "fallback"),
    *("fallback_bytes", "peak_fallback_bytes", "arena_bytes"),
)
_SLOW_CALL = {
    "event": int,
    "kind": str,
    "size": int,
    "scope": _Null(str),
    "cause": str,
    "ns": _NUMBER,
    "process": int,
    "state": str,
}
RESULT: dict[str, Any] = {
    "key": dict,
    "name": str,
    "label": str,
    "trace": {
        "path": str,
        "fingerprint": str,
        "program": [_PLAIN],
        "events": int,
        "rows?": int,
        "device": str,
        "recorded_kind": str,
        "complete": bool,
        "lost_events": int,
        "duration_ns": int,
        "step_count": int,
        "threads?": int,
        "peak_live_bytes": int,
    },
    "allocator": {
        "name": str,
        "settings": _Each(str),
        "kind?": str,
        "latency_source?": str,
        "is_model?": bool,
        "library?": {"path": str, "blake2b": _Null(str)},
    },
    "backend": {"name": str, "is_model": bool},
    "as_if": bool,
    "capacity": {"bytes": _Null(int), "source": str},
    "completion": str,
    "after_oom?": str,
    "order?": str,
    "profile?": _Null(
        {
            **dict.fromkeys(("name", "digest", "date"), str),
            "device": {"name": str, "compute_capability": str, "memory_bytes": int},
            "settings": _Each(str),
        }
    ),
    "outcome": {
        "status": str,
        "reason": _Null(str),
        "oom": _Null(
            {
                **dict.fromkeys(("event", "time_ns", "requested", "live_requested"), int),
                **dict.fromkeys(("allocated", "reserved", "active", "largest_free"), _Null(int)),
                "device_free": _Null(int),
                "count?": int,
                "waterfall?": _Null(dict.fromkeys(WATERFALL, int)),
                "message?": str,
            }
        ),
        "mismatch?": _Null(
            {
                "event": _Null(int),
                "time_ns": _Null(int),
                "id": int,
                "expected": str,
                "got": str,
            }
        ),
    },
    "plan?": _Null(
        {
            "planner": str,
            **dict.fromkeys(("allocations", "managed", "unmanaged", "unmanaged_bytes"), int),
            **dict.fromkeys(("height_bytes", "lower_bound_bytes", "alignment", "thread"), int),
            "ratio": _Null(_NUMBER),
            "seconds": _NUMBER,
            "steps": _Null([int]),
            "file": _Null(str),
            "served": _Null(_Each(int, dict.fromkeys(SERVED, int))),
        }
    ),
    "memory": _Null(
        {
            "peaks": dict.fromkeys(_COUNTED, _PEAK),
            "finals": dict.fromkeys(_COUNTED, _Null(int)),
            "waterfall?": _Null({"event": _Null(int), **dict.fromkeys(WATERFALL, int)}),
            "unused_share": _Null(_NUMBER),
            "reserved_meaning": str,
            "driver_calls": _Each(_Null(int), {"alloc": _Null(int), "free": _Null(int)}),
            "driver_time?": _Null(
                {"source": str, "profile": _Null(str), "kinds": _Each(CALL_TIMES)}
            ),
            "counters": _Each(_Null(int)),
            "torch_statistics?": _Each(int),
            "rss_growth_bytes": _Null(int),
            "minor_faults": _Null(int),
            "major_faults": _Null(int),
        }
    ),
    "latency": _Null(
        {
            "source": str,
            "states": {"cold": _STATE, "steady": _STATE},
            "slowest": [_SLOW_CALL],
            "threads?": _Each(_Each(_THREAD)),
        }
    ),
    "throughput": _Each({"events_per_s": _INTERVAL, "ns_per_event": _INTERVAL}),
    "harness": _Null({"clock_cost_ns": _NUMBER, "ns_per_event": _NUMBER}),
    "digests": _Each(str),
    "processes": int,
    "seed?": int,
    "machine": _Each((*_PLAIN, list), filled=True),
    "versions": _Each(_PLAIN),
    "warnings": [str],
    "left_out?": [{"name": str, "reason": str}],
    "command": str,
    "created": str,
}
_WORDS: dict[Any, str] = {
    str: "text",
    int: "a whole number",
    bool: "true or false",
    dict: "an object",
    _NUMBER: "a number",
    _PLAIN: "text, a number, true, false or null",
    (*_PLAIN, list): "text, a number, true, false, null or a list",
}
# Greater numbers count nothing, and arithmetic with floats ends where they are huge.
_GREATEST = 2**64


def field_problem(name: str, value: Any, kind: Any) -> str | None:
    """The first part of `value` that is not of `kind`, and why; None where all of it is."""
    if isinstance(kind, _Null):
        return None if value is None else field_problem(name, value, kind.kind)
    if isinstance(kind, list):
        if not isinstance(value, list):
            return f"{name} is {shown(value)}, not a list"
        parts = ((f"{name}[{place}]", part, kind[0]) for place, part in enumerate(value))
        return _first_problem(parts)
    if isinstance(kind, dict | _Each):
        return _object_problem(name, value, kind)
    kinds = kind if isinstance(kind, tuple) else (kind,)
    # Python counts true and false among the whole numbers.
    if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
        return f"{name} is {shown(value)}, not {_WORDS[kind]}"
    if isinstance(value, int | float) and not abs(value) < _GREATEST:
        return f"{name} is {shown(value)}, which is out of range"
    return None


def _object_problem(name: str, value: Any, kind: Any) -> str | None:
    if not isinstance(value, dict):
        return f"{name} is {shown(value)}, not an object"
    fields: Mapping[str, Any] = kind.named if isinstance(kind, _Each) else kind
    for item, wanted in fields.items():
        plain = item.removesuffix("?")
        if plain in value:
            problem = field_problem(_dotted(name, plain), value[plain], wanted)
            if problem is not None:
                return problem
        elif plain == item:
            return f"{_dotted(name, plain)} is missing"
    if not isinstance(kind, _Each):
        return None
    if kind.filled and not value:
        return f"{name} is empty: what it holds is missing"
    others = ((item, part) for item, part in value.items() if item not in fields)
    return _first_problem((_dotted(name, item), part, kind.kind) for item, part in others)


def _first_problem(parts: Iterable[tuple[str, Any, Any]]) -> str | None:
    return next((told for part in parts if (told := field_problem(*part)) is not None), None)


def _dotted(name: str, item: str) -> str:
    """The name of the field `item` of the object `name`; it may be any text."""
    shown = repr(item[:60])[1:-1]
    return f"{name}.{shown}" if name else shown


def shown(value: Any) -> str:
    if isinstance(value, dict | list):
        return "an object" if isinstance(value, dict) else "a list"
    text = json.dumps(value)  # NaN and infinities too
    return text if len(text) <= 40 else f"{text[:40]}…"
