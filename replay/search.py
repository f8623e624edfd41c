"""Runs many candidates that need only memory: a few processes, each replaying one after another.

A search asks for hundreds of replays of the same traffic and looks at no time, so it does without
what `workbench.replay.runner` spends on a process for each run: a worker maps the traffic's columns
once and makes one memory pass for each candidate.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from workbench.common.errors import RunError
from workbench.replay.events import Traffic
from workbench.replay.machine import usable_cores
from workbench.replay.processes import how_it_ended, worker_environment

WORKER_COMMAND = (sys.executable, "-P", "-m", "workbench.replay.search_worker")
TIMEOUT = 600.0
_START_SECONDS = 120
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Candidate:
    """One replay to make, on the simulated device.

    Args:
        traffic: which of the pool's traffics.
        allocator: one of the engine's.
        settings: ``key:value,…``.
        capacity: bytes of the device; None for no limit.
        completion: when work on a stream completes.
    """

    traffic: str
    allocator: str
    settings: str = ""
    capacity: int | None = None
    completion: str = "recorded"

    def task(self) -> dict[str, Any]:
        """What the worker is told."""
        return {
            "traffic": self.traffic,
            "allocator": self.allocator,
            "settings": self.settings,
            "backend": "simulated",
            "capacity": self.capacity,
            "completion": self.completion,
            "after_oom": "stop",
        }


@dataclass(frozen=True)
class Outcome:
    """What came of a candidate; bytes are bytes.

    Args:
        status: ``ok``, ``out_of_memory``, ``refused`` (the engine does not take the settings),
            ``crashed`` or ``timed_out``.
        reason: one sentence, without a full stop, where the status is one of the last three.
        peaks: by name, as in docs/result-format.md; as far as the replay came.
        finals: the same after the last event.
        waterfall: the parts of the reserved bytes at their peak.
        retries: last tries for a segment after everything cached was released; None where the
            allocator does not report them.
        device_calls: calls to the driver that were served, as in docs/result-format.md.
        refused_calls: calls that the device refused.
        oom: the first refusal: ``event`` (place in the traffic), ``requested`` …; None without.
        warnings: what the engine says of the settings, without full stops.
    """

    status: str
    reason: str | None = None
    peaks: dict[str, int] = field(default_factory=dict)
    finals: dict[str, int] = field(default_factory=dict)
    waterfall: dict[str, int] = field(default_factory=dict)
    retries: int | None = 0
    device_calls: int = 0
    refused_calls: int = 0
    oom: dict[str, Any] | None = None
    warnings: list[str] = field(default_factory=list)

    @property
    def completed(self) -> bool:
        """Whether every event was replayed."""
        return self.status == "ok"

    @property
    def measured(self) -> bool:
        """Whether there is an answer: completed, or out of memory."""
        return self.status in ("ok", "out_of_memory")

    @property
    def known_retries(self) -> int:
        """Retries as far as they are reported, to compare by."""
        return self.retries or 0

    @property
    def peak_reserved(self) -> int:
        """Bytes."""
        return self.peaks.get("reserved", 0)


@dataclass
class _Worker:
    """A process, and what it is at."""

    process: subprocess.Popen[bytes]
    errors: Path
    ready: bool = False
    task: int | None = None
    deadline: float = 0.0
    said: bytes = b""

    @property
    def output(self) -> int:
        assert self.process.stdout is not None
        return self.process.stdout.fileno()

    def end(self) -> None:
        """End the process and close its pipes."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                # What was meant for a worker that is gone cannot be flushed.
                with contextlib.suppress(OSError):
                    pipe.close()


