"""From what a calibration measured on a GPU to a profile, and what a person reads of it."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import numpy as np

from workbench.common.errors import MissingPartError, RunError, UsageError
from workbench.common.units import format_bytes, format_duration
from workbench.common.version import __version__
from workbench.replay import _engine
from workbench.replay.profiles import (
    FORMAT_VERSION,
    PLAIN_CALLS,
    POOL_RULES,
    SIZED_CALLS,
    Profile,
    profile_problem,
)

if TYPE_CHECKING:
    from rich.table import Table

# More than any device has.
_ALL_THERE_IS = 2**60


def calibrate(
    *,
    capacity: int | None = None,
    rounds: int = 50,
    name: str | None = None,
    stand_in: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Profile:
    """Measure what the calls of this GPU's driver cost, and by which rules its pool works.

    Args:
        capacity: bytes taken at once, at most; None for what is free.
        rounds: in each of which every call is made once.
        name: of the profile; None for one made of the device's.
        stand_in: whether it may run over the stand-in for the CUDA runtime, where it measures
            nothing; for tests.
        progress: called with what is done and what there is.

    Raises:
        UsageError: a wrong value, or the stand-in.
        MissingPartError: there is no GPU that can be used.
        RunError: the driver failed, or refused what must be measured.
    """
    if rounds < 1:
        raise UsageError(f"--repeat {rounds} is not a number of rounds; write 1 or more")
    try:
        found = _engine.calibrate(_ALL_THERE_IS if capacity is None else capacity, rounds, progress)
    except _engine.UnavailableError as error:
        raise MissingPartError(f"nothing can be calibrated here: {error}") from None
    except RuntimeError as error:
        raise RunError(f"the calibration failed: {error}") from None
    facts = found["facts"]
    if facts["stand_in"] == "True" and not stand_in:
        raise UsageError(
            "the CUDA runtime here is the stand-in for tests, over which nothing can be measured; "
            "calibrate on a machine with a GPU, without the stand-in in LD_LIBRARY_PATH"
        )
    if facts["holds_back"] != "True" and not stand_in:
        raise RunError(
            "the driver's pool handed out memory that another stream's work still used, so its "
            "rules could not be told apart; end what else uses the GPU and calibrate again"
        )
    return _profile(found, rounds, name)


def _profile(found: _engine.CalibrationFound, rounds: int, name: str | None) -> Profile:
    facts = found["facts"]
    is_real = facts["stand_in"] != "True"
    how = (
        f"wb calibrate of workbench {__version__}: {rounds} calls of each kind and size, in random "
        "order, on an otherwise idle device"
    )
    info = {
        "format_version": FORMAT_VERSION,
        "name": name or _name_of(facts["device"]),
        "device": {
            "name": facts["device"],
            "compute_capability": facts["compute_capability"],
            "memory_bytes": int(facts["memory_bytes"]),
        },
        "versions": {"driver": facts["driver"], "runtime": facts["runtime"]},
        "date": datetime.now(UTC).date().isoformat(),
        "measured": how if is_real else "over the stand-in for the CUDA runtime: nothing measured",
        "calls": _calls(found),
        "pool": {
            "chunk_bytes": int(facts["chunk_bytes"]),
            **{rule: facts[rule] == "True" for rule in POOL_RULES},
            "releases_above_threshold": facts["releases_above_threshold"] == "True",
        },
    }
    problem = profile_problem(info)
    if problem is not None:
        raise RunError(f"what was measured makes no profile ({problem}); calibrate again")
    return Profile(info)


def _name_of(device: str) -> str:
    """``h200`` for ``NVIDIA H200``."""
    words = re.sub(r"[^a-z0-9]+", "-", device.lower().removeprefix("nvidia")).strip("-")
    return words[:64].strip("-") or "gpu"


def _calls(found: _engine.CalibrationFound) -> dict[str, Any]:
    calls: dict[str, Any] = {kind: [] for kind in SIZED_CALLS}
    for kind, size, nanoseconds in found["calls"]:
        # A clock may not tell the shortest of calls.
        p50, p99 = (max(1, round(float(np.quantile(nanoseconds, q)))) for q in (0.5, 0.99))
        price = {"p50_ns": p50, "p99_ns": p99}
        if kind in calls:
            calls[kind].append({"bytes": size, **price})
        else:
            calls[kind] = price
    missing = [kind for kind in (*SIZED_CALLS, *PLAIN_CALLS) if not calls.get(kind)]
    if missing:
        raise RunError(
            f"the driver served no call of {', '.join(missing)}, which a profile needs; free some "
            "of the GPU's memory, or install a newer driver"
        )
    for kind in SIZED_CALLS:
        calls[kind].sort(key=lambda point: point["bytes"])
    return calls


# Of the sizes of a kind, so many are shown.
_SHOWN = 4


def price_table(profile: Profile) -> Table:
    """What each kind of call costs."""
    from rich.table import Table

    table = Table(title=f"Driver calls of {profile.device}", title_justify="left")
    table.add_column("call")
    for title in ("size", "p50", "p99"):
        table.add_column(title, justify="right")
    calls = profile.info["calls"]
    for kind in SIZED_CALLS:
        points = calls[kind]
        places = np.linspace(0, len(points) - 1, min(_SHOWN, len(points))).astype(int)
        for row, place in enumerate(places):
            size = format_bytes(points[place]["bytes"])
            table.add_row("" if row else kind, size, *_price(points[place]))
    for kind in PLAIN_CALLS:
        table.add_row(kind, "", *_price(calls[kind]))
    return table


def _price(price: Mapping[str, float]) -> tuple[str, str]:
    return format_duration(price["p50_ns"]), format_duration(price["p99_ns"])


def pool_table(profile: Profile) -> Table:
    """The rules of the driver's pool."""
    from rich.table import Table

    table = Table(title="The driver's memory pool", title_justify="left")
    table.add_column("rule")
    table.add_column("measured", justify="right")
    pool = profile.info["pool"]
    table.add_row("grows by", format_bytes(pool["chunk_bytes"]))
    for rule in (*POOL_RULES, "releases_above_threshold"):
        table.add_row(rule.replace("_", " "), "yes" if pool[rule] else "no")
    return table
