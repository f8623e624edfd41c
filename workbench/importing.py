"""Files of other tools, written as traces: what ``wb import`` does."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workbench.common.errors import BrokenFileError, RunError, TraceError

if TYPE_CHECKING:
    from workbench.recorders.importers import Imported
    from workbench.recorders.trace.history import History
    from workbench.recorders.trace.summary import FileSummary
    from workbench.replay.why import Why

Progress = Callable[[str, int, int], None]
"""Called with what is being done, how far it is and how far it goes."""


@dataclass(frozen=True)
class ImportReport:
    """What became of a file.

    Attributes:
        output: the trace.
        kind: name of the importer.
        file: the file that was read.
        stacks: the stack table, where the file has stacks.
        summary: what the trace holds.
        histories: what the recorded allocator did, where the file tells it.
    """

    output: Path
    kind: str
    file: Path
    stacks: Path | None
    summary: FileSummary
    histories: list[History]

    @property
    def notes(self) -> list[str]:
        """Sentences about what was inferred, dropped or assumed."""
        return list(self.summary.metadata["imported"]["notes"])

    @property
    def checks(self) -> list[dict[str, Any]]:
        """A verdict for each device whose allocator was replayed and held against the file."""
        return list(self.summary.metadata["imported"]["checks"])

    def to_json(self) -> dict[str, Any]:
        """Plain dictionaries and lists."""
        return {
            "output": str(self.output),
            "kind": self.kind,
            "file": str(self.file),
            "stacks": None if self.stacks is None else str(self.stacks),
            "events": self.summary.events,
            "complete": self.summary.metadata["complete"],
            "devices": [asdict(device) for device in self.summary.devices],
            "notes": self.notes,
            "checks": self.checks,
        }


def import_file(
    source: str | Path,
    output: str | Path,
    *,
    kind: str | None = None,
    force: bool = False,
    progress: Progress | None = None,
) -> ImportReport:
    """Write a file of another tool as a trace.

    The trace is checked against the rules of its format before it appears.

    Args:
        source: the file; one packed with gzip is unpacked while it is read.
        output: the trace to write, ``NAME.parquet``; stacks go to ``NAME.stacks.parquet``.
        kind: name of the importer; None: the one that recognises the content.
        force: replace an existing trace.
        progress: called now and then.

    Raises:
        UsageError: `output` exists or cannot be created; `kind` is not known.
        BrokenFileError: `source` cannot be read, is of no known kind, or is broken.
        RunError: the disk is full, or memory was not enough; nothing half-written is left.
    """
    from workbench.common.outputs import check_output
    from workbench.common.words import printable
    from workbench.recorders.importers import Source, importer_for

    source, output = Path(source), Path(output)
    opened = Source(source)
    check_output(output, force=force, inputs=[source], is_trace=True)
    importer = importer_for(opened, kind)
    call = progress or (lambda what, done, total: None)
    try:
        imported = importer.read(opened, lambda done, total: call("Reading", done, total))
        call("Checking the allocator", 0, 1)
        about = {
            "kind": importer.NAME,
            "file": printable(source.name),
            "notes": imported.notes,
            "checks": _checks(imported),
        }
        stacks, summary = _write(imported, about, source, output, call)
    except MemoryError as error:
        raise RunError(
            f"{source}: needs more memory to import than there is; import it on a larger machine, "
            "or record a shorter span of the program"
        ) from error
    return ImportReport(output, importer.NAME, source, stacks, summary, imported.histories)


def explain(
    file: str,
    *,
    device: str | None = None,
    capacity: int | None = None,
    device_memory: int | None = None,
    progress: Progress | None = None,
) -> Why:
    """What ate the memory, and what would help: what ``wb why`` does.

    Args:
        file: a trace, a URL of one, or what `import_file` reads.
        device: whose memory; None for where it ran out, else the busiest device.
        capacity: bytes that PyTorch could have; None for what the file says.
        device_memory: bytes of the whole device; None for what the file says.
        progress: called now and then.

    Raises:
        UsageError: a wrong device, or nothing is allocated.
        BrokenFileError: the file cannot be read, is of no known kind, or is broken.
    """
    from workbench.replay.processes import scratch_folder
    from workbench.replay.why import why_trace

    call = progress or (lambda what, done, total: None)
    path, shown, histories = Path(file), file, []
    with scratch_folder() as scratch:
        if path.is_file() and not _is_parquet(path):
            file = str(scratch / "imported.parquet")
            histories = import_file(path, file, progress=progress).histories
        return why_trace(
            file,
            histories,
            shown=shown,
            device=device,
            capacity=capacity,
            device_memory=device_memory,
            progress=call,
        )


def _is_parquet(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return file.read(4) == b"PAR1"
    except OSError:
        return False  # whoever opens it next says why


def _checks(imported: Imported) -> list[dict[str, Any]]:
    """The one place where what a recorded allocator did is held against a replay.

    The rule set that fits becomes a setting of the trace, for what replays it later.
    """
    from workbench.replay.self_check import check_history

    verdicts = [check_history(history) for history in imported.histories]
    told = imported.metadata.get("allocator") or {}
    for verdict in verdicts:
        if verdict.kind == "exact" and "rules:" in verdict.settings:
            imported.metadata["allocator"] = {**told, "settings": verdict.settings}
    return [verdict.to_json() for verdict in verdicts]


def _write(
    imported: Imported, about: dict[str, Any], source: Path, output: Path, progress: Progress
) -> tuple[Path | None, FileSummary]:
    from dataclasses import replace

    from workbench.common.files import replaced_file
    from workbench.common.version import __version__
    from workbench.recorders.trace import TraceWriter, open_trace
    from workbench.recorders.trace.stacks import write_stacks
    from workbench.recorders.trace.summary import summarise

    metadata = {**imported.metadata, "imported": about, "stacks": bool(imported.stacks)}
    metadata["versions"] = {"workbench": __version__, **metadata.get("versions", {})}
    with replaced_file(output) as part:
        try:
            with TraceWriter(part, metadata) as writer:
                writer.write(imported.columns)
            (written,) = open_trace(part).files
            summary = summarise(
                written, lambda done, total: progress("Checking the trace", done, total)
            )
        except RunError as error:
            raise RunError(str(error).replace(str(part), str(output))) from error
        except TraceError as error:
            raise BrokenFileError(
                source,
                f"contradicts itself: the trace made of it breaks a rule ({error.problem})",
                "record it again",
            ) from error
        # Before the trace appears: one that names stacks must never be without them.
        stacks = write_stacks(output, imported.stacks) if imported.stacks else None
    if stacks is None:
        with contextlib.suppress(OSError):
            write_stacks(output, [])
    return stacks, replace(summary, path=str(output))
