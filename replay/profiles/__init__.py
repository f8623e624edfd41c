"""Profiles: what the calls of a device's driver cost, measured on the device by ``wb calibrate``.

A profile is a JSON file, described in docs/profiles.md. Those in this folder come with the
workbench and are found by being here; each was measured on the card it names.
"""

from __future__ import annotations

import difflib
import json
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import date
from functools import cached_property
from hashlib import blake2b
from pathlib import Path
from typing import Any

from workbench.common.errors import BrokenFileError, UsageError
from workbench.common.words import printable
from workbench.replay.result_fields import field_problem, shown

FORMAT_VERSION = 1
FOLDER = Path(__file__).parent
# Kinds of calls whose price depends on how many bytes they are about, and those that have one.
SIZED_CALLS = (
    *("alloc", "free", "host_alloc", "host_free", "reserve", "unreserve", "map", "unmap"),
    *("pool_alloc", "pool_alloc_grown", "pool_free"),
)
PLAIN_CALLS = (
    *("event_create", "event_destroy", "event_record", "event_query", "event_wait"),
    *("stream_wait", "synchronize"),
)
# Of the pool's model, each with the setting of `async` that has the same meaning.
POOL_RULES = (
    *("reuse_follow_event_dependencies", "reuse_allow_opportunistic"),
    *("reuse_allow_internal_dependencies", "remap"),
)
_PRICE = {"p50_ns": (int, float), "p99_ns": (int, float)}
_FIELDS: dict[str, Any] = {
    "name": str,
    "device": {"name": str, "compute_capability": str, "memory_bytes": int},
    "versions": {"driver": str, "runtime": str},
    "date": str,
    "measured": str,
    "calls": {
        **{kind: [{"bytes": int, **_PRICE}] for kind in SIZED_CALLS},
        **dict.fromkeys(PLAIN_CALLS, _PRICE),
    },
    "pool": {
        "chunk_bytes": int,
        **dict.fromkeys(POOL_RULES, bool),
        "releases_above_threshold": bool,
    },
}
_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
_TEXTS = (
    *(("device", "name"), ("device", "compute_capability")),
    *(("versions", "driver"), ("versions", "runtime"), ("measured",)),
)
_LONGEST_TEXT = 200
_LARGEST_FILE = 2**20
_MOST_POINTS = 1000
_MOST_BYTES = 2**60
_MOST_NS = 1e12
_PAGE = 2 * 2**20
_LARGEST_CHUNK = 2**30
_REMEDY = "name a file that wb calibrate wrote"