class Pool:
    """Worker processes for the candidates of some traffics; a context manager that ends them.

    Args:
        traffics: by name.
        scratch: a folder for the traffics' columns and the workers' last words.
        workers: processes at most; None for one on each usable core.
        timeout: seconds that a candidate may take.
        command: what to start.
    """

    def __init__(
        self,
        traffics: Mapping[str, Traffic],
        scratch: Path,
        *,
        workers: int | None = None,
        timeout: float = TIMEOUT,
        command: Sequence[str] = WORKER_COMMAND,
    ) -> None:
        self._scratch = scratch
        self._most = usable_cores() if workers is None else workers
        self._timeout = timeout
        self._command = command
        self._selector = selectors.DefaultSelector()
        self._workers: list[_Worker] = []
        self._started = 0
        places = {}
        for number, (name, traffic) in enumerate(traffics.items()):
            folder = scratch / f"traffic-{number}"
            folder.mkdir()
            traffic.save(folder)
            places[name] = (str(folder), traffic.slot_count)
        self._first_line = json.dumps(places).encode() + b"\n"

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, *_: object) -> None:
        for worker in list(self._workers):
            self._remove(worker)
        self._selector.close()

    def run(
        self, candidates: Sequence[Candidate], done: Callable[[int], None] = lambda number: None
    ) -> list[Outcome]:
        """Run all of them; one outcome for each, in their order.

        Args:
            candidates: what to run.
            done: called with the number of those that have ended, whenever one has.

        Raises:
            RunError: a worker ends before it has begun.
        """
        outcomes: dict[int, Outcome] = {}
        waiting = deque(range(len(candidates)))
        while len(outcomes) < len(candidates):
            while len(self._workers) < min(self._most, len(candidates) - len(outcomes)):
                self._start()
            for worker in self._workers:
                if waiting and worker.ready and worker.task is None:
                    self._give(worker, waiting.popleft(), candidates)
            for number, outcome in self._listen():
                outcomes[number] = outcome
                done(len(outcomes))
        return [outcomes[number] for number in range(len(candidates))]

    def _start(self) -> None:
        self._started += 1
        errors = self._scratch / f"worker-{self._started}.stderr"
        with errors.open("wb") as stderr:
            process = subprocess.Popen(
                self._command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                env=worker_environment(),
                # Ctrl-C at the terminal is ours to handle.
                start_new_session=True,
            )
        worker = _Worker(process, errors, deadline=time.monotonic() + _START_SECONDS)
        self._workers.append(worker)
        self._selector.register(worker.output, selectors.EVENT_READ, worker)
        _write(worker, self._first_line)

    def _give(self, worker: _Worker, number: int, candidates: Sequence[Candidate]) -> None:
        worker.task = number
        worker.deadline = time.monotonic() + self._timeout
        _write(worker, json.dumps(candidates[number].task()).encode() + b"\n")

    def _listen(self) -> list[tuple[int, Outcome]]:
        """Wait until something happens; the candidates that have ended, by their numbers."""
        working = [one for one in self._workers if one.task is not None or not one.ready]
        wait = min((one.deadline for one in working), default=0.0) - time.monotonic()
        ended = []
        for key, _ in self._selector.select(min(max(wait, 0.0), 3600.0)):
            worker = key.data
            piece = os.read(worker.output, 1 << 16)
            worker.said += piece
            if not piece:
                ended += self._gone(worker)
            elif worker.said.endswith(b"\n"):
                answer, worker.said = json.loads(worker.said), b""
                if not worker.ready:
                    worker.ready = True
                elif worker.task is not None:
                    ended.append((worker.task, Outcome(**answer)))
                    worker.task = None
        for worker in working:
            if worker in self._workers and (worker.task is not None or not worker.ready):
                ended += self._check_time(worker)
        return ended

    def _gone(self, worker: _Worker) -> list[tuple[int, Outcome]]:
        with contextlib.suppress(subprocess.TimeoutExpired):
            worker.process.wait(5)  # its output is closed: it is ending, and will say how
        self._remove(worker)
        said = worker.errors.read_text(encoding="utf-8", errors="replace")
        reason = how_it_ended(worker.process.returncode, said)
        if not worker.ready:
            raise RunError(f"a worker did not start: {reason}; wb doctor says what works here")
        return [] if worker.task is None else [(worker.task, Outcome("crashed", reason))]

    def _check_time(self, worker: _Worker) -> list[tuple[int, Outcome]]:
        if time.monotonic() < worker.deadline:
            return []
        self._remove(worker)
        if worker.task is None:
            raise RunError(f"a worker did not start within {_START_SECONDS} s; try again")
        reason = (
            f"a run took longer than {self._timeout:g} s and was stopped; allow more with --timeout"
        )
        return [(worker.task, Outcome("timed_out", reason))]

    def _remove(self, worker: _Worker) -> None:
        self._workers.remove(worker)
        self._selector.unregister(worker.output)
        worker.end()


def _write(worker: _Worker, line: bytes) -> None:
    assert worker.process.stdin is not None
    # A worker that is gone is noticed at its other end.
    with contextlib.suppress(BrokenPipeError):
        worker.process.stdin.write(line)
        worker.process.stdin.flush()
