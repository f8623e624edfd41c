"""Files that appear whole or not at all."""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path

from workbench.common.errors import UsageError


def _beside(target: Path) -> Path:
    return target.with_name(f".{target.name}.{os.getpid()}.part")


def check_replaceable(target: Path, *, folder: bool = False) -> Path:
    """Where what is written as `target` lies: behind the link, where it is one.

    Args:
        target: a file, or a folder that is to be replaced, or nothing yet.
        folder: whether it may be a folder.

    Raises:
        UsageError: it is something else: renaming onto a device or a pipe would replace it.
    """
    try:
        mode = target.stat().st_mode
    except OSError:
        mode = stat.S_IFREG  # nothing there, or whoever writes says why it cannot be
    if stat.S_ISDIR(mode) and not folder:
        raise UsageError(f"{target} is a folder; name a file in it, such as {target}/NAME")
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
        raise UsageError(f"{target} is a device, pipe or socket; name a file")
    real = Path(os.path.realpath(target)) if target.is_symlink() else target
    if real.is_symlink():
        raise UsageError(f"{target} is a link that leads nowhere; name a file")
    return real


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


@contextlib.contextmanager
def replaced_file(target: Path) -> Iterator[Path]:
    """A path beside `target` to write to; renamed onto `target` when the block ends without error.

    Whatever happens inside, `target` is either what it was before or complete. Where it is a link,
    that is what it points to.

    Raises:
        UsageError: `target` is a folder, device, pipe or socket.
    """
    target = check_replaceable(target)
    part = _beside(target)
    try:
        yield part
        with part.open("rb") as file:
            os.fsync(file.fileno())
        part.replace(check_replaceable(target))  # a while has passed
    finally:
        _remove(part)


@contextlib.contextmanager
def replaced_folder(target: Path) -> Iterator[Path]:
    """Like `replaced_file`, for a folder; an existing `target` folder is removed last."""
    target = check_replaceable(target, folder=True)
    part = _beside(target)
    _remove(part)
    part.mkdir()
    try:
        yield part
        old = _beside(target).with_suffix(".old")
        if target.exists():
            target.rename(old)
        part.rename(target)
        _remove(old)
    finally:
        _remove(part)
