"""Files of other tools, read as traces: one importer for each kind, found by being in this folder.

An importer is a module with four names::

    NAME: str                                              # of the kind, as in `--kind rmm`
    SUMMARY: str                                           # one line for the list of kinds
    def recognises(head: bytes, path: Path) -> bool        # head: the first 64 kB, unpacked
    def read(source: Source, progress: Progress | None) -> Imported

Files here that begin with an underscore are what importers share. Importers of other packages are
found by the entry-point group ``workbench.importers``, each entry a module or object like these.
What a file says must not be believed: `read` raises `BrokenFileError` over all that it cannot use.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from importlib import import_module
from importlib.metadata import entry_points
from pathlib import Path
from pkgutil import iter_modules
from typing import Any, Final, Protocol, cast

from workbench.common.errors import BrokenFileError, UsageError, WorkbenchError
from workbench.recorders.importers._source import Progress, Source
from workbench.recorders.trace.history import History

__all__ = ["Imported", "Importer", "Progress", "Source", "discover", "importer_for"]

ENTRY_POINTS: Final = "workbench.importers"
_PARTS: Final = ("NAME", "SUMMARY", "recognises", "read")


@dataclass
class Imported:
    """A file's content as a trace.

    Attributes:
        columns: for `TraceWriter.write`: numpy arrays, text as Arrow dictionary arrays; rows in
            order of time.
        metadata: for `TraceMetadata`.
        stacks: folded stacks; ``stack_id`` is the place in the list. None: no stacks.
        histories: what the recorded allocator did, one for each device, where the file tells it.
        notes: sentences about what was inferred, dropped or assumed.
    """

    columns: dict[str, Any]
    metadata: dict[str, Any]
    stacks: list[str] | None = None
    histories: list[History] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


class Importer(Protocol):
    """What a module in this folder offers."""

    __name__: str
    NAME: str
    SUMMARY: str

    def recognises(self, head: bytes, path: Path) -> bool:
        """Whether a file with this beginning is of this kind."""

    def read(self, source: Source, progress: Progress | None) -> Imported:
        """The file as a trace."""


def discover(path: Iterable[str] = __path__, package: str = __name__) -> dict[str, Importer]:
    """All importers by name.

    Raises:
        WorkbenchError: one lacks a part or cannot be loaded, or two share a name.
    """
    found: list[tuple[str, Any]] = [
        (f"{package}.{module.name}", import_module(f"{package}.{module.name}"))
        for module in sorted(iter_modules(path), key=lambda module: module.name)
        if not module.name.startswith("_")
    ]
    for entry in sorted(entry_points(group=ENTRY_POINTS), key=lambda entry: entry.name):
        try:
            found.append((entry.value, entry.load()))
        except Exception as error:
            raise WorkbenchError(
                f"the importer {entry.value} of another package cannot be loaded "
                f"({type(error).__name__}: {error}); mend or uninstall that package"
            ) from error
    importers: dict[str, Importer] = {}
    owners: dict[str, str] = {}
    for place, importer in found:
        for part in _PARTS:
            if not hasattr(importer, part):
                raise WorkbenchError(f"{place}: an importer needs {part}; add it there")
        if importer.NAME in importers:
            raise WorkbenchError(
                f"the importers {owners[importer.NAME]} and {place} have the same name "
                f"{importer.NAME!r}; change one"
            )
        importers[importer.NAME] = cast(Importer, importer)
        owners[importer.NAME] = place
    return importers


def importer_for(source: Source, kind: str | None = None) -> Importer:
    """The importer of a file: the one named `kind`, or the one that recognises the content.

    Raises:
        UsageError: `kind` is not known.
        BrokenFileError: nothing recognises the file; the message says what it looks like.
    """
    importers = discover()
    known = ", ".join(importers)
    if kind is not None:
        if kind not in importers:
            raise UsageError(f"--kind {kind!r} is not known; the kinds are {known}")
        return importers[kind]
    for importer in importers.values():
        if importer.recognises(source.head, source.path):
            return importer
    if source.head.startswith(b"PAR1"):
        raise BrokenFileError(
            source.path,
            "is a Parquet file, not a recording of another tool's",
            "if it is a trace, it needs no import: try `wb info`",
        )
    raise BrokenFileError(
        source.path,
        f"is {_looks_like(source.head)}, and no kind that can be imported",
        f"the kinds are {known}; if it is one of them all the same, name it with --kind",
    )


_BEGINNINGS: Final = (
    (b"PK\x03\x04", "a zip archive"),
    (b"\x28\xb5\x2f\xfd", "packed with zstd"),
    (b"\xfd7zXZ", "packed with xz"),
    (b"BZh", "packed with bzip2"),
    (b"SQLite format 3", "an SQLite database"),
    (b"\x7fELF", "a program"),
    (b"\x80", "a pickle, or binary data"),
    (b"{", "a JSON object"),
    (b"[", "a JSON list"),
    (b"<", "markup such as HTML"),
)


def _looks_like(head: bytes) -> str:
    if not head:
        return "empty"
    for beginning, words in _BEGINNINGS:
        if head.lstrip().startswith(beginning):
            return words
    if b"\0" in head:
        return "binary data"
    first = head.splitlines()[0][:60].decode("utf-8", "replace")
    return f"text that begins with {first!r}"
