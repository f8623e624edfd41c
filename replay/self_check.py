"""Whether a recorded history can be believed to be reproduced: the self-check of imported files.

The program's requests are replayed from the recorded starting state, and the allocator must choose
the same addresses, make and release the same segments at the same moments, and end with the same
blocks. What a file does not tell of its starting state is inferred, and each inferred fact is named
in the verdict. How: docs/method.md.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from workbench.common.units import format_bytes
from workbench.recorders.trace.history import ACTIONS, STATES, History
from workbench.replay import _engine
from workbench.replay.lanes import Lanes

Array = npt.NDArray[Any]
Kind = Literal["exact", "differs", "not_reconstructible"]

_NO_HISTORY = (
    "the file holds the state at the end and no history; before a run, call "
    "torch.cuda.memory._record_memory_history()"
)
# Each round learns at least one fact; more than these means that the rules are others.
_MOST_ROUNDS = 100


@dataclass(frozen=True)
class Verdict:
    """What a self-check found of one device.

    Args:
        device: its name in the trace.
        kind: whether all of it was reproduced.
        entries: how many were held against the record.
        rules: the rule set that fits, or fits longest.
        settings: those that were in force, the rule set included where it is not the default.
        facts: what had to be inferred, a sentence each.
        problem: what differs, or why nothing can be reconstructed.
    """

    device: str
    kind: Kind
    entries: int = 0
    rules: str = ""
    settings: str = ""
    facts: list[str] = field(default_factory=list)
    problem: str = ""

    def __str__(self) -> str:
        if self.kind == "exact":
            count = len(self.facts)
            facts = f" with {count} inferred fact{'s'[: count != 1]}" if count else ""
            return f"exact{facts}: all {self.entries:,} entries of {self.device} are reproduced"
        return f"{'differs' if self.kind == 'differs' else 'not reconstructible'}: {self.problem}"

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {"verdict": str(self), **self.__dict__}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Verdict:
        """The verdict that `to_json` described.

        Raises:
            TypeError: a value is missing, unknown, or of another type.
        """
        verdict = cls(**{name: value for name, value in values.items() if name != "verdict"})
        texts = [verdict.device, verdict.kind, verdict.rules, verdict.settings, verdict.problem]
        listed = verdict.facts if isinstance(verdict.facts, list) else [None]
        if type(verdict.entries) is not int or not all(
            isinstance(one, str) for one in (*texts, *listed)
        ):
            raise TypeError("a value of another type")
        return verdict


@dataclass(frozen=True)
class CheckedState:
    """The recorded allocator's state after one entry, as the check reproduced it.

    Args:
        segments: ``address``, ``size``, ``stream``, ``pool`` (0: the default one), ``is_small``,
            ``is_expandable``.
        blocks: ``address``, ``size``, ``requested``, ``state`` (codes of `STATES`), ``entry``
            (that allocated it; -1 - place in `History.before` where it was there before), in
            order of segments.
    """

    segments: dict[str, Array]
    blocks: dict[str, Array]


@dataclass
class _Attempt:
    """One rule set's way through a history."""

    rules: str
    settings: str
    order: list[int]
    slacks: dict[int, int] = field(default_factory=dict)
    created_before: set[tuple[int, int]] = field(default_factory=set)
    found: _engine.CheckedHistory | None = None
    problem: str = ""
    reached: int = -1
    learning: Literal["order", "size"] = "order"

    @property
    def learned(self) -> int:
        return len(self.slacks) + len(self.created_before)


def check_history(history: History) -> Verdict:
    """Replay `history` against the caching allocator, under each rule set that it names."""
    return _best_attempt(history)[0]


def state_after(history: History, entry: int) -> tuple[Verdict, CheckedState | None]:
    """The verdict, and the state after `entry` where the history is reproduced that far."""
    verdict, attempt = _best_attempt(history)
    if attempt is None or attempt.problem:
        return verdict, None
    found = _run(history, attempt, state_at=entry)
    return verdict, CheckedState(found["segments"], found["blocks"])


