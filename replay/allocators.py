"""All that can be replayed against: the engine's allocators and the references, in one list."""

from __future__ import annotations

from typing import Any

from workbench.replay import _engine
from workbench.replay.cell import AllocatorSpec, quoted, split_settings
from workbench.replay.library_file import whole_path
from workbench.replay.references import Reference, references


def known_allocators() -> dict[str, dict[str, Any]]:
    """What the engine says of each allocator, by name, and the same of each reference."""
    known: dict[str, dict[str, Any]] = {info["name"]: {**info} for info in _engine.allocators()}
    for name, one in references().items():
        reason = one.unavailable()
        known[name] = {
            **known["pluggable"],  # what it runs as
            "name": name,
            "summary": one.summary,
            "kind": one.kind,
            "settings": dict(one.settings),
            "needs_library": False,
            "several_threads": one.several_threads,
            "latency_source": "reference",
            "available": not reason,
            "reason": reason,
        }
    return known


def reference_of(spec: AllocatorSpec) -> Reference | None:
    """The reference that `spec` names; None for an allocator of the engine."""
    return references().get(spec.name)


def runs_as(spec: AllocatorSpec, backend: str = "simulated") -> tuple[str, str]:
    """The engine's allocator and its settings that `spec` stands for; compiles a reference.

    Args:
        spec: what is asked for.
        backend: that it is going to run on.

    Raises:
        MissingPartError: a reference cannot be compiled here.
    """
    reference = reference_of(spec)
    if reference is None:
        return spec.name, _with_whole_path(spec)
    library = str(reference.library(backend))
    settings = f"library:{quoted(library)},abi:workbench"
    return "pluggable", settings + (f',config:"{spec.settings}"' if spec.settings else "")


def _with_whole_path(spec: AllocatorSpec) -> str:
    """The settings of `spec`, with the whole path of the library that they may name."""
    if spec.name != "pluggable" or "library" not in spec.settings_by_key():
        return spec.settings
    path = quoted(whole_path(spec.settings_by_key()["library"]))
    if '"' in path[1:-1]:  # a path that no settings can hold whole
        return spec.settings
    parts = split_settings(spec.settings)
    return ",".join(f"library:{path}" if one.startswith("library:") else one for one in parts)


def unfit_backend(spec: AllocatorSpec, backend: str) -> str:
    """Why `spec` cannot run on `backend`, which itself can be used; empty where it can."""
    reference = reference_of(spec)
    if reference is None or not reference.takes_system_memory or backend == "host":
        return ""
    return (
        "it takes its memory from the system by itself, so it runs on the backend host and not "
        f"on {backend}; replay it with --backend host"
    )
