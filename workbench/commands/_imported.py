"""What a trace says of its import, for `wb import` and `wb info`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any


def note_lines(notes: Iterable[str]) -> list[str]:
    """A line for each thing that was inferred, dropped or assumed."""
    return [f"Note: {note}" for note in notes]


def check_lines(checks: Iterable[Mapping[str, Any]]) -> list[str]:
    """A line for each device whose allocator was replayed and held against the file.

    Args:
        checks: objects with ``device`` and ``verdict``; other keys are not shown.
    """
    return [
        f"Self-check of {check.get('device', 'the device')}: {check.get('verdict', 'none')}"
        for check in checks
    ]
