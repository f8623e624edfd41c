"""A file to import: opened plain or unpacked, and closed again, with errors in one sentence."""

from __future__ import annotations

import contextlib
import gzip
import io
import stat
import zlib
from collections.abc import Callable, Iterator
from functools import cached_property
from pathlib import Path
from typing import IO, Any, Final

from workbench.common.errors import BrokenFileError

Progress = Callable[[int, int], None]
"""Called now and then with the bytes of the file that are done, and all of them."""

HEAD_BYTES: Final = 65_536
_FREE_BYTES: Final = 64 * 2**20
_MOST_EXPANSION: Final = 300
_MOST_WHOLE: Final = 16 * 2**30

_COPY_AGAIN: Final = "copy it again from where it came from"


class Source:
    """A file to import, plain or packed with gzip (recognised by content).

    Raises:
        BrokenFileError: there is no such file, or it cannot be read, or is not a file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            about = path.stat()
        except OSError as error:
            raise BrokenFileError(
                path, f"cannot be read ({error.strerror})", "check the name and the permissions"
            ) from error
        except ValueError as error:
            raise BrokenFileError(path, f"cannot be a file ({error})", "check the name") from error
        if stat.S_ISDIR(about.st_mode):
            raise BrokenFileError(path, "is a folder", "name a file in it")
        if not stat.S_ISREG(about.st_mode):
            raise BrokenFileError(path, "is not a file on a disk", "copy its content into one")
        self.size = about.st_size

    @cached_property
    def is_gzip(self) -> bool:
        """Whether the file is packed with gzip."""
        with self._raw() as file:
            return file.read(2) == b"\x1f\x8b"

    @cached_property
    def head(self) -> bytes:
        """The first 64 kB, unpacked."""
        with self.open() as file:
            return file.read(HEAD_BYTES)

    @contextlib.contextmanager
    def open(self, progress: Progress | None = None) -> Iterator[IO[bytes]]:
        """The file's content, unpacked, as a stream.

        Raises:
            BrokenFileError: while reading, too: a packed file is cut short or damaged, or unpacks
                to hundreds of times its size.
        """
        with self._raw() as file:
            yield io.BufferedReader(_Reader(self, file, progress), 2**20)

    def read_whole(self, progress: Progress | None = None) -> bytes:
        """The whole content, unpacked.

        Raises:
            BrokenFileError: as `open`; or there is more than 16 GiB of it.
        """
        with self.open(progress) as file:
            parts = []
            done = 0
            while part := file.read(2**24):
                done += len(part)
                if done > _MOST_WHOLE:
                    raise BrokenFileError(
                        self.path,
                        "holds more than 16 GiB",
                        "record a shorter span of the program",
                    )
                parts.append(part)
        return b"".join(parts)

    def broken(self, problem: str, remedy: str = _COPY_AGAIN) -> BrokenFileError:
        """The error to raise over this file."""
        return BrokenFileError(self.path, problem, remedy)

    def _raw(self) -> IO[bytes]:
        try:
            return self.path.open("rb")
        except OSError as error:
            raise self.broken(
                f"cannot be read ({error.strerror})", "check the name and the permissions"
            ) from error


class _Reader(io.RawIOBase):
    """Unpacks where that is needed, reports progress, and refuses what unpacks without end."""

    def __init__(self, source: Source, file: IO[bytes], progress: Progress | None) -> None:
        self._source = source
        self._file = file
        self._stream: Any = gzip.GzipFile(fileobj=file) if source.is_gzip else file
        self._progress = progress
        self._done = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        source = self._source
        try:
            count: int = self._stream.readinto(buffer)
            place = self._file.tell()
        except EOFError as error:
            raise source.broken(
                f"is cut short: its gzip data ends at byte {source.size}"
            ) from error
        except (zlib.error, gzip.BadGzipFile) as error:
            raise source.broken(
                f"is damaged: its gzip data cannot be unpacked ({error})"
            ) from error
        except OSError as error:
            raise source.broken(
                f"cannot be read ({error.strerror or error})", "check the disk it is on"
            ) from error
        self._done += count
        if source.is_gzip and self._done > _FREE_BYTES + _MOST_EXPANSION * place:
            raise source.broken(
                f"unpacks to more than {_MOST_EXPANSION} times its size, as no recording does",
                "if it is what you mean to import, unpack it with gunzip first",
            )
        if self._progress is not None:
            self._progress(place, source.size)
        return count
