"""What a search for settings found: which are best, whether they help, and the evidence."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from workbench.replay.alloc_conf import (
    NEW_KEYS,
    RecordedSettings,
    export_line,
    from_text,
    simplicity,
)
from workbench.replay.objective import Objective
from workbench.replay.search import Outcome
from workbench.replay.subjects import Subject

if TYPE_CHECKING:
    import pandas as pd

    from workbench.replay.tune import TuneOptions

# A gain of no more than this share is none.
ENOUGH = 0.01
# Settings this near to the best count as equal to it: the simplest of them is taken.
TIE = ENOUGH


@dataclass(frozen=True, eq=False)
class Tried:
    """One set of settings, replayed.

    Args:
        settings: as in ``PYTORCH_ALLOC_CONF``; empty for the defaults.
        outcome: of the replay.
        value: of the objective, 1 for the defaults; None where the replay did not complete.
    """

    settings: str
    outcome: Outcome
    value: float | None

    def retries_more(self, default: Tried) -> bool:
        """Whether it makes the program wait for the device more often than the defaults do."""
        usual = default.outcome.known_retries if default.outcome.completed else 0
        return self.outcome.known_retries > usual

    def rank(self, default: Tried) -> float:
        """The less the better: what completes without more retries, then what completes, the rest.

        A search only compares these numbers.
        """
        if self.value is None:
            reached = self.outcome.oom["event"] if self.outcome.oom else 0
            return 1e12 - float(reached)
        return self.value + (1e9 if self.retries_more(default) else 0)

    def document(self) -> dict[str, Any]:
        """For JSON."""
        outcome = self.outcome
        return {
            "settings": self.settings,
            "status": outcome.status,
            "reason": outcome.reason,
            "objective": self.value,
            **{f"peak_{name}_bytes": outcome.peaks.get(name) for name in PEAKS},
            "final_reserved_bytes": outcome.finals.get("reserved"),
            "waterfall": outcome.waterfall or None,
            "retries": outcome.retries,
            "device_calls": outcome.device_calls,
            "oom": outcome.oom,
            "warnings": outcome.warnings,
        }


PEAKS = ("reserved", "live_requested", "allocated", "active")


@dataclass(frozen=True)
class Check:
    """The answer on another trace.

    Args:
        subject: the other traffic.
        default: the defaults there.
        best: the best settings there.
        gain: see `gain`.
        holds: whether they help there too.
    """

    subject: Subject
    default: Tried
    best: Tried
    gain: float | None
    holds: bool


def gain(best: Tried, default: Tried) -> float | None:
    """The share of the defaults' objective that `best` saves; None where it does not complete.

    Completing where the defaults run out of memory saves all.
    """
    if best.value is None:
        return None
    if default.value is None:
        return 1.0
    return 1 - best.value / default.value if default.value else 0.0


def choose(tried: Sequence[Tried], default: Tried) -> Tried:
    """The best settings: least objective, the simplest of those within `TIE` of it.

    Settings that retry more often than the defaults are not among them; where the defaults do not
    complete, those with the fewest retries are. The defaults where nothing completes.
    """
    completed = [one for one in tried if one.value is not None]
    if not default.outcome.completed and completed:
        fewest = min(one.outcome.known_retries for one in completed)
        completed = [one for one in completed if one.outcome.known_retries == fewest]
    else:
        completed = [one for one in completed if not one.retries_more(default)]
    able = {one: one.value for one in completed if one.value is not None}
    least = min(able.values(), default=0.0)
    near = [one for one, value in able.items() if value <= least * (1 + TIE)]
    return min(near, key=lambda one: simplicity(one.settings), default=default)


def pareto_front(tried: Iterable[Tried]) -> list[Tried]:
    """Those than which none has both less peak reserved and fewer device calls; least peak first.

    Of settings with the same numbers the simplest.
    """
    front: list[Tried] = []
    completed = [one for one in tried if one.outcome.completed]
    for one in sorted(
        completed,
        key=lambda one: (
            one.outcome.peak_reserved,
            one.outcome.device_calls,
            simplicity(one.settings),
        ),
    ):
        if not front or one.outcome.device_calls < front[-1].outcome.device_calls:
            front.append(one)
    return front


@dataclass(frozen=True)
class Tuning:
    """What `workbench.tune` returns; shows itself as tables in a terminal and in a notebook.

    Args:
        subject: what was searched on.
        options: how.
        objective: what was made small.
        default: the defaults.
        own: what the trace ran with; None where those are the defaults, or not known.
        best: the best settings found; the defaults where none are better or nothing completes.
        tried: everything replayed, in the order in which it was.
        front: the Pareto front of peak reserved and device calls.
        checks: the answer on other traces.
        recorded: what the trace says of its settings.
        notes: sentences to know beside.
    """

    subject: Subject
    options: TuneOptions
    objective: Objective
    default: Tried
    own: Tried | None
    best: Tried
    tried: list[Tried]
    front: list[Tried]
    checks: list[Check]
    recorded: RecordedSettings
    notes: list[str]

    @property
    def gain(self) -> float | None:
        """The share of the defaults' objective that the best settings save."""
        return gain(self.best, self.default)

    @property
    def most_gained(self) -> float:
        """The greatest gain of settings that complete and retry no more often."""
        able = [one for one in self.tried if not one.retries_more(self.default)]
        gains = [gain(one, self.default) for one in able]
        return max((one for one in gains if one is not None), default=0.0)

    @property
    def cheaper_with_retries(self) -> Tried | None:
        """Settings with more than `ENOUGH` less of the objective, at the price of retries."""
        if self.best.value is None:
            return None
        limit = self.best.value * (1 - ENOUGH)
        cheaper = [one for one in self.tried if one.value is not None and one.value < limit]
        return min(cheaper, key=lambda one: one.value or 0.0, default=None)

    @property
    def verdict(self) -> str:
        """One of these words.

        ``helps``; ``no_setting_helps``; ``gain_does_not_hold`` on a check trace;
        ``nothing_completes``.
        """
        found = self.gain
        if found is None:
            return "nothing_completes"
        if found <= ENOUGH:
            return "no_setting_helps"
        return "helps" if all(check.holds for check in self.checks) else "gain_does_not_hold"

    @property
    def export(self) -> str | None:
        """The line for a shell; None where no setting helps."""
        if self.verdict != "helps":
            return None
        return export_line(self.best.settings, self.recorded.kept)

    @property
    def warnings(self) -> list[str]:
        """What the engine says of the best settings and of the trace's own, without full stops."""
        shown = [self.best, *([self.own] if self.own else [])]
        return list(
            dict.fromkeys(
                f"{one.settings}: {sentence}" for one in shown for sentence in one.outcome.warnings
            )
        )

    @property
    def needs_new_pytorch(self) -> list[str]:
        """Keys of the best settings that releases before 2026 do not know."""
        return [key for key in NEW_KEYS if key in from_text(self.best.settings)]

    def count(self, status: str) -> int:
        """How many of the settings tried ended so."""
        return sum(one.outcome.status == status for one in self.tried)

    def to_pandas(self) -> pd.DataFrame:
        """One row for each of the settings tried."""
        import pandas as pd

        return pd.DataFrame([one.document() for one in self.tried])

    def document(self) -> dict[str, Any]:
        """For JSON: everything."""
        options = self.options
        return {
            **self.subject.document(),
            "completion": options.completion,
            "objective": self.objective.text,
            "quick": options.quick,
            "seed": None if options.quick else options.seed,
            "verdict": self.verdict,
            "gain": self.gain,
            "export": self.export,
            "default": self.default.document(),
            "recorded": {
                "settings": self.recorded.own,
                "rules": self.recorded.rules,
                "kept": self.recorded.kept,
                "replayed": self.own.document() if self.own else None,
            },
            "best": self.best.document(),
            "front": [one.document() for one in self.front],
            "checks": [
                {
                    **check.subject.document(),
                    "default": check.default.document(),
                    "best": check.best.document(),
                    "gain": check.gain,
                    "holds": check.holds,
                }
                for check in self.checks
            ],
            "tried": [one.document() for one in self.tried],
            "warnings": self.warnings,
            "notes": [*self.subject.notes, *self.notes],
        }

    def __rich_console__(self, console: Any, options: Any) -> Any:
        from workbench.replay.tune_summary import parts

        yield from parts(self)

    def _repr_html_(self) -> str:
        from workbench.replay.tune_summary import html

        return html(self)
