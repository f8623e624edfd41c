"""What one measurement is: the cell, its defaults, and the names users give its parts."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import PurePath
from typing import Any

from workbench.common.errors import UsageError
from workbench.replay.profiles import Profile

DEFAULT_DEVICE_CAPACITY = 80 * 2**30
ORDERS = ("global", "handoff", "free")
LONGEST_TIMEOUT = 1_000_000  # seconds; the system waits a little over twice that at most
_DELAY = re.compile(r"delay:([0-9]{1,19})")
_UNSAFE = re.compile(r"[^A-Za-z0-9_=+-]+")
_KEY = re.compile(r"[A-Za-z_]\w*:")
# What a value can hold in double quotes only; a comma in square brackets needs none.
_NEEDS_QUOTES = re.compile(r"[\s,\[\]]")
_IN_BRACKETS = re.compile(r"\[[^\s\[\]]*\]")
# Where PyTorch looks for the settings of its caching allocator; the first that is set counts.
SETTINGS_VARIABLES = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")


@dataclass(frozen=True)
class AllocatorSpec:
    """An allocator and its settings, as given on the command line.

    Args:
        name: one of the engine's allocators.
        settings: ``key:value,…`` in the syntax of ``PYTORCH_ALLOC_CONF``; empty for the defaults.
    """

    name: str
    settings: str = ""

    @property
    def label(self) -> str:
        """What tables and charts call it: ``caching (max_split_size_mb:64)``."""
        return f"{self.name} ({self.settings})" if self.settings else self.name

    def settings_by_key(self) -> dict[str, str]:
        """The settings as a mapping; values without the quotes they may be in."""
        parts = (part.partition(":") for part in split_settings(self.settings))
        return {key: unquoted(value) for key, _, value in parts}


def split_settings(text: str) -> list[str]:
    """Each ``key:value`` of `text`, as the engine reads them: without blanks outside quotes.

    A value may hold commas inside square brackets; one in double quotes holds anything but those.
    """
    return _split(text)[0]


def _split(text: str) -> tuple[list[str], str]:
    """The settings in `text`, and what is wrong with its quotes or brackets; empty if nothing."""
    parts = [""]
    depth, in_quotes = 0, False
    for letter in text:
        part = parts[-1]
        if in_quotes or letter == '"':
            begins = part == "" or part.find(":") == len(part) - 1
            in_quotes = letter != '"' if in_quotes else begins
        elif letter == "," and depth <= 0:
            parts.append("")
            continue
        elif letter.isspace():
            continue
        else:
            depth += (letter == "[") - (letter == "]")
        parts[-1] += letter
    problem = "a bracket that is not closed" if depth > 0 else ""
    problem = "a quote that does not end" if in_quotes else problem
    return [part for part in parts if part], problem


def unquoted(value: str) -> str:
    """A setting's value without the double quotes around it, if there are any."""
    is_quoted = value.startswith('"') and value.find('"', 1) == len(value) - 1
    return value[1:-1] if is_quoted else value


def quoted(value: str) -> str:
    """A setting's value in double quotes where it needs them."""
    needs = _NEEDS_QUOTES.search(value) and not _IN_BRACKETS.fullmatch(value)
    return f'"{value}"' if needs else value


def parse_allocator(text: str, known: Sequence[str]) -> AllocatorSpec:
    """The allocator named by ``NAME[:key:value,…]``.

    ``caching:env`` stands for the settings in the environment, where PyTorch would find them, and
    ``pluggable:LIB.so`` for ``pluggable:library:LIB.so``.

    Raises:
        UsageError: no allocator of that name; the message suggests the nearest. Or no settings in
            the environment, or a quote or bracket without its other end.
    """
    try:
        text.encode()
    except UnicodeEncodeError:
        raise UsageError(
            f"--allocator {text!r}: this is not text in UTF-8; write it again"
        ) from None
    name, _, settings = text.partition(":")
    name = name.strip()
    if name not in known:
        nearest = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
        hint = f"did you mean {nearest[0]!r}?" if nearest else f"known are {', '.join(known)}, all"
        raise UsageError(
            f"--allocator {text!r}: there is no allocator {name!r}; {hint} "
            "(wb allocators lists them)"
        )
    if name == "caching" and settings.strip() == "env":
        settings = _environment_settings(text)
    parts, problem = _split(settings)
    if problem:
        raise UsageError(
            f"--allocator {text!r}: this has {problem}; write its other end, or put a path or "
            "configuration that holds it in double quotes"
        )
    if name == "pluggable" and parts and not _KEY.match(parts[0]):
        parts[0] = f"library:{parts[0]}"
    # One text for equal settings.
    parts = [_plainly(part) for part in parts]
    return AllocatorSpec(name, ",".join(sorted(parts)))


