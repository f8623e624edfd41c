"""What the hook said of devices, streams and pools, as a trace's metadata says it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from workbench.recorders.spool.names import Names

_FIRST_CUDA = 2
_PEAKS = ("requested", "allocated", "active", "reserved")


def device_name(code: int) -> str:
    """The name in traces of a device as the spool numbers it."""
    return ("cpu", "pinned")[code] if code < _FIRST_CUDA else f"cuda:{code - _FIRST_CUDA}"


def described(names: Names, metadata: Mapping[str, Any]) -> dict[str, Any]:
    """The metadata that `names` adds to or changes in `metadata`; nothing on a CPU recording.

    Streams and pools are listed by device and number. What is not as the hook writes it is left
    out: the file may be damaged.
    """
    devices = {
        name: {
            "name": fact["name"] if isinstance(fact.get("name"), str) else None,
            "capacity": _size(fact.get("capacity")),
            "held_by_others": _size(fact.get("held_by_others")),
        }
        for name, fact in _by_device(names, "device")
    }
    streams: dict[str, Any] = {}
    for name, fact in _by_device(names, "stream"):
        about = {key: fact.get(key) for key in ("priority", "external")}
        streams.setdefault(name, {})[str(fact.get("number"))] = about
    pools: dict[str, Any] = {}
    for name, fact in _by_device(names, "pool"):
        about = {key: fact.get(key) for key in ("id", "kind")}
        pools.setdefault(name, {})[str(fact.get("number"))] = about
    peaks = {
        name: {key: _size(fact.get(key)) for key in (*_PEAKS, "requested_before")}
        for name, fact in _by_device(names, "peaks")
    }
    notes = [fact["text"] for fact in names.facts("note") if isinstance(fact.get("text"), str)]
    found: dict[str, Any] = {
        "devices": {**metadata.get("devices", {}), **devices} if devices else {},
        "streams": streams,
        "pools": pools,
        "reported_peaks": peaks,
        "not_recorded": [*metadata.get("not_recorded", []), *notes] if notes else [],
        "allocator": {
            key: text if isinstance(text := fact.get(key), str) else None
            for fact in names.facts("allocator")
            for key in ("backend", "settings")
        },
    }
    return {key: value for key, value in found.items() if value}


def _by_device(names: Names, kind: str) -> Iterator[tuple[str, dict[str, Any]]]:
    for fact in names.facts(kind):
        number = fact.get("device")
        if isinstance(number, int) and number >= 0:
            yield f"cuda:{number}", fact


def _size(value: object) -> int | None:
    is_size = isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63
    return value if is_size else None  # type: ignore[return-value]