def _best_attempt(history: History) -> tuple[Verdict, _Attempt | None]:
    attempts = []
    for rules in history.rules:
        try:
            attempts.append(_attempt(history, rules))
        except ValueError as error:
            problem = str(error) + _no_segments(history)
            return Verdict(history.device, "not_reconstructible", problem=problem), None
    exact = [attempt for attempt in attempts if not attempt.problem]
    chosen = (
        min(exact, key=lambda attempt: attempt.learned)
        if exact
        else max(attempts, key=lambda attempt: attempt.reached)
    )
    if not len(history.action) and exact:
        return Verdict(history.device, "not_reconstructible", problem=_NO_HISTORY), chosen
    others = [attempt for attempt in attempts if attempt is not chosen]
    verdict = Verdict(
        device=history.device,
        kind="exact" if exact else "differs",
        entries=len(history.action),
        rules=chosen.rules,
        settings=chosen.settings,
        facts=_facts(history, chosen, others),
        problem=chosen.problem and chosen.problem + _no_segments(history),
    )
    return verdict, chosen


def _attempt(history: History, rules: str) -> _Attempt:
    """The way through `history` under one rule set, with what had to be learned for it.

    Where one of two equal blocks was taken, it came first in order; unless the other block's size
    is not certain, and the order contradicts itself: then that other was smaller.
    """
    attempt = _learned(history, rules, "order")
    if attempt.problem and attempt.created_before:
        other = _learned(history, rules, "size")
        if not other.problem or other.reached > attempt.reached:
            return other
    return attempt


def _learned(history: History, rules: str, learning: Literal["order", "size"]) -> _Attempt:
    settings = history.settings
    if rules != "2.13":
        settings = ",".join(filter(None, (settings, f"rules:{rules}")))
    segments = len(history.before.segments["address"])
    attempt = _Attempt(rules, settings, list(range(segments)), learning=learning)
    for _ in range(_MOST_ROUNDS):
        try:
            found = attempt.found = _run(history, attempt)
        except ValueError:
            if not attempt.learned:
                raise
            attempt.problem = attempt.problem or "what was learned contradicts itself"
            return attempt
        known = attempt.learned
        attempt.slacks.update(found["slacks"])
        attempt.created_before.update(
            (attempt.order[first], attempt.order[second])
            for first, second in found["created_before"]
        )
        difference = found["difference"]
        if difference is not None:
            attempt.problem = _described(history, difference)
            attempt.reached = difference["entry"]
        else:
            attempt.problem = _difference_at_end(history, found)
            attempt.reached = len(history.action)
        if attempt.learned == known and not found["slacks"] and not found["created_before"]:
            return attempt
        order = _ordered(attempt.order, attempt.created_before)
        if order is None:
            attempt.problem = (
                "free blocks of equal size are taken in an order that no numbering of their "
                "segments gives"
            )
            return attempt
        attempt.order = order
    attempt.problem = attempt.problem or f"not settled after {_MOST_ROUNDS} rounds of inference"
    return attempt


def _numbers(lanes: Lanes, columns: dict[str, Array]) -> Array:
    """The lanes' numbers of the columns ``stream`` and ``pool``."""
    return lanes.of(columns["stream"], columns["pool"]).astype(np.int32)


def _run(
    history: History, attempt: _Attempt, state_at: int | None = None
) -> _engine.CheckedHistory:
    before = history.before
    told = (before.segments, {"stream": history.stream, "pool": history.pool})
    lanes = Lanes([one["stream"] for one in told], [one["pool"] for one in told])
    segments = {
        "address": before.segments["address"],
        "size": before.segments["size"],
        "stream": _numbers(lanes, before.segments),
        "is_small": before.segments["is_small"].astype(np.uint8),
        "is_expandable": before.segments["is_expandable"].astype(np.uint8),
    }
    order = np.array(attempt.order, dtype=np.int64)
    slack = np.zeros(len(before.blocks["address"]), dtype=np.int64)
    for place, size in attempt.slacks.items():
        slack[place] = size
    pending = STATES.index("active_pending_free")
    return _engine.check_history(
        {name: np.ascontiguousarray(values[order]) for name, values in segments.items()},
        {
            "address": before.blocks["address"],
            "size": before.blocks["size"],
            "requested": before.blocks["requested"],
            "pending": (before.blocks["state"] == pending).astype(np.uint8),
            "slack": slack,
        },
        {
            "action": history.action,
            "address": history.address,
            "size": history.size,
            "stream": _numbers(lanes, told[1]),
        },
        lanes={"stream": lanes.stream, "pool": lanes.pool},
        settings=attempt.settings,
        learning=attempt.learning,
        state_at=state_at,
    )