def _plainly(part: str) -> str:
    key, colon, value = part.partition(":")
    plain = unquoted(value)
    return part if plain == value else key + colon + quoted(plain)


def _environment_settings(text: str) -> str:
    for variable in SETTINGS_VARIABLES:
        if variable in os.environ:
            return os.environ[variable]
    raise UsageError(
        f"--allocator {text!r}: neither {' nor '.join(SETTINGS_VARIABLES)} is set; set one, or "
        "write the settings after the colon"
    )


def check_completion(text: str) -> str:
    """`text` if it says when work on a stream completes.

    Raises:
        UsageError: none of ``recorded``, ``immediate``, ``never``, ``delay:N``.
    """
    delay = _DELAY.fullmatch(text)
    if text not in ("recorded", "immediate", "never") and not (delay and int(delay[1]) < 2**63):
        raise UsageError(
            f"--completion {text!r} is not known; write recorded, immediate, never or delay:N "
            "with a number of events N"
        )
    return text


def check_order(text: str) -> str:
    """`text` if it says in which order the recorded threads make their calls.

    Raises:
        UsageError: none of ``global``, ``handoff``, ``free``.
    """
    if text not in ORDERS:
        raise UsageError(f"--order {text!r} is not known; write {', '.join(ORDERS[:-1])} or free")
    return text


def check_timeout(seconds: float) -> None:
    """Refuse what is no time to wait.

    Raises:
        UsageError: not above 0, or longer than can be waited.
    """
    if not 0 < seconds <= LONGEST_TIMEOUT:
        raise UsageError(
            f"--timeout {seconds:g} is not a time; write seconds above 0, up to {LONGEST_TIMEOUT:,}"
        )


def device_kind(device: str) -> str:
    """``cpu``, ``pinned`` or ``device`` for a device's name in a trace, such as ``cuda:0``."""
    return device if device in ("cpu", "pinned") else "device"


@dataclass(frozen=True)
class Capacity:
    """How much the backend may hand out.

    Args:
        bytes: the limit; None for no limit.
        source: where it came from: ``option``, ``trace``, ``default``, ``unlimited``, or
            ``device``: what is free on it, less a margin.
    """

    bytes: int | None
    source: str

    def __str__(self) -> str:
        """Exact, as in ``80GiB``: different capacities read differently."""
        if self.bytes is None:
            return "free" if self.source == "device" else "unlimited"
        for unit, size in (("GiB", 2**30), ("MiB", 2**20)):
            if self.bytes % size == 0:
                return f"{self.bytes // size}{unit}"
        return f"{self.bytes}B"


@dataclass(frozen=True)
class Cell:
    """One measurement: trace x device in it x allocator x settings x backend x capacity x
    completion x order x profile.
    """

    trace: str
    device: str
    allocator: AllocatorSpec
    kind: str
    backend: str
    capacity: Capacity
    completion: str = "recorded"
    after_oom: str = "stop"
    order: str = "global"
    profile: Profile | None = None
    backend_is_model: bool = field(default=False, compare=False)
    latency_source: str = field(default="ours", compare=False)
    is_model: bool = field(default=False, compare=False)

    @property
    def as_if(self) -> bool:
        """Whether traffic of one kind of memory is replayed through an allocator of another."""
        return device_kind(self.device) != self.kind

    @property
    def profile_settings(self) -> dict[str, str]:
        """Settings that the allocator has from the profile: of the pool's model, if it has one."""
        if self.profile is None or self.allocator.name != "async":
            return {}
        given = self.allocator.settings_by_key()
        found = self.profile.pool_settings()
        return {key: value for key, value in found.items() if key not in given}

    @property
    def replayed(self) -> AllocatorSpec:
        """The allocator with all its settings; those that the user gave go before the profile's."""
        more = [f"{key}:{value}" for key, value in self.profile_settings.items()]
        return AllocatorSpec(
            self.allocator.name, ",".join([*split_settings(self.allocator.settings), *more])
        )

    def key(self, fingerprint: str) -> dict[str, Any]:
        """What makes two results results of the same cell; `fingerprint` is the traffic's."""
        return {
            "fingerprint": fingerprint,
            "device": self.device,
            "allocator": self.allocator.name,
            "settings": self.allocator.settings_by_key(),
            "backend": self.backend,
            "capacity": self.capacity.bytes,
            "completion": self.completion,
            "after_oom": self.after_oom,
            # Results from before there was another order have none.
            **({} if self.order == "global" else {"order": self.order}),
            **({} if self.profile is None else {"profile": self.profile.digest}),
        }

    def name(self, trace_name: str) -> str:
        """The name of the cell's folder; `trace_name` stands for the trace."""
        allocator = self.allocator.name
        if self.allocator.settings:
            allocator += f"-{self.allocator.settings}"
        parts = [trace_name, self.device, allocator, self.backend, str(self.capacity)]
        if self.completion != "recorded":
            parts.append(self.completion)
        if self.after_oom != "stop":
            parts.append("after-oom-continue")
        if self.order != "global":
            parts.append(f"order-{self.order}")
        if self.profile is not None:
            parts.append(f"profile-{self.profile.name}")
        return slug(parts)


