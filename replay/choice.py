"""Which allocators a replay is of: what the user named, and what `all` stands for."""

from __future__ import annotations

from collections.abc import Sequence

from workbench.common.errors import UsageError
from workbench.replay import _engine
from workbench.replay.cell import AllocatorSpec, choose_backend, parse_allocator
from workbench.replay.plans import plan_in_file


def choose_allocators(
    texts: Sequence[str], backend: str | None = None
) -> tuple[list[AllocatorSpec], list[tuple[str, str]]]:
    """The allocators named by `texts`, and those that `all` leaves out, each with its reason.

    Raises:
        UsageError: none named, an unknown one, or a setting that it does not take.
    """
    if not texts:
        raise UsageError("no allocator is named; add --allocator NAME, or --allocator all")
    infos = {info["name"]: info for info in _engine.allocators()}
    specs: dict[AllocatorSpec, None] = {}
    left_out = []
    for text in texts:
        if text == "all":
            for name, info in infos.items():
                if info["available"]:
                    specs[AllocatorSpec(name)] = None
                else:
                    left_out.append((name, str(info["reason"])))
            continue
        spec = parse_allocator(text, list(infos))
        info = infos[spec.name]
        chosen = choose_backend(info["kind"], _engine.backends(), backend)
        if info["available"] and chosen["available"]:
            _check_settings(text, spec, chosen["name"])
        specs[spec] = None
    return list(specs), left_out


def _check_settings(text: str, spec: AllocatorSpec, backend: str) -> None:
    """Have the engine read the settings, on no events, before any process is started."""
    import numpy as np

    none = {"op": "u1", "slot": "i4", "size": "i8", "stream": "i4", "thread": "i4"}
    columns = {name: np.empty(0, dtype=dtype) for name, dtype in none.items()}
    try:
        events = _engine.Events(**columns, slot_count=0)
        plan = plan_in_file(spec)
        _engine.Replay(events, spec.name, spec.settings, backend=backend, plan=plan).memory(1)
    except ValueError as error:
        raise UsageError(f"--allocator {text}: {error}") from None
