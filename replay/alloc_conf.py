"""Settings of ``caching`` as text: those a trace ran with, and those worth trying."""

from __future__ import annotations

import itertools
import random
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from workbench.replay.cell import AllocatorSpec

VARIABLE = "PYTORCH_ALLOC_CONF"
SEARCHED = (
    "expandable_segments",
    "large_segment_size_mb",
    "max_split_size_mb",
    "max_non_split_rounding_mb",
    "roundup_power2_divisions",
    "garbage_collection_threshold",
    "per_process_memory_fraction",
)
# Keys that PyTorch learnt in the winter of 2025 to 2026; a release before refuses to start.
NEW_KEYS = ("large_segment_size_mb", "per_process_memory_fraction")
_KNOWS_NEW_KEYS = (2, 11)
RULES = "rules"
# Settings that move no bytes in a replay: a program that has them keeps them.
KEPT = ("graph_capture_record_stream_reuse", "release_lock_on_cudamalloc")

LARGE_SEGMENT = 20
LARGE_SEGMENTS = (12, 16, 20, 32, 48, 64, 96, 128, 192, 256)
SPLITS = (20, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048)
ROUNDINGS = (32, 64, 128, 256, 512, 1024)
DIVISIONS = (1, 2, 4, 8, 16)
# Requests below 8 MiB, below 64 MiB, and above: one number of divisions for each.
BANDS = (("4",), ("8", "16", "32"), (">",))
FRACTIONS = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95)
THRESHOLDS = (0.5, 0.6, 0.7, 0.8, 0.9)


def to_text(settings: Mapping[str, str]) -> str:
    """``key:value,…`` of settings by key: one text for equal ones."""
    known = [key for key in SEARCHED if key in settings]
    others = sorted(key for key in settings if key not in SEARCHED)
    return ",".join(f"{key}:{settings[key]}" for key in (*known, *others))


def from_text(text: str) -> dict[str, str]:
    """Settings by key of ``key:value,…``."""
    return AllocatorSpec("caching", text).settings_by_key()


def simplicity(text: str) -> tuple[int, int, str]:
    """What makes of two texts the simpler one: fewer keys, then fewer letters."""
    return (len(from_text(text)), len(text), text)


def export_line(settings: str, kept: Mapping[str, str]) -> str:
    """What a shell is told so that PyTorch takes `settings`; `kept` is what the program had."""
    return f"export {VARIABLE}={shlex.quote(to_text({**from_text(settings), **kept}))}"


@dataclass(frozen=True)
class RecordedSettings:
    """What a trace says of the settings it ran with.

    Args:
        own: those that decide where bytes go, as text; empty for the defaults.
        rules: the setting ``rules:…`` that a replay of it needs, as text; empty for none. It is
            ours, not PyTorch's.
        kept: those that decide nothing in a replay.
    """

    own: str
    rules: str
    kept: dict[str, str]

    @classmethod
    def of(cls, metadata: Mapping[str, Any]) -> RecordedSettings:
        """Those in a trace's metadata: text as in the variable, an object, or nothing."""
        found = (metadata.get("allocator") or {}).get("settings")
        settings = from_text(found) if isinstance(found, str) else {}
        if isinstance(found, Mapping):
            settings = {_value(key): _value(value) for key, value in found.items()}
        settings = {key: value for key, value in settings.items() if value}
        rules = settings.pop(RULES, "")
        if settings.get("backend") == "native":
            settings.pop("backend")
        kept = {
            key: settings.pop(key)
            for key in list(settings)
            if key in KEPT or key.startswith("pinned_")
        }
        # What is written out but is the default is no setting.
        for key, default in (
            ("expandable_segments", "False"),
            ("throw_on_cudamalloc_oom", "False"),
        ):
            if settings.get(key) == default:
                settings.pop(key)
        return cls(to_text(settings), f"{RULES}:{rules}" if rules else "", kept)

    def replayed(self, settings: str) -> str:
        """`settings` with what a replay of this trace needs besides."""
        return ",".join(text for text in (settings, self.rules) if text)


