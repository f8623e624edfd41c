"""The traffic that a search works on: of a trace, or of each file of a folder of ranks."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

from workbench.common.errors import UsageError
from workbench.replay import _engine
from workbench.replay.cell import Capacity, choose_capacity, choose_device, device_kind
from workbench.replay.events import Traffic, load_trace
from workbench.replay.search import Outcome


@dataclass(frozen=True)
class Subject:
    """The traffic of one device of one trace file.

    Args:
        path: the file.
        device: in the trace.
        kind: of memory that the allocator is for.
        traffic: the events.
        capacity: of the device.
        metadata: the trace's.
        refused: requests that failed while it was recorded; a replay makes them again.
    """

    path: str
    device: str
    kind: str
    traffic: Traffic
    capacity: Capacity
    metadata: dict[str, Any]
    refused: int = 0

    @property
    def name(self) -> str:
        """What a pool calls it."""
        return f"{self.path}\0{self.device}"

    @property
    def as_if(self) -> bool:
        """Whether traffic of one kind of memory is replayed through an allocator of another."""
        return device_kind(self.device) != self.kind

    @property
    def events(self) -> int:
        """Events replayed."""
        return len(self.traffic.op)

    @property
    def peak_live(self) -> int:
        """Bytes."""
        return self.traffic.peak_live_bytes

    @property
    def notes(self) -> list[str]:
        """What limits conclusions from the trace, one sentence each."""
        found = []
        live = int((self.traffic.op == _engine.OPS["live"]).sum())
        if live:
            found.append(
                f"{live:,} blocks were live when recording began: a replay allocates them first, "
                "without the holes that lay between them."
            )
        if live and self.refused:
            found.append(
                "The recorded program ran out of memory; a replay, without those holes, may get by "
                "with the memory that it had, or with less."
            )
        if self.metadata.get("complete") is False:
            why = self.metadata.get("lost_reason")
            lost = self.metadata.get("lost_events", 0)
            found.append(
                f"{self.path} is incomplete ({why or f'{lost:,} events were lost'}): peaks may be "
                "too low."
            )
        return found

    def row(self, outcome: Outcome) -> int | None:
        """The row of the trace at which memory ran out; None where it did not."""
        return None if outcome.oom is None else int(self.traffic.row[outcome.oom["event"]])

    def document(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "trace": self.path,
            "device": self.device,
            "as_if": self.as_if,
            "events": self.events,
            "fingerprint": self.traffic.fingerprint,
            "peak_live_bytes": self.peak_live,
            "capacity": {"bytes": self.capacity.bytes, "source": self.capacity.source},
        }


def load_subjects(
    trace: str,
    kinds: Collection[str],
    device: str | None,
    capacity: int | None,
    progress: Callable[[int, int], None],
) -> dict[str, list[Subject]]:
    """What allocators for memory of each of `kinds` are to serve: one for each file of `trace`.

    Args:
        trace: a file, a folder of ranks, or a URL.
        kinds: of ``cpu``, ``pinned`` and ``device``.
        device: asked for, if any. Each rank may have used its own, so files that do not have it
            get their own default where another file has it.
        capacity: bytes asked for, if any.
        progress: called with rows read and rows in all.

    Raises:
        UsageError: no file has the device, or nothing was allocated on it.
        BrokenFileError: not a trace.
    """
    files = [(one, one.bytes_by_device) for one in load_trace(trace, progress)]
    anywhere = any(device in devices for _, devices in files)
    found: dict[str, list[Subject]] = {kind: [] for kind in kinds}
    for loaded, devices in files:
        wanted = None if anywhere and device not in devices else device
        traffics: dict[str, Traffic] = {}
        for kind in kinds:
            chosen = choose_device(kind, devices, wanted)
            if chosen not in traffics:
                traffics[chosen] = loaded.traffic(chosen)
            about = loaded.metadata.get("devices", {}).get(chosen)
            subject = Subject(
                path=loaded.path,
                device=chosen,
                kind=kind,
                traffic=traffics[chosen],
                capacity=choose_capacity(kind, chosen, about, capacity),
                metadata=loaded.metadata,
                refused=len(loaded.refused(chosen)),
            )
            if not subject.peak_live:
                raise UsageError(
                    f"{loaded.path}: nothing is allocated on {chosen}; give another trace"
                )
            found[kind].append(subject)
    return found
