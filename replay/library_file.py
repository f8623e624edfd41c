"""The file of a user's shared library: where it is, whether it can be loaded, whether it stays."""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from hashlib import blake2b, file_digest
from pathlib import Path

from workbench.common.torch_build import is_whole

_ELF_64 = b"\x7fELF\x02"
_ELF_HEADER_BYTES = 64


def whole_path(name: str) -> str:
    """What `name` means wherever a process is: a library may change the current folder.

    A name without a slash that is not here is left to the loader to look for.
    """
    if os.sep not in name and not os.path.lexists(name):
        return name
    return os.path.abspath(name)


@dataclass(frozen=True)
class LibraryFile:
    """A library as it was when its replay began.

    Args:
        path: from `whole_path`.
        digest: of its content, blake2b; None where the loader looks for it, or it cannot be read.
        problem: why it must not be loaded; None where the loader can be asked.
    """

    path: str
    digest: str | None
    problem: str | None

    @classmethod
    def look_at(cls, path: str) -> LibraryFile:
        """The file as it is now. Loading a FIFO would never end, and one cut short would crash."""
        try:
            kind = os.stat(path).st_mode
            if stat.S_ISDIR(kind):
                return cls(path, None, None)  # the loader says so
            if not stat.S_ISREG(kind):
                return cls(path, None, "it is no regular file; name a shared library")
            with open(path, "rb") as file:
                digest = file_digest(file, lambda: blake2b(digest_size=16)).hexdigest()
                file.seek(0)
                begins = file.read(_ELF_HEADER_BYTES)
        except OSError:
            return cls(path, None, None)
        is_library = begins.startswith(_ELF_64) and len(begins) == _ELF_HEADER_BYTES
        if is_library and not is_whole(Path(path)):
            return cls(path, digest, "its file is cut short or damaged; build or copy it again")
        return cls(path, digest, None)

    def fault(self) -> str | None:
        """Why a replay must not go on with it, one sentence; None where it may."""
        if self.problem is not None:
            return f"library {self.path} cannot be loaded: {self.problem}"
        if LibraryFile.look_at(self.path) != self:
            return (
                f"library {self.path} was replaced during the replay, so its runs are of different "
                "libraries; replay again"
            )
        return None

    def document(self) -> dict[str, str | None]:
        """For ``cell.json``."""
        return {"path": self.path, "blake2b": self.digest}
