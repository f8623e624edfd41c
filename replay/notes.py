"""What a reader of a replay's tables must know, as sentences."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from workbench.common.units import format_duration
from workbench.replay.results import CellResult, driver_time_is_model, takes_memory_itself
from workbench.replay.summary_rows import grows_unreported, named, row_of

SOURCES = {
    "ours": "our own implementation, which is faster than PyTorch's by design",
    "reference": "PyTorch's own code",
    "hardware": "measured on the device",
    "library": "the library's own code",
    "not priced": "driver calls cost nothing here",
}


def notes(results: Sequence[CellResult], left_out: Iterable[tuple[str, str]] = ()) -> list[str]:
    """What a reader of the tables must know, one sentence each, none twice."""
    found: dict[str, None] = {}
    if any(result.info["allocator"]["latency_source"] == "reference" for result in results):
        found["† PyTorch's own code, compiled against the installed torch: the reference."] = None
    as_if = [result.info for result in results if result.info["as_if"]]
    if as_if:
        found[
            as_if_note((info["trace"]["device"], info["allocator"]["kind"]) for info in as_if)
        ] = None
    several = len({result.info["trace"]["path"] for result in results}) > 1
    for result in results:
        info = result.info
        label = named(info["label"], info["trace"]["path"], several)
        if info["backend"]["is_model"]:
            found[
                f"Backend {info['backend']['name']} is a model: addresses without memory, and "
                f"driver calls that take no time{_unpriced(info)}."
            ] = None
        if info.get("profile") and driver_time_is_model(info["memory"] or {}):
            found[_priced_note(info["profile"])] = None
        if grows_unreported(row_of(info)):
            found[
                "Resident growth is measured from outside, where an allocator does not report what "
                "it holds: by how much the process grew in the memory pass, with every block used."
            ] = None
        source = info["allocator"]["latency_source"]
        if info["latency"]:
            found[f"Latency source {source}: {SOURCES.get(source, source)}."] = None
            found[
                "Latencies include two clock reads, which cost "
                f"{format_duration(info['harness']['clock_cost_ns'])} here."
            ] = None
        if result.plan_note is not None:
            found[named(result.plan_note, info["trace"]["path"], several)] = None
        if info["outcome"]["reason"]:
            found[f"{label}: {info['outcome']['reason']}."] = None
    found.update(dict.fromkeys(_cold_note(results)))
    for name, reason in left_out:
        found[f"Left out: {name} ({reason})."] = None
    for result in results:
        # These two are said above, where they are nearer to the tables.
        found.update(
            dict.fromkeys(
                warning
                for warning in result.info["warnings"]
                if not warning.startswith(("As-if replay", "The backend"))
            )
        )
    return _one_clock_note(found)


def _unpriced(info: Mapping[str, Any]) -> str:
    """What is said where driver calls of a model have no price."""
    # Results from before there were profiles have no such field.
    has_none = "profile" in info and info["profile"] is None
    return " and are not priced (--profile)" if has_none else ""


def _priced_note(profile: Mapping[str, Any]) -> str:
    return (
        "Driver time is a model: calls counted, times their price in the profile "
        f"{profile['name']}, measured on {profile['device']['name']} on {profile['date']}. It is "
        "in no latency."
    )


def as_if_note(replayed: Iterable[tuple[str, str]]) -> str:
    """The footnote of the mark ``*``: one, for all pairs of a device and a kind of memory."""
    devices, kinds = (list(dict.fromkeys(names)) for names in zip(*replayed, strict=True))
    return (
        f"* as-if replay: {' and '.join(devices)} traffic through an allocator for "
        f"{' or '.join(kinds)} memory; shown, never recommended from."
    )


def _cold_note(results: Sequence[CellResult]) -> Iterable[str]:
    """Whose cold calls touch the memory they take, and whose leave that to the program."""
    timed = [
        result.info
        for result in results
        if result.info["latency"] and result.info["backend"]["name"] == "host"
    ]
    by_itself = [info["label"] for info in timed if takes_memory_itself(info["memory"])]
    if by_itself and len({info["label"] for info in timed}) > len(set(by_itself)):
        yield (
            "Cold latencies differ in what is in them: memory of the backend host is touched "
            f"within the call that takes it, and {', '.join(dict.fromkeys(by_itself))} may leave "
            "that to the program's first use of it; compare the steady ones."
        )


def _one_clock_note(found: Iterable[str]) -> list[str]:
    """The clock's cost differs by a fraction of a nanosecond between cells: once is enough."""
    clock = [note for note in found if note.startswith("Latencies include")]
    return [note for note in found if note not in clock[1:]]