@dataclass(frozen=True)
class Profile:
    """A checked profile.

    Args:
        info: the document, with the fields in docs/profiles.md.
    """

    info: Mapping[str, Any]

    def __hash__(self) -> int:
        return hash(self.digest)

    @property
    def name(self) -> str:
        """What results and tables call it."""
        return str(self.info["name"])

    @property
    def device(self) -> str:
        """The card it was measured on, as its driver calls it."""
        return str(self.info["device"]["name"])

    @cached_property
    def digest(self) -> str:
        """Of the content: equal profiles have equal ones, whatever their files are called."""
        text = json.dumps(self.info, sort_keys=True)
        return blake2b(text.encode(), digest_size=8).hexdigest()

    def prices(self) -> dict[str, list[tuple[int, float]]]:
        """For the engine: by kind of call, points of bytes and nanoseconds (medians).

        A kind whose price does not depend on a size has one point, of 0 bytes.
        """
        calls = self.info["calls"]
        sized = {
            kind: [(point["bytes"], float(point["p50_ns"])) for point in calls[kind]]
            for kind in SIZED_CALLS
        }
        return sized | {kind: [(0, float(calls[kind]["p50_ns"]))] for kind in PLAIN_CALLS}

    def pool_settings(self) -> dict[str, str]:
        """The settings of `async` that give its model the rules of the measured pool."""
        pool = self.info["pool"]
        rules = {rule: str(bool(pool[rule])) for rule in POOL_RULES}
        return {"chunk_mb": str(pool["chunk_bytes"] // 2**20), **rules}

    def document(self, settings: Mapping[str, str]) -> dict[str, Any]:
        """What a result tells of it; `settings` are those that an allocator got from it."""
        return {
            "name": self.name,
            "digest": self.digest,
            "device": dict(self.info["device"]),
            "date": self.info["date"],
            "settings": dict(settings),
        }


def shipped() -> dict[str, Path]:
    """The profiles that come with the workbench, by name; where one is broken is not looked at."""
    return {path.stem: path for path in sorted(FOLDER.glob("*.json"))}


def find_profile(wanted: str) -> Profile:
    """The profile of a name, or in a file.

    Args:
        wanted: a name of `shipped`, or the path of a file.

    Raises:
        UsageError: neither; the message suggests the nearest.
        BrokenFileError: the file is no profile.
    """
    known = shipped()
    if wanted in known:
        return read_profile(known[wanted])
    if os.sep in wanted or wanted.endswith(".json") or os.path.exists(wanted):
        return read_profile(Path(wanted))
    nearest = difflib.get_close_matches(wanted, known, n=1, cutoff=0.5)
    if nearest:
        hint = f"did you mean {nearest[0]!r}?"
    elif known:
        hint = f"those that come with the workbench are {', '.join(known)}; or {_REMEDY}"
    else:
        hint = f"none comes with this version of the workbench; {_REMEDY}"
    raise UsageError(f"--profile {wanted!r}: there is no profile of this name; {hint}")


def read_profile(path: Path) -> Profile:
    """The checked profile in a file.

    Raises:
        BrokenFileError: it cannot be read, or is no profile, or a broken one.
    """
    try:
        # No pipe or device, which might have no end.
        if not path.is_file():
            problem = "not a file" if path.exists() else "no such file"
            raise BrokenFileError(path, problem, _REMEDY)
        with path.open("rb") as file:
            content = file.read(_LARGEST_FILE + 1)
        if len(content) > _LARGEST_FILE:
            raise BrokenFileError(path, "too large for a profile (over 1 MiB)", _REMEDY)
        info = json.loads(content.decode("utf-8"))
    except OSError as error:
        raise BrokenFileError(path, f"cannot be read ({error.strerror})", _REMEDY) from None
    except (ValueError, RecursionError) as error:
        raise BrokenFileError(
            path, f"not JSON that can be read ({str(error)[:100]})", _REMEDY
        ) from None
    wrong = profile_problem(info)
    if wrong is not None:
        raise BrokenFileError(path, wrong, _REMEDY)
    return Profile(info)


def profile_problem(info: Any) -> str | None:
    """Why `info` is no profile; None where it is one."""
    if not isinstance(info, dict) or "format_version" not in info or "calls" not in info:
        return "not a profile of driver calls: format_version or calls is missing"
    version = info["format_version"]
    if version != FORMAT_VERSION or isinstance(version, bool):
        return f"profile format version {shown(version)}; this workbench reads {FORMAT_VERSION}"
    problem = field_problem("", info, _FIELDS)
    if problem is None:
        problem = next(_contradictions(info), None)
    return None if problem is None else f"field {problem}"


def _contradictions(info: Mapping[str, Any]) -> Iterator[str]:
    """What is of the right kind and cannot be so."""
    if not _NAME.fullmatch(info["name"]):
        yield f"name is {shown(info['name'])}; a name has small letters, digits, '.', '_' and '-'"
    for names in _TEXTS:
        text: Any = info
        for name in names:
            text = text[name]
        if len(text) > _LONGEST_TEXT or printable(text) != text:
            yield f"{'.'.join(names)} is not a line of text of up to {_LONGEST_TEXT} characters"
    try:
        date.fromisoformat(info["date"])
    except ValueError:
        yield f"date is {shown(info['date'])}, not a day such as 2026-11-21"
    if info["device"]["memory_bytes"] <= 0:
        yield f"device.memory_bytes is {info['device']['memory_bytes']}, not above 0"
    for kind in SIZED_CALLS:
        yield from _of_points(f"calls.{kind}", info["calls"][kind])
    for kind in PLAIN_CALLS:
        yield from _of_price(f"calls.{kind}", info["calls"][kind])
    chunk = info["pool"]["chunk_bytes"]
    if chunk % _PAGE or not _PAGE <= chunk <= _LARGEST_CHUNK:
        yield f"pool.chunk_bytes is {chunk}, not a multiple of 2 MiB up to 1 GiB"


def _of_points(name: str, points: list[Mapping[str, Any]]) -> Iterator[str]:
    if not 1 <= len(points) <= _MOST_POINTS:
        yield f"{name} has {len(points)} points, not 1 to {_MOST_POINTS}"
    before = 0
    for number, point in enumerate(points):
        if not before < point["bytes"] <= _MOST_BYTES:
            yield (
                f"{name}[{number}].bytes is {point['bytes']}; sizes rise from point to point, "
                "from 1 byte to 1 EiB"
            )
        before = point["bytes"]
        yield from _of_price(f"{name}[{number}]", point)


def _of_price(name: str, price: Mapping[str, Any]) -> Iterator[str]:
    if not 0 < price["p50_ns"] <= price["p99_ns"] <= _MOST_NS:
        yield f"{name}: p50_ns and p99_ns are above 0 and up to 1e12, and p99_ns is no less"
