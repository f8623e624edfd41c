"""Text for people: names of files and what errors say, safe to print and to copy into a shell."""

from __future__ import annotations

import shlex
from collections.abc import Iterable


def printable(text: str) -> str:
    r"""`text` in one line that tells a terminal nothing else: ``\x1b`` for ESC, ``\n``, ``\xff``.

    Bytes of names that are not UTF-8 are shown so, too.
    """
    return "".join(letter if letter.isprintable() else _shown(letter) for letter in text)


def masked(text: str) -> str:
    """`text` with \N{REPLACEMENT CHARACTER} for what a terminal would obey, letter by letter."""
    return "".join(
        letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in text
    )


def _shown(letter: str) -> str:
    if "\udc80" <= letter <= "\udcff":  # a byte that is not UTF-8, as Python keeps it
        return f"\\x{ord(letter) - 0xDC00:02x}"
    return letter.encode("unicode_escape").decode()


def shell_word(text: str) -> str:
    """`text` as one word to copy into a shell; ``$'…'`` where letters cannot be printed."""
    if text.isprintable():
        return shlex.quote(text)
    return "$'" + "".join(map(_in_shell, text)) + "'"


def _in_shell(letter: str) -> str:
    if letter in "\\'":
        return f"\\{letter}"
    if letter.isprintable():
        return letter
    how = "surrogateescape" if "\udc80" <= letter <= "\udcff" else "replace"
    return "".join(f"\\x{byte:02x}" for byte in letter.encode("utf-8", how))


def shell_line(words: Iterable[str]) -> str:
    """A command to copy into a shell."""
    return " ".join(map(shell_word, words))


def some(count: int, what: str, many: str = "") -> str:
    """``1 row`` or ``3 rows``; `many` where the plural is not made with an s."""
    return f"{count:,} {what}" if count == 1 else f"{count:,} {many or what + 's'}"