def slug(parts: Sequence[str]) -> str:
    """A file name made of `parts`.

    Characters that are safe in every file system are kept. Where a name is cut short, or had
    characters other than separators, a digest of the original tells it from its likes.
    """
    # A folder whose name began with a dot would be hidden.
    name = ".".join(_UNSAFE.sub("-", part).strip("-") or "_" for part in parts)
    plain = [re.sub(r"[:,. ]", "-", part) for part in parts]
    if len(name) > 120 or any(not part or _UNSAFE.search(part) for part in plain):
        digest = blake2b("\0".join(parts).encode(), digest_size=4).hexdigest()
        name = f"{name[:120]}.{digest}"
    return name


def trace_name(path: str) -> str:
    """A short name for the trace at `path`; a rank's file is named with its folder."""
    pure = PurePath(path)
    if "=" in pure.stem and pure.parent.name:
        return f"{pure.parent.name}-{pure.stem}"
    return pure.stem


def choose_device(kind: str, bytes_by_device: Mapping[str, int], wanted: str | None) -> str:
    """The device of the trace whose traffic is replayed.

    Args:
        kind: the allocator's kind of memory: ``cpu``, ``pinned`` or ``device``.
        bytes_by_device: bytes allocated over the whole trace, by the device's name.
        wanted: the device asked for, if any.

    Raises:
        UsageError: the trace has no such device.
    """
    if wanted is not None:
        if wanted not in bytes_by_device:
            raise UsageError(
                f"--device {wanted!r} is not in the trace; it has "
                f"{', '.join(sorted(bytes_by_device)) or 'no device'}"
            )
        return wanted
    # Ties are broken by name, so that the choice does not depend on the order of rows.
    by_bytes = sorted(bytes_by_device, key=lambda name: (-bytes_by_device[name], name))
    own = [name for name in by_bytes if device_kind(name) == kind]
    if own or by_bytes:
        return (own or by_bytes)[0]
    return "cuda:0" if kind == "device" else kind


def choose_backend(
    kind: str, backends: Sequence[Mapping[str, Any]], wanted: str | None
) -> Mapping[str, Any]:
    """The backend to replay on, as the engine describes it.

    Raises:
        UsageError: no backend of that name.
    """
    by_name = {backend["name"]: backend for backend in backends}
    if wanted is not None:
        if wanted not in by_name:
            nearest = difflib.get_close_matches(wanted, by_name, n=1, cutoff=0.5)
            hint = f"did you mean {nearest[0]!r}?" if nearest else f"known are {', '.join(by_name)}"
            raise UsageError(f"--backend: there is no backend {wanted!r}; {hint}")
        return by_name[wanted]
    if kind in ("cpu", "pinned"):
        return by_name["host"]
    cuda = by_name.get("cuda")
    return cuda if cuda is not None and cuda["available"] else by_name["simulated"]


def is_hardware(backend: Mapping[str, Any]) -> bool:
    """Whether a backend, as the engine describes it, is a real device."""
    return bool(backend["name"] == "cuda")


def choose_capacity(
    kind: str, device: str, device_info: Any, wanted: int | None, *, is_hardware: bool = False
) -> Capacity:
    """How much memory the cell has.

    Args:
        kind: the allocator's kind of memory.
        device: the device in the trace.
        device_info: what the trace's metadata says of that device, or None.
        wanted: bytes asked for, if any.
        is_hardware: whether it is replayed on a real device, which knows what it has.

    Raises:
        UsageError: the trace says that others held all of the device's memory.
    """
    if wanted is not None:
        return Capacity(wanted, "option")
    total = (device_info or {}).get("capacity")
    # The capacity of another kind of memory says nothing about this one.
    if device_kind(device) == kind and total is not None:
        held = device_info.get("held_by_others") or 0
        if total <= held:
            raise UsageError(
                f"the trace says that {device!r} had {total} bytes of which others held {held}, "
                "which leaves nothing to replay in; say how much there is with --capacity"
            )
        return Capacity(total - held, "trace")
    left = (device_info or {}).get("left_to_pytorch")
    if device_kind(device) == kind and left:
        return Capacity(left, "trace")
    if kind in ("cpu", "pinned"):
        return Capacity(None, "unlimited")
    if is_hardware:
        return Capacity(None, "device")
    return Capacity(DEFAULT_DEVICE_CAPACITY, "default")
