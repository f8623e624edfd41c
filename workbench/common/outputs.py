"""Files that a command writes where the user said."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from workbench.common.errors import RunError, UsageError
from workbench.common.files import check_replaceable, replaced_file

_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)


def check_output(
    path: Path,
    *,
    force: bool,
    inputs: Iterable[str | Path] = (),
    option: str = "-o",
    is_trace: bool = False,
) -> None:
    """Find out before any work is done whether `path` may be written.

    Args:
        path: the file that the option names.
        force: whether an existing file may be replaced.
        inputs: what is read, which is never replaced: files, folders of results or traces (the
            files in them), and what is no path here, such as a URL. The stacks beside a trace
            belong to it.
        option: which names `path`.
        is_trace: whether ``NAME.stacks.parquet`` is written or removed, too.

    Raises:
        UsageError: it is one of the inputs, or a folder, device, pipe or socket, or it exists, or
            its folder is missing or cannot be written to, or its name is not UTF-8.
    """
    if os.path.isdir(path):  # False where a name is too long, too
        raise UsageError(f"{path} is a folder; name a file in it with {option}")
    try:
        str(path).encode()
    except UnicodeEncodeError:
        raise UsageError(
            f"{path}: the name is not UTF-8; name another file with {option}"
        ) from None
    real = check_replaceable(path)
    folder = real.absolute().parent
    if not os.path.isdir(folder):
        raise UsageError(f"{folder} does not exist; make it, or name another file with {option}")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise UsageError(f"{folder} cannot be written to; name another file with {option}")
    written = [path, stacks_beside(path)] if is_trace else [path]
    for file in written:
        check_replaceable(file)
        for source in _files(inputs) if os.path.exists(file) else ():
            if _same(file, source):
                raise UsageError(
                    f"{file} is read by this command and would be replaced; "
                    f"name another file with {option}"
                )
    if os.path.exists(path) and not force:
        raise UsageError(
            f"{path} exists; replace it with --force or name another file with {option}"
        )


def stacks_beside(trace: Path) -> Path:
    """The file of the stacks of a trace: ``NAME.stacks.parquet``, where the file itself lies."""
    real = Path(os.path.realpath(trace)) if trace.is_symlink() else trace
    return real.with_name(f"{real.stem}.stacks.parquet")


def _files(inputs: Iterable[str | Path]) -> Iterator[Path]:
    """The files that may be read where `inputs` are named; a result's lie two folders deep."""
    for source in map(Path, inputs):
        yield source
        if source.suffix == ".parquet":
            yield stacks_beside(source)
        with contextlib.suppress(OSError, ValueError):
            if source.is_dir():
                for pattern in ("*.parquet", "*/*.parquet", "cell.json", "*/cell.json"):
                    yield from source.glob(pattern)


def _same(one: Path, other: Path) -> bool:
    try:
        return one.samefile(other)
    except (OSError, ValueError):  # not there, or no path
        return False


@contextlib.contextmanager
def output_file(path: Path, option: str = "-o") -> Iterator[Path]:
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
                f"{problem}; nothing half-written was left: make room, or name another file "
                f"with {option}"
            ) from None
        raise UsageError(f"{problem}; name another file with {option}") from None
