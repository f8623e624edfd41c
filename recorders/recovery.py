"""From a spool to traces: at the end of a recording, and after one that was cut short."""

from __future__ import annotations

import fcntl
import itertools
import json
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from workbench.common.errors import BrokenFileError, RunError, UsageError, WorkbenchError
from workbench.common.outputs import check_output
from workbench.common.version import __version__
from workbench.common.words import printable

ABOUT = "recording.json"  # in the spool folder: what the recording was to become


class NoTraceError(RunError):
    """A program ran and recorded nothing."""


@dataclass(frozen=True)
class HowItEnded:
    """The end of the recorded program, as its parent saw it.

    Attributes:
        exit_code: what `wb record` exits with: the program's own, or 128 + the signal's number.
        signal: the signal that ended it, if one did.
        clock: processor ticks and monotonic nanoseconds just after the end.
    """

    exit_code: int
    signal: int | None
    clock: tuple[int, int] | None


@dataclass(frozen=True)
class RecordedProcess:
    """One trace that came out of a recording."""

    path: Path
    process_id: int
    rows: int
    lost: int


def process_folders(spool: Path) -> list[Path]:
    """The folders of the recorded processes, in the order in which they started."""
    found = [path for path in spool.glob("process-*-*") if _has_begun(path / "control")]
    return sorted(found, key=lambda path: int(path.name.rpartition("-")[2]))


def _has_begun(control: Path) -> bool:
    """Whether the process lived to write the whole control page, without which it did nothing."""
    try:
        with control.open("rb") as file:
            return file.read(8) == b"WBSPOOL1"
    except OSError:
        return False


def convert_spool(
    spool: Path,
    output: Path,
    *,
    main_process: int | None,
    ended: HowItEnded | None,
    progress: Callable[[int, int], None] | None = None,
) -> list[RecordedProcess]:
    """Turn every process in `spool` into a trace: `output` and files beside it.

    Args:
        spool: the spool folder.
        output: the trace of the main process.
        main_process: its process id; None: the process that started first.
        ended: how it ended, where known.
        progress: called with records done and in all, for each process.

    Raises:
        NoTraceError: no process recorded anything.
        RunError: a trace could not be written; the message names the command that tries again.
    """
    from workbench.recorders.spool import convert_process

    if not spool.is_dir():
        raise NoTraceError(
            f"no trace was made: the spool folder {spool} disappeared while the program ran; "
            "let the program leave it, or put it elsewhere with --spool DIR"
        )
    folders = process_folders(spool)
    if not folders:
        raise NoTraceError(
            f"no trace was made: nothing in the program imported torch, or its recorder "
            f"could not start; {output} was not written"
        )
    started = [int(folder.name.split("-")[1]) for folder in folders]
    # A shell, say, does not import torch itself: then `output` is the first process that did.
    leader = main_process if main_process in started else started[0]
    done = []
    broken: list[BrokenFileError] = []
    taken: set[Path] = set()
    for folder, process_id in zip(folders, started, strict=True):
        is_main = process_id == main_process
        path = output
        try:
            metadata = _metadata(folder, ended if is_main else None)
            if process_id != leader or output in taken:
                path = _path_beside(output, process_id, metadata, taken)
            taken.add(path)
            converted = convert_process(
                folder,
                path,
                metadata=metadata,
                end_clock=ended.clock if ended else None,
                progress=progress,
            )
        except (OSError, RunError) as error:
            raise RunError(
                f"{path} could not be written, but the recording is safe: try again with "
                f"`wb recover {spool}` ({error})"
            ) from error
        except BrokenFileError as error:
            broken.append(error)  # the other processes' recordings are no worse for it
            continue
        done.append(RecordedProcess(path, process_id, converted.rows, converted.lost))
    if broken:
        _report(done)
        raise broken[0]
    return done


def _path_beside(
    output: Path, process_id: int, metadata: Mapping[str, Any], taken: set[Path]
) -> Path:
    """Where the trace of a process other than the leader goes: its rank or its id is in the name.

    One process id can stand for several programs: one replaced by the next, or one long after the
    other, in this recording or an earlier one, whose trace stays what it is.
    """
    rank = metadata.get("rank")
    who = f"pid-{process_id}" if rank is None else f"rank-{rank}"
    for number in itertools.count(1):
        suffix = "" if number == 1 else f"-{number}"
        path = output.with_name(f"{output.stem}.{who}{suffix}.parquet")
        if path not in taken and (not path.exists() or _is_trace_of(path, metadata)):
            return path
    raise AssertionError  # counting has no end


