"""What a worker was doing with a library of the user's when it ended, and how to say it."""

from __future__ import annotations

import re
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from workbench.common.units import format_bytes

FILE = "last_words"
# As replay/engine/core/last_words.h writes it: an event, -1 for none, and a word.
_LAYOUT = struct.Struct("=q56s")
_EVENT = re.compile(r"\bevent ([0-9]+)\b")
_LEFT = re.compile(r"\b([0-9]+) bytes left\b")
# Where it was, by the engine's word for it.
_PLACES = {
    "load": "while it was loaded",
    "end": "while what the program left was freed",
    "timed pass": "in a timed pass",
}


@dataclass(frozen=True)
class LastWords:
    """What a process said last.

    Args:
        doing: the engine's word: a function of the library's, or what was done with its memory.
        event: index of the event; None where it belongs to none.
    """

    doing: str
    event: int | None

    @property
    def place(self) -> str:
        """``in allocate at event 12``."""
        where = _PLACES.get(self.doing, f"in {self.doing}")
        return where if self.event is None else f"{where} at event {self.event}"

    def crashed(self, signal: str) -> str:
        """What to say of a process that the signal of this name ended."""
        block = "a block" if self.event is None else f"the block of event {self.event}"
        if self.doing == "write":
            return f"memory that cannot be written: using {block} ended with signal {signal}"
        if self.doing == "read":
            return (
                f"memory freed under the program: looking at {block}, which is live, ended with "
                f"signal {signal}"
            )
        return f"it crashed {self.place} (signal {signal})"


def read_last_words(folder: Path) -> LastWords | None:
    """What the worker of this folder said last; None where it had nothing to do with a library."""
    try:
        event, doing = _LAYOUT.unpack((folder / FILE).read_bytes())
    except (OSError, struct.error):
        return None
    word = doing.split(b"\0")[0].decode("ascii", errors="replace")
    return LastWords(word, None if event < 0 else event) if word else None


def sizes_told(text: str) -> str:
    """`text` with the bytes that are left in it as people write sizes."""
    return _LEFT.sub(lambda found: f"{format_bytes(int(found[1]))} left", text)


def in_rows(text: str, rows: Sequence[int]) -> str:
    """`text` with rows of the trace in place of the events it names.

    Args:
        text: as in ``at event 12``.
        rows: the row of each event.
    """
    return _EVENT.sub(
        lambda found: f"row {rows[int(found[1])]}" if int(found[1]) < len(rows) else found[0], text
    )
