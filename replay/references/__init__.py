"""PyTorch's own allocators, compiled against the installed torch: what ours are held against.

A reference is two files in this folder: ``NAME.cpp``, a library for the engine's C interface
(``workbench_allocator.h``) around the original, and ``NAME.py``, which holds ``REFERENCE``. It is
found by being here. It is compiled when it is going to run, and kept for each version of torch.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from workbench.common.errors import MissingPartError
from workbench.common.torch_build import (
    TorchBuildError,
    build,
    compiler_version,
    find_compiler,
    find_cuda_headers,
    find_cuda_runtime,
    find_torch,
)
from workbench.replay import cuda_stub

FOLDER = Path(__file__).parent
HEADER = FOLDER.parent / "include" / "workbench_allocator.h"


@dataclass(frozen=True)
class Reference:
    """One of PyTorch's own allocators.

    Args:
        name: ``torch-…``.
        models: the name of ours that it is the original of.
        summary: what it is, in a line.
        kind: of memory: ``cpu``, ``pinned`` or ``device``.
        source: the C++ file in this folder.
        libraries: of torch, to link with.
        settings: what it takes, each with its meaning.
        takes_system_memory: whether it asks the system for memory by itself, so that only the
            backend ``host`` will do and no capacity holds it.
        several_threads: whether several threads may call it at once.
        needs_cuda: whether it is made of torch's CUDA parts: over the real runtime on the backend
            ``cuda``, elsewhere over the stand-in (`workbench.replay.cuda_stub`), which takes memory
            and streams from the backend.
    """

    name: str
    models: str
    summary: str
    kind: str
    source: str
    libraries: tuple[str, ...]
    settings: Mapping[str, str] = field(default_factory=dict)
    takes_system_memory: bool = False
    several_threads: bool = True
    needs_cuda: bool = False

    def unavailable(self) -> str:
        """Why it cannot run here; empty where it can."""
        return _missing() or (_missing_cuda() if self.needs_cuda else "")

    def versions(self) -> dict[str, str]:
        """Of torch, and of the compiler; empty where one is missing."""
        return dict(_versions())

    def library(self, backend: str = "simulated") -> Path:
        """The compiled library; compiles it unless it is there.

        Args:
            backend: that it is going to run on; there are two of what `needs_cuda`.

        Raises:
            MissingPartError: torch or a compiler is missing, or the compiler refused.
        """
        name = Path(self.source).stem
        headers = [HEADER, *sorted(FOLDER.glob("*.h"))]
        includes = [HEADER.parent]
        shared: list[Path] = []
        defines: list[str] = []
        try:
            if self.needs_cuda and backend == "cuda":
                shared = [find_cuda_runtime(find_torch())]
                name += "-cuda"
            elif self.needs_cuda:
                shared = [cuda_stub.stub(find_cuda_headers(find_torch()))]
                headers.append(cuda_stub.FOLDER / "cuda_stub.h")
                includes.append(cuda_stub.FOLDER)
                defines.append("WORKBENCH_OVER_STUB")
            return build(
                name,
                [FOLDER / self.source],
                headers=headers,
                includes=includes,
                defines=defines,
                libraries=self.libraries,
                shared=shared,
                uses_cuda=self.needs_cuda,
            )
        except TorchBuildError as error:
            raise MissingPartError(str(error)) from None


@cache
def references() -> dict[str, Reference]:
    """All of them, by name.

    Raises:
        ImportError: two have the same name.
    """
    found: dict[str, Reference] = {}
    for module in pkgutil.iter_modules([str(FOLDER)]):
        reference = importlib.import_module(f"{__name__}.{module.name}").REFERENCE
        if reference.name in found:
            raise ImportError(f"two references have the name {reference.name!r}")
        found[reference.name] = reference
    return dict(sorted(found.items()))


@cache
def _versions() -> dict[str, str]:
    try:
        return {"torch": find_torch().version, "compiler": compiler_version()}
    except TorchBuildError:
        return {}


@cache
def _missing() -> str:
    try:
        find_torch()
        find_compiler()
    except TorchBuildError as error:
        return str(error)
    return ""


@cache
def _missing_cuda() -> str:
    try:
        found = find_cuda_headers(find_torch())
    except TorchBuildError as error:
        return str(error)
    return cuda_stub.unfit(found)
