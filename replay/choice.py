"""Which allocators a replay is of: what the user named, and what `all` stands for."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from workbench.common.errors import BrokenFileError, MissingPartError, UsageError
from workbench.replay import _engine
from workbench.replay.allocators import known_allocators, reference_of, runs_as, unfit_backend
from workbench.replay.cell import AllocatorSpec, choose_backend, is_hardware, parse_allocator
from workbench.replay.plans import plan_in_file


@dataclass
class Choice:
    """The allocators to replay against.

    Args:
        specs: all of them, none twice.
        named: those that the user asked for by name.
        left_out: those that `all` leaves out, each with its reason.
    """

    specs: list[AllocatorSpec] = field(default_factory=list)
    named: set[AllocatorSpec] = field(default_factory=set)
    left_out: list[tuple[str, str]] = field(default_factory=list)


def choose_allocators(
    texts: Sequence[str],
    backend: str | None = None,
    progress: Callable[[str, int, int], None] = lambda what, done, total: None,
) -> Choice:
    """What `texts` name; references among it are compiled.

    Args:
        texts: ``NAME[:key:value,…]``, or ``all``.
        backend: the backend asked for; None for each allocator's own.
        progress: called with what is being done, how far it is and how far it goes.

    Raises:
        UsageError: none named, an unknown one, or a setting that it does not take.
    """
    if not texts:
        raise UsageError("no allocator is named; add --allocator NAME, or --allocator all")
    infos = known_allocators()
    choice = Choice()
    specs: dict[AllocatorSpec, str] = {}
    for text in texts:
        if text == "all":
            for name, info in infos.items():
                spec = AllocatorSpec(name)
                reason = (
                    f"name one: {name}:LIB.so"
                    if info["needs_library"]
                    else info["reason"] or unfit_backend(spec, _backend(info, backend)["name"])
                )
                if reason:
                    choice.left_out.append((name, reason))
                else:
                    specs.setdefault(spec, name)
            continue
        spec = parse_allocator(text, list(infos))
        _backend(infos[spec.name], backend)
        specs.setdefault(spec, text)
        choice.named.add(spec)
    for done, (spec, text) in enumerate(specs.items()):
        if reference_of(spec) is not None:
            progress("Building", done, len(specs))
        try:
            _check_settings(text, spec, infos[spec.name], backend)
        except MissingPartError as error:
            if spec not in choice.named:
                choice.left_out.append((spec.name, str(error)))
                continue
        choice.specs.append(spec)
    return choice


def _backend(info: Mapping[str, Any], wanted: str | None) -> Mapping[str, Any]:
    return choose_backend(info["kind"], _engine.backends(), wanted)


def _check_settings(
    text: str, spec: AllocatorSpec, info: Mapping[str, Any], wanted: str | None
) -> None:
    """Have the engine read the settings, on no events, before any process is started."""
    import numpy as np

    backend = _backend(info, wanted)
    is_reference = reference_of(spec) is not None
    unknown = [key for key in spec.settings_by_key() if key not in info["settings"]]
    if unknown and is_reference:
        takes = ", ".join(info["settings"])
        takes = f"its settings are {takes}" if takes else "it takes none"
        raise UsageError(f"--allocator {text}: unknown setting {unknown[0]!r}; {takes}")
    if not (info["available"] and backend["available"]) or unfit_backend(spec, backend["name"]):
        return
    none = {"op": "u1", "slot": "i4", "size": "i8", "stream": "i4", "thread": "i4"}
    columns = {name: np.empty(0, dtype=dtype) for name, dtype in none.items()}
    allocator, settings = runs_as(spec, backend["name"])
    if is_hardware(backend):
        # Settings are read alike, and here nothing is taken of a card that is to be measured on.
        backend = choose_backend(info["kind"], _engine.backends(), "simulated")
    reference = reference_of(spec)
    if reference is not None and reference.cuda_allocator:
        # A process has one CUDA runtime, which is none of this one's: ours reads the same settings.
        allocator, settings = reference.models, spec.settings
        backend = choose_backend(info["kind"], _engine.backends(), "simulated")
    try:
        if info["needs_library"] or (is_reference and not spec.settings):
            # It is loaded in processes of its own only: what it does to them is its cell's result.
            _engine.check_settings(allocator, settings)
            return
        events = _engine.Events(**columns, slot_count=0)
        plan = plan_in_file(spec)
        _engine.Replay(events, allocator, settings, backend=backend["name"], plan=plan).memory(1)
    except (ValueError, UsageError, BrokenFileError, _engine.LibraryFault) as error:
        raise UsageError(f"--allocator {text}: {error}") from None