def _ordered(order: list[int], created_before: Iterable[tuple[int, int]]) -> list[int] | None:
    """`order` changed as little as `created_before` asks for; None where it runs in a circle."""
    place = {segment: at for at, segment in enumerate(order)}
    after: dict[int, list[int]] = {}
    waits = [0] * len(order)
    for first, second in created_before:
        after.setdefault(first, []).append(second)
        waits[second] += 1
    ready = [at for at, segment in enumerate(order) if not waits[segment]]
    heapq.heapify(ready)
    made = []
    while ready:
        segment = order[heapq.heappop(ready)]
        made.append(segment)
        for other in after.get(segment, ()):
            waits[other] -= 1
            if not waits[other]:
                heapq.heappush(ready, place[other])
    return made if len(made) == len(order) else None


def _no_segments(history: History) -> str:
    of_segments = [ACTIONS.index(name) for name in ACTIONS if name.startswith("segment_")]
    if not len(history.action) or np.isin(history.action, of_segments).any():
        return ""
    return "; the file has no entries about segments, so when they were made is not known"


def _described(history: History, difference: _engine.Difference) -> str:
    entry = difference["entry"]
    action = ACTIONS[history.action[entry]]
    text = (
        f"entry {history.entry_in_file(entry):,} ({action} of "
        f"{format_bytes(difference['recorded_size'])} at {difference['recorded_address']:#x}) "
        f"{difference['problem']}"
    )
    if difference["address"]:
        text += f"; by the rules it is {format_bytes(difference['size'])} at "
        text += f"{difference['address']:#x}"
    elif difference["size"]:
        text += f"; by the rules {format_bytes(difference['size'])}"
    return text


def _difference_at_end(history: History, found: _engine.CheckedHistory) -> str:
    """What differs between the state at the end and the recorded one; empty where nothing does."""
    wanted = history.after
    for what, one, other in (
        ("segments", wanted.segments, found["segments"]),
        ("blocks", wanted.blocks, _active(found["blocks"])),
    ):
        order = np.argsort(other["address"], kind="stable")
        if len(order) != len(one["address"]):
            return (
                f"at the end there are {len(order):,} {what} in use, and the file has "
                f"{len(one['address']):,}"
            )
        for name in one:
            wrong = np.flatnonzero(other[name][order] != one[name])
            if wrong.size:
                at = wrong[0]
                return (
                    f"at the end the {name} of {what[:-1]} {int(one['address'][at]):#x} is "
                    f"{int(other[name][order][at]):,}, and the file has {int(one[name][at]):,}"
                )
    return ""


def _active(blocks: dict[str, Array]) -> dict[str, Array]:
    used = blocks["state"] != STATES.index("inactive")
    return {name: values[used] for name, values in blocks.items()}


def _facts(history: History, chosen: _Attempt, others: list[_Attempt]) -> list[str]:
    found = chosen.found
    facts = list(history.assumed)
    if not history.settings_told:
        facts.append("settings: the defaults, since the file has none")
    if chosen.rules != history.rules[0] or any(other.problem for other in others):
        worse = [other for other in others if other.problem or other.learned > chosen.learned]
        if worse and not chosen.problem:
            facts.append(
                f"rules: {chosen.rules} (under {worse[0].rules} "
                + (worse[0].problem or f"{worse[0].learned} more facts would be needed")
                + ")"
            )
    addresses = history.before.segments["address"]
    for first, second in sorted(chosen.created_before):
        facts.append(
            f"order: the segment at {int(addresses[first]):#x} was made before that at "
            f"{int(addresses[second]):#x}"
        )
    blocks = history.before.blocks
    for place, slack in sorted(chosen.slacks.items()):
        facts.append(
            f"size: the block at {int(blocks['address'][place]):#x} holds {format_bytes(slack)} "
            "more than was asked for"
        )
    if found is not None and found["deduced"]:
        facts.append(
            f"sizes: {found['deduced']:,} blocks freed later hold what is free behind them, which "
            "is less than any split leaves"
        )
    if found is not None and found["begins_in_request"]:
        facts.append("start: the first entries are of a request that was already under way")
    if found is not None and found["collected"]:
        facts.append(
            f"garbage collection: {found['collected']:,} segments were released by it; the ages "
            "of free blocks are not in the file"
        )
    if found is not None and found["pool_releases"]:
        facts.append(
            f"private pools: {found['pool_releases']:,} segments were given back with their pool"
        )
    return facts
