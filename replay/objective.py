"""What a search makes small: a sum of weighted measures of a replay."""

from __future__ import annotations

import re
from dataclasses import dataclass

from workbench.common.errors import UsageError
from workbench.replay.search import Outcome

MEASURES = ("peak_reserved", "retries", "device_calls")
_TERM = re.compile(r"(?:(?P<weight>[0-9]{1,9}(?:\.[0-9]{1,9})?)\*)?(?P<name>[a-z_]{1,40})")


def measure(outcome: Outcome, name: str) -> int:
    """One of `MEASURES` of a replay: bytes, or a number of calls."""
    return {
        "peak_reserved": outcome.peak_reserved,
        "retries": outcome.known_retries,
        "device_calls": outcome.device_calls,
    }[name]


@dataclass(frozen=True)
class Objective:
    """Weights by measure; see `parse`."""

    text: str
    weights: tuple[tuple[str, float], ...]

    @classmethod
    def parse(cls, text: str) -> Objective:
        """The objective named by ``NAME`` or ``WEIGHT*NAME+WEIGHT*NAME``.

        Raises:
            UsageError: anything else: an unknown or repeated name, a weight that is no plain
                decimal number, or no weight above zero.
        """
        weights: dict[str, float] = {}
        for part in "".join(text.split()).split("+"):
            term = _TERM.fullmatch(part)
            if term is None or term["name"] not in MEASURES or term["name"] in weights:
                raise UsageError(
                    f"--objective {text!r}: {part!r} is not a measure that is named once, with or "
                    f"without a weight; write one of {', '.join(MEASURES)}, or a sum such as "
                    "0.9*peak_reserved+0.1*device_calls"
                )
            weights[term["name"]] = float(term["weight"] or 1)
        if not any(weights.values()):
            raise UsageError(f"--objective {text!r} has no weight above zero; give one")
        return cls(text, tuple((name, weight) for name, weight in weights.items() if weight))

    def value(self, outcome: Outcome, default: Outcome) -> float:
        """The sum for `outcome`, each measure as a share of the default's; 1 for the default.

        A measure that is 0 with the default counts as it is. The weights are made to add up to 1.
        """
        total = sum(weight for _, weight in self.weights)
        return sum(
            weight / total * measure(outcome, name) / max(measure(default, name), 1)
            for name, weight in self.weights
        )