def _is_trace_of(path: Path, metadata: Mapping[str, Any]) -> bool:
    """Whether an earlier attempt wrote `path` from the same recorded process."""
    from workbench.recorders.trace import open_trace

    try:
        found = open_trace(path).metadata
    except WorkbenchError:
        return False
    return all(found[key] == metadata.get(key) for key in ("boot_id", "start_wall_clock"))


def _metadata(folder: Path, ended: HowItEnded | None) -> dict[str, Any]:
    from workbench.recorders._native import parse_control

    try:
        about: dict[str, Any] = json.loads((folder / "process.json").read_text(encoding="utf-8"))
        about["versions"]["workbench"] = __version__
        about["devices"] = {
            "cpu": {"name": about["host"]["cpu"], "capacity": None, "held_by_others": None}
        }
        ended_cleanly = bool(parse_control((folder / "control").read_bytes())["ended"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise BrokenFileError(
            folder,
            f"the recording of this process is damaged ({type(error).__name__}: {error})",
            "the recordings of other processes are not affected; remove this folder",
        ) from error
    if ended is not None:
        about["ended"] = "exit" if ended.signal is None else "killed"
        about["exit_code"] = None if ended.signal else ended.exit_code
        about["signal"] = ended.signal
    elif is_running(about):
        about["ended"] = "running"
    elif ended_cleanly:
        about["ended"] = "exit"
    return about


def is_running(about: Mapping[str, Any]) -> bool:
    """Whether the process described by `about` (a process.json) still runs on this machine."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8").strip()
        stat = Path(f"/proc/{about['process_id']}/stat").read_text(encoding="utf-8")
    except OSError:
        return False
    fields = stat.rpartition(")")[2].split()
    return boot == about["boot_id"] and fields[19:20] == about["process_start"] and fields[0] != "Z"


def convert_and_report(
    spool: Path, output: Path, main_process: int | None, ended: HowItEnded | None
) -> list[RecordedProcess]:
    """`convert_spool` with a progress bar, and what came out of it, on stderr."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True, highlight=False, soft_wrap=True, emoji=False)
    bar = Progress(
        TextColumn("wb: writing the trace"),
        BarColumn(),
        TextColumn("{task.completed:,} of {task.total:,} events"),
        TimeRemainingColumn(),
        console=console,
        disable=not console.is_terminal,
        transient=True,
    )
    try:
        with bar:
            task = bar.add_task("", total=1)
            traces = convert_spool(
                spool,
                output,
                main_process=main_process,
                ended=ended,
                progress=lambda done, total: bar.update(task, completed=done, total=total),
            )
    except KeyboardInterrupt as error:
        raise RunError(
            f"interrupted before {output} was written, but the recording is safe: "
            f"go on with `wb recover {spool}`"
        ) from error
    _report(traces)
    print(f"wb: next: wb info {traces[0].path}", file=sys.stderr)
    return traces


def _report(traces: Sequence[RecordedProcess]) -> None:
    for trace in traces:
        what = f"{trace.rows:,} events"
        if trace.lost:
            what += f", INCOMPLETE: {trace.lost:,} later ones lost"
        print(f"wb: recorded {printable(str(trace.path))} ({what})", file=sys.stderr)


def recover(spool: Path, output: Path | None, *, force: bool) -> list[RecordedProcess]:
    """Turn the spool that a cut-short recording left into traces, and remove it.

    Args:
        spool: the spool folder.
        output: the trace of the main process; by default what the recording was to write.
        force: replace an existing trace.

    Raises:
        UsageError: not a spool, still in use, or the trace exists.
        RunError: the trace could not be written.
    """
    try:
        about = json.loads((spool / ABOUT).read_text(encoding="utf-8"))
        output = output or Path(about["output"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise UsageError(
            f"{spool} is not a spool folder of `wb record` (it has no readable {ABOUT}); "
            "name a folder that ends in .parquet.spool"
        ) from error
    with (spool / "lock").open("ab") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise UsageError(
                f"{spool} is being recorded into right now; wait for its end"
            ) from error
        if not process_folders(spool):
            raise UsageError(
                f"{spool} holds no recording: no process came so far as to write; remove the folder"
            )
        for folder in process_folders(spool):
            try:
                described = _metadata(folder, None)
            except BrokenFileError:
                continue  # reported once the others are safe
            if described.get("ended") == "running":
                raise UsageError(
                    f"process {described['process_id']} still records into {spool}; "
                    "wait for its end, or end it"
                )
        check_output(output, force=force, is_trace=True)
        if spool.resolve() in output.resolve().parents:
            raise UsageError(f"{output} lies in the spool, which is removed; use another -o")
        traces = convert_and_report(spool, output, None, None)
        shutil.rmtree(spool, ignore_errors=True)
    return traces
