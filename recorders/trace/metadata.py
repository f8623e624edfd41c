"""What a trace says about itself: JSON under the Parquet key ``workbench.trace``."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from copy import deepcopy
from typing import Any, Final, cast

from workbench.common.errors import TraceError
from workbench.recorders.trace.schema import FORMAT_VERSION, METADATA_KEY

_DEFAULTS: Final[dict[str, Any]] = {
    "format_version": FORMAT_VERSION,
    "complete": True,
    "lost_events": 0,
    "lost_reason": None,
    "recorded": [],
    "not_recorded": [],
    "events": 0,
    "zero_byte_allocs": 0,
    "unmatched_frees": 0,
    "reused_addresses": 0,
    "forked_children": 0,
    "dropped_events": 0,
    "program": [],
    "process_id": None,
    "parent_process_id": None,
    "rank": None,
    "world_size": None,
    "restart_count": None,
    "start_wall_clock": None,
    "boot_id": None,
    "versions": {},
    "host": {},
    "streams": {},
    "pools": {},
    "devices": {},
    "allocator": {"backend": None, "settings": None},
    "scopes": [],
    "stacks": False,
    "threads": {},
    "ended": None,
    "exit_code": None,
    "signal": None,
    "reported_peaks": {},
    "rounded_sizes": [],
    "imported": None,
}

_TYPE_WORDS: Final = {
    bool: "true or false",
    int: "a whole number",
    str: "a string",
    list: "a list",
    dict: "an object",
}

_TYPES: Final[dict[str, type]] = {
    "complete": bool,
    "lost_events": int,
    "lost_reason": str,
    "recorded": list,
    "not_recorded": list,
    "events": int,
    "zero_byte_allocs": int,
    "unmatched_frees": int,
    "reused_addresses": int,
    "forked_children": int,
    "dropped_events": int,
    "program": list,
    "process_id": int,
    "parent_process_id": int,
    "rank": int,
    "world_size": int,
    "restart_count": int,
    "start_wall_clock": str,
    "boot_id": str,
    "versions": dict,
    "host": dict,
    "streams": dict,
    "pools": dict,
    "devices": dict,
    "allocator": dict,
    "scopes": list,
    "stacks": bool,
    "threads": dict,
    "ended": str,
    "exit_code": int,
    "signal": int,
    "reported_peaks": dict,
    "rounded_sizes": list,
    "imported": dict,
}
_NEVER_NULL: Final = {key for key, value in _DEFAULTS.items() if value is not None}


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_size(value: object) -> bool:
    return value is None or (_is_whole(value) and 0 <= cast(int, value) < 2**63)


def _is_text(value: object) -> bool:
    return value is None or isinstance(value, str)


# What the values inside a key's list or object are: by the path to them, where * stands for any
# name or place. A key that is not there is not checked.
_Kind = tuple[Callable[[object], bool], str]
_TEXT: Final[_Kind] = (_is_text, "text or null")
_SIZE: Final[_Kind] = (_is_size, "null or a whole number from 0 to 2^63 - 1")
_INSIDE: Final[dict[tuple[str, ...], _Kind]] = {
    ("program", "*"): (lambda v: isinstance(v, str) or _is_whole(v), "text"),
    ("versions", "*"): _TEXT,
    ("host", "cpu"): _TEXT,
    ("host", "cores"): _SIZE,
    ("devices", "*"): (lambda v: isinstance(v, dict), "an object"),
    ("devices", "*", "name"): _TEXT,
    ("devices", "*", "capacity"): _SIZE,
    ("devices", "*", "held_by_others"): _SIZE,
    ("devices", "*", "left_to_pytorch"): _SIZE,
    ("reported_peaks", "*"): (lambda v: isinstance(v, dict), "an object"),
    ("reported_peaks", "*", "*"): _SIZE,
    ("threads", "*"): (_is_whole, "a whole number"),
    ("rounded_sizes", "*"): (lambda v: isinstance(v, str), "text"),
    ("imported", "kind"): _TEXT,
    ("imported", "file"): _TEXT,
    ("imported", "notes"): (lambda v: isinstance(v, list), "a list"),
    ("imported", "notes", "*"): (lambda v: isinstance(v, str), "text"),
    ("imported", "checks"): (lambda v: isinstance(v, list), "a list"),
    ("imported", "checks", "*"): (lambda v: isinstance(v, dict), "an object"),
}

_REMEDY: Final = "record it again, or write it with workbench.recorders.trace.TraceWriter"


class TraceMetadata(dict[str, Any]):
    """A trace's metadata: a dictionary with every key of the format, and unknown keys kept.

    Args:
        values: what is known; other keys get the value that means *unknown* or *none*.
    """

    def __init__(self, values: Mapping[str, Any] | None = None) -> None:
        super().__init__(deepcopy(_DEFAULTS))
        self.update(values or {})

    def to_json(self) -> bytes:
        """UTF-8 JSON, one line."""
        return json.dumps(self, ensure_ascii=False, separators=(",", ":")).encode(
            "utf-8", "replace"
        )

    @classmethod
    def from_parquet(cls, path: str, pairs: Mapping[bytes, bytes] | None) -> TraceMetadata:
        """The metadata among a Parquet file's key-value pairs.

        Args:
            path: the file, for messages.
            pairs: the file's key-value pairs.

        Raises:
            TraceError: there is none, it is not JSON, of another version, or ill-typed.
        """
        text = (pairs or {}).get(METADATA_KEY)
        if text is None:
            raise TraceError(
                path,
                "not-a-trace",
                "is a Parquet file but not a workbench trace: its metadata has no key "
                "'workbench.trace'",
                "name a file that `wb record` wrote",
            )
        try:
            values = json.loads(text.decode("utf-8"))
        except (ValueError, RecursionError) as error:
            raise TraceError(
                path,
                "metadata-not-json",
                f"metadata key 'workbench.trace' is not JSON ({str(error)[:100]})",
                _REMEDY,
            ) from error
        if not isinstance(values, dict):
            raise TraceError(
                path,
                "metadata-not-an-object",
                f"metadata key 'workbench.trace' holds {_shown(values)}, not a JSON object",
                _REMEDY,
            )
        _check_version(path, values.get("format_version"))
        for key, kind in _TYPES.items():
            _check_type(path, key, values.get(key, _DEFAULTS[key]), kind)
        for names, (is_right, words) in _INSIDE.items():
            for shown, value in _inside(values, names):
                if not is_right(value):
                    raise _wrong_type(path, shown, value, words)
        return cls(values)


def _check_version(path: str, version: object) -> None:
    if isinstance(version, bool) or not isinstance(version, int) or version < 1:
        raise TraceError(
            path,
            "metadata-wrong-type",
            f"metadata key 'format_version' is {_shown(version)}, not a version number",
            _REMEDY,
        )
    if version > FORMAT_VERSION:
        raise TraceError(
            path,
            "version-not-supported",
            f"has trace format version {_shown(version)}, this workbench reads up to "
            f"{FORMAT_VERSION}",
            "update the workbench: pip install --upgrade allocator-workbench",
        )


def _check_type(path: str, key: str, value: object, kind: type) -> None:
    if value is None and key not in _NEVER_NULL:
        return
    if isinstance(value, kind) and (kind is bool or not isinstance(value, bool)):
        return
    raise _wrong_type(path, key, value, _TYPE_WORDS[kind])


def _wrong_type(path: str, key: str, value: object, words: str) -> TraceError:
    return TraceError(
        path,
        "metadata-wrong-type",
        f"metadata key {key[:80]!r} is {_shown(value)}, not {words}",
        _REMEDY,
    )


def _inside(value: Any, names: tuple[str, ...], at: str = "") -> Iterator[tuple[str, Any]]:
    """The values at the path `names` inside `value`, each with its own path as one text."""
    if not names:
        yield at.removeprefix("."), value
        return
    found = value.items() if isinstance(value, dict) else enumerate(value or ())
    for name, part in found:
        if names[0] in ("*", name):
            yield from _inside(part, names[1:], f"{at}.{name}")


def _shown(value: object) -> str:
    try:
        text = json.dumps(value)
    except ValueError:  # a number with too many digits to print
        return "a huge number"
    return text if len(text) <= 40 else f"{text[:40]}…"
