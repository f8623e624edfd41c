"""Allocator Workbench: record a PyTorch program's allocations, replay them, compare allocators.

The names below are loaded on first use, so that importing the package costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec

from workbench.common.version import __version__

# Not imported: `typing` takes a while to load, in which Ctrl-C would print where it struck.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from workbench.api import fit, import_file, include_folder, mark_step, record, replay, tune, why
    from workbench.common.errors import WorkbenchError


_HOME = {
    "WorkbenchError": "workbench.common.errors",
    "fit": "workbench.api",
    "import_file": "workbench.api",
    "include_folder": "workbench.api",
    "mark_step": "workbench.api",
    "record": "workbench.api",
    "replay": "workbench.api",
    "tune": "workbench.api",
    "why": "workbench.api",
}

if find_spec("workbench.recorders") is None:
    raise ImportError(
        f"this is the folder of workbench's sources, {__path__[0]}, not the installed package; "
        "run Python in another folder, or with -P"
    )

__all__ = [
    "WorkbenchError",
    "__version__",
    "fit",
    "import_file",
    "include_folder",
    "mark_step",
    "record",
    "replay",
    "tune",
    "why",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'workbench' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return __all__
