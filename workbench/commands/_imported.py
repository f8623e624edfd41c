"""What a trace says of its import, for `wb import` and `wb info`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any


def note_lines(notes: Iterable[str]) -> list[str]:
    """A line for each thing that was inferred, dropped or assumed."""
    return [f"Note: {note}" for note in notes]


def check_lines(checks: Iterable[Mapping[str, Any]], most: int = 6) -> list[str]:
    """A line for each device whose allocator was replayed and held against the file.

    Args:
        checks: objects with ``device``, ``verdict`` and ``facts``, what had to be inferred; other
            keys are not shown.
        most: facts that are listed.
    """
    lines = []
    for check in checks:
        name, verdict = check.get("device", "the device"), check.get("verdict", "none")
        lines.append(f"Self-check of {name}: {verdict}")
        facts = [str(fact) for fact in check.get("facts", [])]
        lines += [f"  inferred: {fact}" for fact in facts[:most]]
        if facts[most:]:
            lines.append(f"  inferred: {len(facts) - most:,} more; --json lists them")
    return lines
