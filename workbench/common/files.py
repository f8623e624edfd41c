"""Files that appear whole or not at all."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path


def _beside(target: Path) -> Path:
    return target.with_name(f".{target.name}.{os.getpid()}.part")


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


@contextlib.contextmanager
def replaced_file(target: Path) -> Iterator[Path]:
    """A path beside `target` to write to; renamed onto `target` when the block ends without error.

    Whatever happens inside, `target` is either what it was before or complete.
    """
    part = _beside(target)
    try:
        yield part
        with part.open("rb") as file:
            os.fsync(file.fileno())
        part.replace(target)
    finally:
        _remove(part)


@contextlib.contextmanager
def replaced_folder(target: Path) -> Iterator[Path]:
    """Like `replaced_file`, for a folder; an existing `target` folder is removed last."""
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
