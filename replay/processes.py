"""Starts a worker process, waits for it, and says in words how it ended."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from workbench.common.errors import RunError

# -P, as PYTHONSAFEPATH: a `replay.py` in the user's current folder is none of ours.
WORKER_COMMAND = (sys.executable, "-P", "-m", "workbench.replay.worker")


@dataclass(frozen=True)
class RunOutcome:
    """How one run ended.

    Args:
        status: ``ok``, ``unavailable``, ``crashed`` or ``timed_out``.
        reason: one sentence where it is not ``ok``.
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
    """Ours, with one thread for numpy's mathematics, which would start more that nothing needs."""
    return {**os.environ, "PYTHONSAFEPATH": "1", "OPENBLAS_NUM_THREADS": "1"}


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
        task: see `workbench.replay.worker.run`; ``output`` is added.
        folder: existing and empty; the worker leaves its files here.
        timeout: seconds.
        command: what to start.
    """
    errors = folder / "stderr.txt"
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
            return RunOutcome(
                "timed_out",
                f"a run took longer than {timeout:g} s and was stopped; allow more with --timeout",
                None,
            )
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
    return _outcome(process.returncode, folder / "result.json", errors)


def _outcome(code: int, answer: Path, errors: Path) -> RunOutcome:
    if code != 0 or not answer.exists():
        return RunOutcome("crashed", how_it_ended(code, errors), None)
    result = json.loads(answer.read_text(encoding="utf-8"))
    if "unavailable" in result:
        return RunOutcome("unavailable", result["unavailable"], None)
    if "error" in result:
        return RunOutcome("crashed", f"the engine stopped: {result['error']}", None)
    return RunOutcome("ok", None, result)


def how_it_ended(code: int, errors: Path) -> str:
    """In words, why a worker left no result.

    Args:
        code: its exit code; minus the signal's number where one ended it.
        errors: what it wrote to standard error.
    """
    said = errors.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    last_words = f" ({said[-1][:300]})" if said else ""
    if code >= 0:
        return f"a run ended with exit code {code} and no result{last_words}"
    number = -code
    name = signal.Signals(number).name if number in set(signal.Signals) else str(number)
    hint = "; the system may be out of memory" if number == signal.SIGKILL else ""
    return f"a run was ended by signal {name}{hint}{last_words}"
