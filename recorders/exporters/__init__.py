"""Formats that `wb export` writes: one file each, found by being in this folder.

A format is a module with five names::

    NAME: str       # as in --to NAME
    SUMMARY: str    # what the file is, a few words without a full stop
    SUFFIX: str     # with a dot; files of this suffix get this format unasked
    NEEDS: str      # "trace": written from a trace; "replay": from an allocator's history
    def write(source: TraceSource | ReplaySource, path: Path, progress: Progress) -> Written

`write` gets the source that `NEEDS` says and writes a whole file at `path`; errors of the file
system are the caller's. Another package adds a format by an entry point of the group
``workbench.exporters`` that names such a module. A name with an underscore first is no format.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from importlib import import_module
from importlib.metadata import entry_points
from pathlib import Path
from pkgutil import iter_modules
from typing import Any, Protocol, cast

from workbench.common.errors import UsageError, WorkbenchError
from workbench.recorders.trace import TraceFile
from workbench.recorders.trace.history import History
from workbench.recorders.trace.origins import Origins

GROUP = "workbench.exporters"
Progress = Callable[[int, int], object]
"""Called now and then with how much is done and how much there is."""


@dataclass(frozen=True)
class TraceSource:
    """A trace to be written in another format.

    Args:
        file: the trace.
        device: the device whose events are wanted; None for all, or the busiest where a format
            holds one only.
    """

    file: TraceFile
    device: str | None = None


@dataclass(frozen=True)
class ReplaySource:
    """What a caching allocator did in a replay, and its state at the end."""

    history: History
    origins: Origins


@dataclass(frozen=True)
class Written:
    """What a file holds.

    Args:
        summary: in words, to be read after the file's name.
        next: what to do with the file.
        facts: the numbers in it, by name.
    """

    summary: str
    next: str
    facts: dict[str, Any] = field(default_factory=dict)


class Exporter(Protocol):
    """What a format's module offers."""

    __name__: str
    NAME: str
    SUMMARY: str
    SUFFIX: str
    NEEDS: str

    def write(self, source: Any, path: Path, progress: Progress) -> Written:
        """Write `source` to `path`."""


def discover(path: Iterable[str] = __path__, package: str = __name__) -> dict[str, Exporter]:
    """All formats by their names, in order of them.

    Raises:
        WorkbenchError: a format cannot be loaded, lacks a part, or two have the same name.
    """
    found = [
        (f"{package}.{module.name}", import_module(f"{package}.{module.name}"))
        for module in iter_modules(path)
        if not module.name.startswith("_")
    ]
    for point in entry_points(group=GROUP):
        try:
            found.append((point.value, point.load()))
        except Exception as error:
            raise WorkbenchError(
                f"the export format {point.name!r} ({point.value}) cannot be loaded ({error}); "
                "mend or remove the package that brings it"
            ) from error
    exporters: dict[str, Exporter] = {}
    for origin, module in found:
        for part in ("NAME", "SUMMARY", "SUFFIX", "NEEDS", "write"):
            if not hasattr(module, part):
                raise WorkbenchError(f"{origin}: an export format needs {part}; add it there")
        exporter = cast(Exporter, module)
        if exporter.NAME in exporters:
            raise WorkbenchError(
                f"{origin} and another export format are both named {exporter.NAME!r}; rename one"
            )
        exporters[exporter.NAME] = exporter
    return dict(sorted(exporters.items()))


def choose_device(bytes_by_device: dict[str, int], path: str, wanted: str | None) -> str | None:
    """The device of a format that holds one: `wanted`, else the one with most bytes allocated.

    Args:
        bytes_by_device: of the whole trace.
        path: of the trace, for the message.
        wanted: what the user asked for, if anything.

    Returns:
        None where the trace has no device at all.

    Raises:
        UsageError: `wanted` is not in the trace.
    """
    if wanted is not None:
        if wanted not in bytes_by_device:
            known = ", ".join(sorted(bytes_by_device)) or "no device"
            raise UsageError(f"--device {wanted!r} is not in {path}; it has {known}")
        return wanted
    return min(bytes_by_device, key=lambda name: (-bytes_by_device[name], name), default=None)
