"""How far a spool has been converted while its program ran."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from workbench.common.errors import BrokenFileError
from workbench.common.files import replaced_file

_FILE = "progress"


@dataclass(frozen=True)
class Progress:
    """What has become of a part of a process's spool.

    Attributes:
        parts: how many files of rows count, ``part-0.parquet`` and on; later ones are of an attempt
            that was cut short.
        is_ring: the rows were dropped instead, and only what is live is known.
        state: where the conversion stands (`SpoolConverter.state`); empty at the beginning.
    """

    parts: int = 0
    is_ring: bool = False
    state: bytes = b""

    @classmethod
    def load(cls, process_folder: Path) -> Progress:
        """As it was saved last; none is the beginning.

        Raises:
            BrokenFileError: the file cannot be read or is not as it was saved.
        """
        path = process_folder / _FILE
        try:
            content = path.read_bytes()
        except FileNotFoundError:
            return cls()
        except OSError as error:
            raise _broken(path, f"cannot be read ({error.strerror})") from error
        heading, _, state = content.partition(b"\n")
        try:
            about = json.loads(heading)
            progress = cls(int(about["parts"]), bool(about["is_ring"]), state)
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            raise _broken(path, "does not begin as it should") from error
        return progress

    def save(self, process_folder: Path) -> None:
        """Replace what was saved before, whole or not at all.

        Raises:
            OSError: it cannot be written.
        """
        heading = json.dumps({"parts": self.parts, "is_ring": self.is_ring}).encode()
        with replaced_file(process_folder / _FILE) as part:
            part.write_bytes(heading + b"\n" + self.state)

    def part(self, process_folder: Path, number: int) -> Path:
        """The file of rows with this number."""
        return process_folder / f"part-{number}.parquet"


def _broken(path: Path, problem: str) -> BrokenFileError:
    return BrokenFileError(
        path, problem, "the rows of the parts beside it can still be read with pandas"
    )
