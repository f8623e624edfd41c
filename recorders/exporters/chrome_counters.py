"""Counters and marks in Chrome's trace event format, for Perfetto and chrome://tracing."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from workbench.common.errors import UsageError
from workbench.common.words import some
from workbench.recorders.exporters import Progress, TraceSource, Written
from workbench.recorders.trace.checks import OPS, TextCodes

NAME = "chrome-counters"
SUMMARY = "JSON for Perfetto and chrome://tracing: live bytes by device, steps, phases, marks"
SUFFIX = ".json"
NEEDS = "trace"

_COLUMNS = ("time_ns", "event", "id", "size", "device", "step", "phase", "label")
_STEPS, _PHASES = 1, 2  # numbers of tracks


def write(source: TraceSource, path: Path, progress: Progress) -> Written:
    """Write one counter for each device, and slices for steps and phases, row by row.

    Counters are live requested bytes, a value for each event that changes them; of events of one
    device in one nanosecond the last counts. Marks of the program and failed requests are instants.

    Raises:
        UsageError: the trace has no such device.
        TraceError: a row breaks a rule of the trace format.
    """
    counted = _Counted()
    with path.open("w", encoding="utf-8") as file:
        file.write('{"displayTimeUnit":"ms","traceEvents":[\n')
        file.write(_meta("process_name", 0, source.file.path))
        for track, name in ((_STEPS, "steps"), (_PHASES, "phases")):
            file.write(",\n" + _meta("thread_name", track, name))
        done = 0
        for batch in source.file.batches(_COLUMNS):
            for event in counted.events(batch, source.device):
                file.write(",\n")
                file.write(event)
            done += batch.num_rows
            progress(done, source.file.rows)
        for event in counted.rest():
            file.write(",\n" + event)
        file.write("\n]}\n")
    devices = [str(name) for name in counted.devices.texts if name in counted.seen]
    if source.device is not None and source.device not in devices:
        known = ", ".join(sorted(devices)) or "no device"
        raise UsageError(f"--device {source.device!r} is not in {source.file.path}; it has {known}")
    shown = [source.device] if source.device is not None else devices
    return Written(
        f"{some(counted.values, 'value')} of live bytes on {', '.join(shown) or 'no device'}",
        "open {path} at https://ui.perfetto.dev or chrome://tracing",
        {"devices": shown, "values": counted.values},
    )


class _Runs:
    """Stretches of rows with the same value of a column, as slices of a track."""

    def __init__(self, track: int) -> None:
        self.track = track
        self.text: str | None = None
        self.start = 0

    def next(self, text: str | None, time_ns: int) -> Iterator[str]:
        """The slice that ends where `text` begins, if one was open."""
        if self.text is not None:
            name, start, length = json.dumps(self.text), _us(self.start), _us(time_ns - self.start)
            yield (
                f'{{"ph":"X","pid":0,"tid":{self.track},"name":{name},"ts":{start},"dur":{length}}}'
            )
        self.text, self.start = text, time_ns


class _Counted:
    """Live bytes so far, batch by batch."""

    def __init__(self) -> None:
        self.devices = TextCodes()
        self.seen: set[str] = set()
        self.values = 0
        self._events = TextCodes()
        self._phases = TextCodes()
        self._live: dict[int, int] = {}
        self._steps = _Runs(_STEPS)
        self._phase_runs = _Runs(_PHASES)
        self._last = 0

    def events(self, batch: pa.RecordBatch, only: str | None) -> Iterator[str]:
        """What the rows of `batch` amount to, as JSON objects; counters of `only`, or of all."""
        if not batch.num_rows:
            return
        times = batch.column("time_ns").to_numpy()
        codes = self._events.encode(batch.column("event"))
        devices = self.devices.encode(batch.column("device"))
        yield from self._counters(times, codes, devices, batch.column("size").to_numpy(), only)
        steps = batch.column("step").to_numpy()
        yield from _slices(
            self._steps, times, steps, lambda step: f"step {step}" if step >= 0 else None
        )
        phases = self._phases.encode(batch.column("phase"))
        yield from _slices(
            self._phase_runs, times, phases, lambda code: _phase_name(self._phases.texts[code])
        )
        for event in ("mark", "oom"):
            labels = batch.column("label")
            for row in np.flatnonzero(codes == self._code(event)):
                text = labels[row].as_py() if event == "mark" else None
                yield (
                    f'{{"ph":"i","s":"p","pid":0,"tid":0,"name":{json.dumps(text or event)},'
                    f'"ts":{_us(int(times[row]))}}}'
                )
        self._last = int(times[-1])

    def rest(self) -> Iterator[str]:
        """The slices still open at the end."""
        yield from self._steps.next(None, self._last)
        yield from self._phase_runs.next(None, self._last)

    def _code(self, event: str) -> int:
        texts = self._events.texts
        return texts.index(event) if event in texts else -2

    def _counters(
        self, times: Any, codes: Any, devices: Any, sizes: Any, only: str | None
    ) -> Iterator[str]:
        ops = np.array([OPS.get(text or "", 0) for text in self._events.texts], np.uint8)[codes]
        change = np.where(ops == OPS["alloc"], sizes, 0) - np.where(ops == OPS["free"], sizes, 0)
        moved = (ops == OPS["alloc"]) | (ops == OPS["free"])
        for code, name in enumerate(self.devices.texts):
            rows = np.flatnonzero(moved & (devices == code))
            if not len(rows):
                continue
            self.seen.add(str(name))
            live = self._live.get(code, 0) + np.cumsum(change[rows], dtype=np.int64)
            self._live[code] = int(live[-1])
            if only is not None and name != only:
                continue
            at = times[rows]
            kept = np.append(at[1:] != at[:-1], True)
            head = f'{{"ph":"C","pid":0,"name":{json.dumps(f"live bytes, {name}")},"ts":'
            self.values += int(kept.sum())
            for time, value in zip(at[kept].tolist(), live[kept].tolist(), strict=True):
                yield f'{head}{_us(time)},"args":{{"requested":{value}}}}}'


def _slices(runs: _Runs, times: Any, values: Any, name: Any) -> Iterator[str]:
    """The slices that end inside a batch whose rows have `values`."""
    changes = np.flatnonzero(np.append(True, values[1:] != values[:-1]))
    for row in changes.tolist():
        text = name(int(values[row]))
        if text != runs.text:
            yield from runs.next(text, int(times[row]))


def _phase_name(phase: str | None) -> str | None:
    return None if phase == "other" else phase


def _us(time_ns: int) -> str:
    """Microseconds, exactly, as JSON."""
    return f"{time_ns // 1000}.{time_ns % 1000:03d}"


def _meta(kind: str, track: int, name: str) -> str:
    return (
        f'{{"ph":"M","pid":0,"tid":{track},"name":"{kind}","args":{{"name":{json.dumps(name)}}}}}'
    )
