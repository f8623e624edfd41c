"""Starts a worker process, waits for it, and says in words how it ended."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from workbench.common.errors import RunError
from workbench.replay.last_words import read_last_words

# -P, as PYTHONSAFEPATH: a `replay.py` in the user's current folder is none of ours.
WORKER_COMMAND = (sys.executable, "-P", "-m", "workbench.replay.worker")

# A process that says the same for so long is not getting on.
_STUCK_SECONDS = 0.2


@dataclass(frozen=True)
class RunOutcome:
    """How one run ended.

    Args:
        status: ``ok``, ``unavailable``, ``crashed``, ``timed_out`` or ``library_fault``.
        reason: one sentence where it is not ``ok``; an event in it is an index into the replayed
            ones.
        result: what the worker measured; None where it is not ``ok``.
    """

    status: str
    reason: str | None
    result: dict[str, Any] | None


@contextlib.contextmanager
def scratch_folder() -> Iterator[Path]:
    """A folder for events and workers' files that goes away however the work in it ends."""
    try:
        with tempfile.TemporaryDirectory(prefix="workbench-replay-") as scratch:
            yield Path(scratch)
    except OSError as error:
        raise RunError(
            f"cannot write what workers need to {error.filename or tempfile.gettempdir()} "
            f"({error.strerror or error}); make room, or set TMPDIR to a folder with more"
        ) from None


def worker_environment() -> dict[str, str]:
    """Ours, and what workers need.

    One thread for numpy's mathematics, which would start more that nothing needs; room for the
    thread-local memory of an allocator that was made to be loaded before the program.
    """
    tunables = [os.environ.get("GLIBC_TUNABLES"), "glibc.rtld.optional_static_tls=65536"]
    return {
        **os.environ,
        "PYTHONSAFEPATH": "1",
        "OPENBLAS_NUM_THREADS": "1",
        "GLIBC_TUNABLES": ":".join(filter(None, tunables)),
    }


def run_worker(
    task: dict[str, Any],
    folder: Path,
    timeout: float,
    command: Sequence[str] = WORKER_COMMAND,
) -> RunOutcome:
    """Run `task` in a process of its own and wait for it.

    The worker never outlives this call: it is killed when the time is up and when the call is
    interrupted.

    Args:
        task: see `workbench.replay.worker.run`; ``output`` is added. Where it names a ``library``
            of the user's, whatever goes wrong is told of that.
        folder: existing and empty; the worker leaves its files here.
        timeout: seconds.
        command: what to start.
    """
    errors = folder / "stderr.txt"
    library = task.get("library")
    text = json.dumps({**task, "output": str(folder)})
    with errors.open("wb") as stderr:
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=stderr,
            env=worker_environment(),
            # Ctrl-C at the terminal is the runner's to handle.
            start_new_session=True,
        )
        try:
            process.communicate(text.encode(), timeout=timeout)
        except subprocess.TimeoutExpired:
            stuck = _where_it_is_stuck(folder) if library else None
            if stuck is not None:
                reason = f"library {library}: it did not come back within {timeout:g} s {stuck}"
                return RunOutcome("library_fault", reason, None)
            return RunOutcome(
                "timed_out",
                f"a run took longer than {timeout:g} s and was stopped; allow more with --timeout",
                None,
            )
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
    answer = folder / "result.json"
    result = json.loads(answer.read_text(encoding="utf-8")) if answer.exists() else None
    if process.returncode == 0 and result is not None and "unavailable" in result:
        return RunOutcome("unavailable", result["unavailable"], None)
    if process.returncode == 0 and result is not None and "error" not in result:
        return RunOutcome("ok", None, result)
    if library and (result is None or "library_fault" in result):
        reason = _fault(result, process.returncode, folder, errors)
        named = reason.startswith("library ")
        return RunOutcome(
            "library_fault", reason if named else f"library {library}: {reason}", None
        )
    if process.returncode == 0 and result is not None:
        return RunOutcome("crashed", f"the engine stopped: {result['error']}", None)
    return RunOutcome("crashed", how_it_ended(process.returncode, errors), None)


def _where_it_is_stuck(folder: Path) -> str | None:
    """Where in a library the running process is; None where it gets on, or cannot be told."""
    before = read_last_words(folder)
    time.sleep(_STUCK_SECONDS)
    after = read_last_words(folder)
    if before is None or before != after or before.doing == "timed pass":
        return None
    return before.place


def _fault(result: dict[str, Any] | None, code: int, folder: Path, errors: Path) -> str:
    """What a library of the user's did wrong."""
    if result is not None:
        return str(result["library_fault"])
    words = read_last_words(folder)
    if words is None:
        return how_it_ended(code, errors)
    if code >= 0:
        return f"it ended the process {words.place} (exit code {code})"
    return words.crashed(_signal_name(-code)) + _last_line(errors)


def how_it_ended(code: int, errors: Path) -> str:
    """In words, why a worker left no result.

    Args:
        code: its exit code; minus the signal's number where one ended it.
        errors: what it wrote to standard error.
    """
    if code >= 0:
        return f"a run ended with exit code {code} and no result{_last_line(errors)}"
    hint = "; the system may be out of memory" if -code == signal.SIGKILL else ""
    return f"a run was ended by signal {_signal_name(-code)}{hint}{_last_line(errors)}"


def _signal_name(number: int) -> str:
    return signal.Signals(number).name if number in set(signal.Signals) else str(number)


def _last_line(errors: Path) -> str:
    said = errors.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return f" ({said[-1][:300]})" if said else ""
