"""Where traces lie: local paths, folders of them, and URLs of remote file systems."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
from pyarrow import fs

from workbench.common.errors import BrokenFileError, MissingPartError

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*(::[^/]*)?://")
_NO_FILE = "check the name, or record a trace with `wb record -o run.parquet SCRIPT`"


@dataclass(frozen=True)
class Location:
    """One file: where it is, and how it is named in messages."""

    filesystem: fs.FileSystem
    path: str
    shown: str


def find_files(source: str | Path) -> list[Location]:
    """The trace files that `source` names: itself, or those in it when it is a folder.

    Args:
        source: a file, a folder of ``*.parquet`` files (``rank=0.parquet`` …; files of stacks and
            hidden files are left out), or a URL of either, such as ``s3://bucket/run.parquet``.

    Raises:
        BrokenFileError: there is nothing there, or no trace in the folder.
        MissingPartError: no installed package can read such a URL.
    """
    shown = str(source)
    try:
        shown.encode()
    except UnicodeEncodeError:
        raise BrokenFileError(shown, "has a name that is not UTF-8", "rename it") from None
    filesystem, path = _open_filesystem(shown)
    try:
        info = filesystem.get_file_info(path)
        if info.type == fs.FileType.NotFound:
            raise BrokenFileError(shown, "there is no such file or folder", _NO_FILE)
        if info.type == fs.FileType.Unknown:
            # Such as a pipe: reading it would wait for a writer, and cannot go back.
            raise BrokenFileError(
                shown, "is neither a file nor a folder", "copy its content into a file"
            )
        if info.type != fs.FileType.Directory:
            return [Location(filesystem, path, shown)]
        names = sorted(
            (
                entry.base_name
                for entry in filesystem.get_file_info(fs.FileSelector(path))
                if entry.type == fs.FileType.File and _is_trace_name(entry.base_name)
            ),
            key=_natural,
        )
    except OSError as error:
        raise BrokenFileError(
            shown, f"cannot be read ({_first_line(error)})", "check the name and the permissions"
        ) from error
    if not names:
        raise BrokenFileError(shown, "is a folder without any .parquet trace in it", _NO_FILE)
    base, shown = path.rstrip("/"), shown.rstrip("/")
    return [Location(filesystem, f"{base}/{name}", f"{shown}/{name}") for name in names]


def _open_filesystem(source: str) -> tuple[fs.FileSystem, str]:
    if not _URL.match(source):
        return fs.LocalFileSystem(), str(Path(source).absolute())
    try:
        import fsspec
    except ImportError:
        try:
            filesystem, path = fs.FileSystem.from_uri(source)
        except (pa.ArrowException, OSError, ValueError) as error:
            raise MissingPartError(
                f"{source}: reading this URL needs the package fsspec; run pip install fsspec, "
                "or copy the trace to a local file"
            ) from error
        return filesystem, path
    try:
        handler, path = fsspec.core.url_to_fs(source)
    except ImportError as error:
        raise MissingPartError(
            f"{source}: reading this URL needs another package ({_first_line(error)}); install it, "
            "or copy the trace to a local file"
        ) from error
    except ValueError as error:
        raise BrokenFileError(
            source,
            f"is a URL that cannot be read ({_first_line(error)})",
            "check it, or copy the trace to a local file",
        ) from error
    return fs.PyFileSystem(fs.FSSpecHandler(handler)), path


def _is_trace_name(name: str) -> bool:
    return (
        name.endswith(".parquet")
        and not name.endswith(".stacks.parquet")
        and not name.startswith(".")
    )


def _natural(name: str) -> list[tuple[int, str]]:
    """Sorts ``rank=9`` before ``rank=10``."""
    return [
        (int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name)
    ]


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]