def _value(value: Any) -> str:
    """A JSON value in the syntax of the variable; empty for nothing."""
    if isinstance(value, Mapping):
        return f"[{','.join(f'{key}:{_value(one)}' for key, one in value.items())}]"
    return "" if value is None else "".join(str(value).split())


def unknown_keys(metadata: Mapping[str, Any], rules: str) -> tuple[str, ...]:
    """Keys that the PyTorch which made the trace is known, or likely, not to take."""
    found = re.match(r"(\d{1,4})\.(\d{1,4})", str((metadata.get("versions") or {}).get("torch")))
    if found:
        return NEW_KEYS if (int(found[1]), int(found[2])) < _KNOWS_NEW_KEYS else ()
    return NEW_KEYS if rules == f"{RULES}:address-order" else ()


class Trial(Protocol):
    """What of an optuna trial is used."""

    def suggest_int(self, name: str, low: int, high: int) -> int:
        """A number from `low` to `high`."""


class ChanceTrial:
    """A trial whose numbers are drawn evenly.

    Args:
        source: of chance.
    """

    def __init__(self, source: random.Random) -> None:
        self._source = source
        self.params: dict[str, int] = {}
        self.ranges: dict[str, tuple[int, int]] = {}

    def suggest_int(self, name: str, low: int, high: int) -> int:
        """A number from `low` to `high`; what was drawn is kept."""
        self.params[name] = self._source.randint(low, high)
        self.ranges[name] = (low, high)
        return self.params[name]


@dataclass(frozen=True)
class Space:
    """The settings worth trying.

    Args:
        without: keys left out.
        collections: pairs of memory fraction and garbage collection threshold that would do
            something; empty for none.
    """

    without: Sequence[str] = ()
    collections: Sequence[tuple[float, float]] = ()

    def has(self, key: str) -> bool:
        """Whether settings with `key` are tried."""
        return key not in self.without

    def admits(self, settings: str) -> bool:
        """Whether `settings` have no key that is left out."""
        return all(self.has(key) for key in from_text(settings))

    def draw(self, trial: Trial) -> str:
        """Settings for one trial; those that would do nothing together are never drawn.

        The search sees places in lists: neighbours there are neighbours in effect.
        """
        settings: dict[str, str] = {}
        expandable = self.has("expandable_segments") and trial.suggest_int("expandable", 0, 1) == 1
        if expandable:
            settings["expandable_segments"] = "True"
        large = LARGE_SEGMENT
        if self.has("large_segment_size_mb"):
            place = trial.suggest_int("large_segment", 0, len(LARGE_SEGMENTS) - 1)
            large = LARGE_SEGMENTS[place]
            settings["large_segment_size_mb"] = str(large)
        # A split limit with expandable segments is known to hurt; see docs/allocators.md.
        if not expandable and self.has("max_split_size_mb") and trial.suggest_int("split", 0, 1):
            # So is one that is no more than the large segment size.
            limit = SPLITS[trial.suggest_int("split_limit", 0, len(SPLITS) - 1)]
            settings["max_split_size_mb"] = str(max(limit, min(filter(large.__lt__, SPLITS))))
            if self.has("max_non_split_rounding_mb") and trial.suggest_int("rounding", 0, 1):
                place = trial.suggest_int("rounding_limit", 0, len(ROUNDINGS) - 1)
                settings["max_non_split_rounding_mb"] = str(max(ROUNDINGS[place], large))
        if self.has("roundup_power2_divisions"):
            settings["roundup_power2_divisions"] = _draw_divisions(trial)
        # Only whole segments are collected, which expandable ones never are.
        if not expandable and self.collections and trial.suggest_int("collect", 0, 1):
            place = trial.suggest_int("collection", 0, len(self.collections) - 1)
            settings |= collection_settings(*self.collections[place])
        return without_defaults(settings)


