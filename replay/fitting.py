"""What a search for the smallest device found."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from workbench.replay.cell import AllocatorSpec
from workbench.replay.search import Outcome
from workbench.replay.subjects import Subject

if TYPE_CHECKING:
    import pandas as pd

# The device hands out memory in these.
UNIT = 2 * 2**20


@dataclass(frozen=True)
class Fit:
    """The smallest device for one allocator; bytes are bytes.

    Args:
        subject: the traffic.
        allocator: and its settings, as asked for.
        rules: the setting ``rules:…`` that a replay of this trace needs besides; empty for none.
        status: ``fits``, ``never`` (not on a device without limit either), ``refused``,
            ``crashed``, ``timed_out``, or ``unavailable`` (it cannot be fitted at all).
        reason: one sentence, without a full stop, where it does not fit.
        capacity: the smallest device, a multiple of `UNIT`: it holds the traffic, and so do all
            larger ones that were tried; one `UNIT` less does not.
        at: the replay there.
        roomy: the smallest device on which nothing is refused and nothing tried again; None where
            none was found.
        unlimited: the replay on a device without limit.
        also: smaller sizes than `capacity` that hold the traffic too, although one between does
            not.
    """

    subject: Subject
    allocator: AllocatorSpec
    status: str
    reason: str | None = None
    capacity: int | None = None
    at: Outcome | None = None
    roomy: int | None = None
    unlimited: Outcome | None = None
    also: tuple[int, ...] = ()
    rules: str = ""

    @property
    def replayed(self) -> AllocatorSpec:
        """The allocator and all settings that were replayed."""
        settings = [text for text in (self.allocator.settings, self.rules) if text]
        return AllocatorSpec(self.allocator.name, ",".join(settings))

    @property
    def headroom(self) -> int | None:
        """Bytes of the smallest device beyond the peak of live memory."""
        return None if self.capacity is None else self.capacity - self.subject.peak_live

    @property
    def headroom_share(self) -> float | None:
        """The same as a share of the peak of live memory."""
        return None if self.headroom is None else self.headroom / self.subject.peak_live

    def document(self) -> dict[str, Any]:
        """For JSON."""
        subject = self.subject.document()
        subject.pop("capacity")  # of the device it ran on: not looked at
        return {
            **subject,
            "allocator": self.allocator.name,
            "settings": self.allocator.settings_by_key(),
            "label": self.allocator.label,
            "rules": self.rules,
            "status": self.status,
            "reason": self.reason,
            "capacity_bytes": self.capacity,
            "headroom_bytes": self.headroom,
            "headroom_share": self.headroom_share,
            "retries": self.at.retries if self.at else None,
            "device_calls": self.at.device_calls if self.at else None,
            "without_retry_bytes": self.roomy,
            "unlimited_peak_reserved_bytes": self.unlimited.peak_reserved
            if self.unlimited
            else None,
            "also_completes_bytes": list(self.also),
            "warnings": self.unlimited.warnings if self.unlimited else [],
            "notes": self.subject.notes,
        }


@dataclass(frozen=True)
class Fits:
    """What `workbench.fit` returns; shows itself as a table in a terminal and in a notebook.

    Args:
        fits: one for each trace file and allocator.
        left_out: allocators of `all` that cannot run here, each with its reason.
        completion: when work on a stream completed.
    """

    fits: list[Fit]
    left_out: list[tuple[str, str]] = field(default_factory=list)
    completion: str = "recorded"

    def __len__(self) -> int:
        return len(self.fits)

    def __getitem__(self, index: int) -> Fit:
        return self.fits[index]

    def to_pandas(self) -> pd.DataFrame:
        """One row for each."""
        import pandas as pd

        return pd.DataFrame([one.document() for one in self.fits])

    def document(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "completion": self.completion,
            "unit_bytes": UNIT,
            "fits": [one.document() for one in self.fits],
            "left_out": [{"allocator": name, "reason": reason} for name, reason in self.left_out],
        }

    def __rich_console__(self, console: Any, options: Any) -> Any:
        from workbench.replay.fit_summary import parts

        yield from parts(self)

    def _repr_html_(self) -> str:
        from workbench.replay.fit_summary import html

        return html(self)
