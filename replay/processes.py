"""Starts a worker process, waits for it, and says in words how it ended."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
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
# So many bytes of the end of what a worker writes to standard error are kept, and waited for.
_KEPT_ERRORS = 1 << 16
_LAST_ERRORS_SECONDS = 1.0


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

    The worker never outlives this call, nor do processes that a library started from it: they are
    killed at its end, when the time is up and when the call is interrupted.

    Args:
        task: see `workbench.replay.worker.run`; ``output`` is added. Where it names a ``library``
            of the user's, whatever goes wrong is told of that.
        folder: existing and empty; the worker leaves its files here.
        timeout: seconds.
        command: what to start.
    """
    library = task.get("library")
    text = json.dumps({**task, "output": str(folder)})
    process = subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env=worker_environment(),
        # A process group of its own too. Ctrl-C at the terminal is the runner's to handle.
        start_new_session=True,
    )
    said = _End(process)
    try:
        assert process.stdin is not None
        # It reads all of it at once, or has ended.
        with contextlib.suppress(BrokenPipeError), process.stdin:
            process.stdin.write(text.encode())
        process.wait(timeout)
    except subprocess.TimeoutExpired:
        return _out_of_time(library, timeout, folder)
    finally:
        _end_group(process)
        process.wait()
        said.close()
    answer = folder / "result.json"
    if answer.exists():
        result = json.loads(answer.read_text(encoding="utf-8"))
        if "unavailable" in result:
            return RunOutcome("unavailable", result["unavailable"], None)
        if "library_fault" in result:
            return _fault_of(library, result["library_fault"])
        if "error" in result:
            return RunOutcome("crashed", f"the engine stopped: {result['error']}", None)
        return RunOutcome("ok", None, result)
    words = read_last_words(folder) if library else None
    if words is None:
        return RunOutcome("crashed", how_it_ended(process.returncode, said.text), None)
    if process.returncode >= 0:
        return _fault_of(
            library, f"it ended the process {words.place} (exit code {process.returncode})"
        )
    return _fault_of(
        library, words.crashed(_signal_name(-process.returncode)) + _last_line(said.text)
    )


class _End:
    """The end of what a process writes to standard error; a library may write for ever."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stderr is not None
        self._file = process.stderr
        self._bytes = b""
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        while piece := os.read(self._file.fileno(), 1 << 16):
            self._bytes = (self._bytes + piece)[-_KEPT_ERRORS:]

    def close(self) -> None:
        """Wait for the rest."""
        self._thread.join(_LAST_ERRORS_SECONDS)
        # Where a process that left the group holds the other end, the thread stays with it.
        if not self._thread.is_alive():
            self._file.close()

    @property
    def text(self) -> str:
        return self._bytes.decode("utf-8", errors="replace")


def _end_group(process: subprocess.Popen[bytes]) -> None:
    """Kill `process` and those it started. No other group can have its number yet."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)


def _fault_of(library: str | None, reason: str) -> RunOutcome:
    named = reason.startswith("library ")
    return RunOutcome("library_fault", reason if named else f"library {library}: {reason}", None)


def _out_of_time(library: str | None, timeout: float, folder: Path) -> RunOutcome:
    """What to say of a run that is still under way."""
    before = read_last_words(folder) if library else None
    if before is None:
        reason = f"a run took longer than {timeout:g} s and was stopped; allow more with --timeout"
        return RunOutcome("timed_out", reason, None)
    reason = f"it did not come back within {timeout:g} s {before.place}"
    if before.doing != "timed pass":
        time.sleep(_STUCK_SECONDS)
        if read_last_words(folder) == before:
            return _fault_of(library, reason)
        reason = f"a run took longer than {timeout:g} s and was stopped"
    # A slow one and one that hangs look the same.
    reason = f"library {library}: {reason}; if it is only slow, allow more with --timeout"
    return RunOutcome("timed_out", reason, None)


def how_it_ended(code: int, said: str) -> str:
    """In words, why a worker left no result.

    Args:
        code: its exit code; minus the signal's number where one ended it.
        said: the end of what it wrote to standard error.
    """
    if code >= 0:
        return f"a run ended with exit code {code} and no result{_last_line(said)}"
    hint = "; the system may be out of memory" if -code == signal.SIGKILL else ""
    return f"a run was ended by signal {_signal_name(-code)}{hint}{_last_line(said)}"


def _signal_name(number: int) -> str:
    return signal.Signals(number).name if number in set(signal.Signals) else str(number)


def _last_line(said: str) -> str:
    lines = said.strip().splitlines()
    return f" ({lines[-1][:300]})" if lines else ""