def _draw_divisions(trial: Trial) -> str:
    kind = trial.suggest_int("divisions", 0, 2)
    last = len(DIVISIONS) - 1
    if kind == 0:
        return divisions_text([1, 1, 1])
    if kind == 1:
        return divisions_text([DIVISIONS[trial.suggest_int("divisions_of_all", 1, last)]] * 3)
    names = ("small", "medium", "great")
    return divisions_text([DIVISIONS[trial.suggest_int(f"of_{name}", 0, last)] for name in names])


def divisions_text(bands: Sequence[int]) -> str:
    """The value of ``roundup_power2_divisions`` for one number of divisions for each of `BANDS`."""
    if len(set(bands)) == 1:
        return str(bands[0])
    pairs = zip(BANDS, bands, strict=True)
    listed = [f"{size}:{divisions}" for sizes, divisions in pairs for size in sizes]
    return f"[{','.join(listed)}]"


def collection_settings(fraction: float, threshold: float) -> dict[str, str]:
    """Settings of garbage collection."""
    return {
        "garbage_collection_threshold": f"{threshold:g}",
        "per_process_memory_fraction": f"{fraction:g}",
    }


def without_defaults(settings: Mapping[str, str]) -> str:
    """Settings as text, without those that say what holds anyway."""
    large = settings.get("large_segment_size_mb", str(LARGE_SEGMENT))
    defaults = {
        "large_segment_size_mb": str(LARGE_SEGMENT),
        "max_non_split_rounding_mb": large,
        "roundup_power2_divisions": "1",
    }
    return to_text({key: value for key, value in settings.items() if defaults.get(key) != value})


def useful_collections(
    capacity: int | None, peak_live: int, peak_reserved: int
) -> list[tuple[float, float]]:
    """Pairs of memory fraction and threshold that leave room and would collect something.

    Args:
        capacity: bytes that the device is known to have; None where it is not known.
        peak_live: bytes that no allocator does without.
        peak_reserved: bytes reserved with the defaults.
    """
    if capacity is None:
        return []
    return [
        (fraction, threshold)
        for fraction, threshold in itertools.product(FRACTIONS, THRESHOLDS)
        if peak_live <= fraction * capacity and threshold * fraction * capacity < peak_reserved
    ]


def grid(space: Space) -> list[str]:
    """About 40 settings that people use, the likeliest first, and some of them together."""
    found = dict.fromkeys(
        without_defaults(one) for one in _grid(space) if all(space.has(key) for key in one)
    )
    found.pop("", None)
    return list(found)


def _grid(space: Space) -> Iterator[dict[str, str]]:
    expandable = {"expandable_segments": "True"}
    yield expandable
    rounded = [[divisions] * 3 for divisions in (2, 4, 8, 16)] + [[1, 4, 8], [1, 8, 16], [4, 2, 2]]
    divisions = [{"roundup_power2_divisions": divisions_text(bands)} for bands in rounded]
    large = [{"large_segment_size_mb": str(size)} for size in (12, 16, 32, 64, 128)]
    for one in (*large, *divisions[:5]):
        yield expandable | one
    split = [{"max_split_size_mb": str(size)} for size in (32, 64, 128, 256, 512, 1024, 2048)]
    yield from large
    yield from split
    yield from divisions
    for limit, rounding in ((64, 128), (128, 256), (256, 512)):
        limits = {"max_split_size_mb": str(limit), "max_non_split_rounding_mb": str(rounding)}
        yield limits
    for one in (split[2], split[4]):
        yield one | divisions[2]
    for pair in _spread(space.collections, 4):
        yield collection_settings(*pair)


def _spread(pairs: Sequence[tuple[float, float]], count: int) -> list[tuple[float, float]]:
    """`count` of `pairs`, or all, evenly spread."""
    step = max(len(pairs) / count, 1.0)
    return [pairs[int(place * step)] for place in range(count) if int(place * step) < len(pairs)]
