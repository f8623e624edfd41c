"""Files that a command writes where the user said."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path

from workbench.common.errors import RunError, UsageError
from workbench.common.files import replaced_file

_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)


def check_output(path: Path, *, force: bool) -> None:
    """Find out before any work is done whether `path` may be written.

    Args:
        path: the file that ``-o`` names.
        force: whether an existing file may be replaced.

    Raises:
        UsageError: it is a folder or exists, or its folder is missing or cannot be written to.
    """
    if path.is_dir():
        raise UsageError(f"{path} is a folder; name a file in it with -o")
    if not path.parent.is_dir():
        raise UsageError(f"{path.parent} does not exist; make it, or name another file with -o")
    if not os.access(path.parent, os.W_OK):
        raise UsageError(f"{path.parent} cannot be written to; name another file with -o")
    if path.exists() and not force:
        raise UsageError(f"{path} exists; replace it with --force or name another file with -o")


@contextlib.contextmanager
def output_file(path: Path) -> Iterator[Path]:
    """`replaced_file`, with its errors in one sentence.

    Raises:
        RunError: there is no room for the file.
        UsageError: it cannot be written for another reason.
    """
    try:
        with replaced_file(path) as part:
            yield part
    except OSError as error:
        # Arrow does not always tell the system's number.
        reason = os.strerror(error.errno) if error.errno else str(error).splitlines()[0]
        problem = f"cannot write {path} ({reason})"
        if not error.errno or error.errno in _NO_ROOM:
            raise RunError(
                f"{problem}; nothing half-written was left: make room, or name another file with -o"
            ) from None
        raise UsageError(f"{problem}; name another file with -o") from None
