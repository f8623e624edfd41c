"""Sizes as people write them."""

from __future__ import annotations

import re
from decimal import Decimal

from workbench.common.errors import UsageError

_SIZE = re.compile(r"(?P<number>\d+(?:\.\d+)?)\s*(?P<unit>B|KiB|MiB|GiB|TiB|kB|MB|GB|TB)?")
_BYTES = {
    None: 1,
    "B": 1,
    "KiB": 2**10,
    "MiB": 2**20,
    "GiB": 2**30,
    "TiB": 2**40,
    "kB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "TB": 10**12,
}
_MOST = 2**62


def parse_size(text: str, name: str) -> int:
    """Bytes named by `text`, such as ``8GiB``, ``512 MiB`` or ``1000``.

    Args:
        text: a positive number with an optional unit; the unit's case matters, because ``8Gb``
            may mean bits.
        name: the option the text was given to, for the message.

    Raises:
        UsageError: not a size, not above zero, or 4 EiB and more.
    """
    match = _SIZE.fullmatch(text.strip())
    size = int(Decimal(match["number"]) * _BYTES[match["unit"]]) if match else 0
    if size >= _MOST:
        raise UsageError(f"{name} {text!r} is too large; it must be below {_MOST // 2**40:,} TiB")
    if size <= 0:
        raise UsageError(
            f"{name} {text!r} is not a size above zero; write for example 80GiB, 512MiB or 1000000"
        )
    return size


def format_bytes(size: float) -> str:
    """`size` bytes in the largest binary unit that leaves at least one, as ``1.50 GiB``."""
    value = float(size)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(value) < 1024:
            return f"{value:.0f} B" if unit == "B" else f"{value:.2f} {unit}"
        value /= 1024
    return f"{value:.2f} TiB"


def format_duration(nanoseconds: float) -> str:
    """A duration in the unit that leaves one to three digits before the point, as ``3.50 ms``."""
    value = float(nanoseconds)
    for unit in ("ns", "µs", "ms"):
        if abs(value) < 1000:
            return f"{value:.0f} ns" if unit == "ns" else f"{value:.2f} {unit}"
        value /= 1000
    return f"{value:.2f} s"
