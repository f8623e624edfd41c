"""The `names` file of a spool: what numbers in records stand for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

_KINDS = ("op", "module", "stack", "label")
_FACTS = ("device", "stream", "pool", "allocator", "peaks", "note")

UNKNOWN = "unknown"
"""Stands for a name that did not reach the file before the process died."""


class Names:
    """Texts by kind (``op``, ``module``, ``stack``, ``label``) and number, and facts of devices.

    Args:
        path: the `names` file; a missing one holds no names, and lines that are cut short, as at
            the death of the process, or not as they should be are passed over.
    """

    def __init__(self, path: Path) -> None:
        self._texts: dict[str, dict[int, str]] = {kind: {} for kind in _KINDS}
        self._facts: dict[str, list[dict[str, Any]]] = {kind: [] for kind in _FACTS}
        try:
            lines = path.read_bytes().split(b"\n")
        except FileNotFoundError:
            return
        for line in lines:
            self._add(line)

    def _add(self, line: bytes) -> None:
        try:
            entry = json.loads(line)
            kind, number, text = entry["kind"], entry["id"], entry["text"]
        except (ValueError, TypeError, KeyError, RecursionError):
            return
        if kind in _KINDS and isinstance(number, int) and isinstance(text, str):
            # A lone half of a surrogate pair cannot be stored as UTF-8.
            self._texts[kind][number] = text.encode("utf-8", "replace").decode("utf-8")
        elif kind in _FACTS and isinstance(text, str):
            try:
                fact = json.loads(text)
            except (ValueError, RecursionError):
                return
            if isinstance(fact, dict):
                self._facts[kind].append(fact)

    def scope(self, number: int) -> str:
        """The text of a record's scope, ``module << 16 | operator``, as ``module/operator``."""
        parts = [("module", number >> 16), ("op", number & 0xFFFF)]
        return "/".join(self._texts[kind].get(part, UNKNOWN) for kind, part in parts if part)

    def label(self, number: int) -> str:
        """The text of a mark."""
        return self._texts["label"].get(number, UNKNOWN)

    def facts(self, kind: str) -> list[dict[str, Any]]:
        """What was said of devices, streams, pools, the allocator and its peaks, in order."""
        return self._facts[kind]

    @property
    def stacks(self) -> dict[int, str]:
        """Folded stacks by number, in order of number."""
        return dict(sorted(self._texts["stack"].items()))
