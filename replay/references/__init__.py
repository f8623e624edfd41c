"""PyTorch's own allocators, compiled against the installed torch: what ours are held against.

A reference is two files in this folder: ``NAME.cpp``, a library for the engine's C interface
(``workbench_allocator.h``) around the original, and ``NAME.py``, which holds ``REFERENCE``. It is
found by being here. It is compiled when it is going to run, and kept for each version of torch.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Mapping, Sequence
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
        cuda_allocator: where it is made of torch's CUDA parts, what these call it: ``native`` or
            ``cudaMallocAsync``. On the backend ``cuda`` it is compiled over the real runtime,
            elsewhere over the stand-in (`workbench.replay.cuda_stub`), which takes memory and
            streams from the backend.
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
    cuda_allocator: str = ""

    def unavailable(self) -> str:
        """Why it cannot run here; empty where it can."""
        return _missing() or (_missing_cuda() if self.cuda_allocator else "")

    def versions(self) -> dict[str, str]:
        """Of torch, and of the compiler; empty where one is missing."""
        return dict(_versions())

    def library(self, backend: str = "simulated") -> Path:
        """The compiled library; compiles it unless it is there.

        Args:
            backend: that it is going to run on; with a `cuda_allocator` there are two.

        Raises:
            MissingPartError: torch or a compiler is missing, or the compiler refused.
        """
        name = Path(self.source).stem
        try:
            if self.cuda_allocator:
                return self._cuda_library(name, backend == "cuda")
            return self._build(name)
        except TorchBuildError as error:
            raise MissingPartError(str(error)) from None

    def _cuda_library(self, name: str, on_cuda: bool) -> Path:
        """What loads the original when it runs, compiled with its path in it."""
        if on_cuda:
            name += "-cuda"
            original = self._build(name, shared=[find_cuda_runtime(find_torch())], uses_cuda=True)
        else:
            original = self._build(
                name,
                headers=[cuda_stub.FOLDER / "cuda_stub.h"],
                includes=[cuda_stub.FOLDER],
                defines=["WORKBENCH_OVER_STUB"],
                shared=[cuda_stub.stub(find_cuda_headers(find_torch()))],
                uses_cuda=True,
            )
        return build(
            f"{name}-entry",
            [FOLDER / "torch_cuda_entry.cpp"],
            headers=[HEADER],
            includes=[HEADER.parent],
            defines=[
                f'WORKBENCH_ORIGINAL="{original}"',
                f'WORKBENCH_BACKEND="{self.cuda_allocator}"',
            ],
            libraries=(),
        )

    def _build(
        self,
        name: str,
        *,
        headers: Sequence[Path] = (),
        includes: Sequence[Path] = (),
        defines: Sequence[str] = (),
        shared: Sequence[Path] = (),
        uses_cuda: bool = False,
    ) -> Path:
        return build(
            name,
            [FOLDER / self.source],
            headers=[HEADER, *sorted(FOLDER.glob("*.h")), *headers],
            includes=[HEADER.parent, *includes],
            defines=defines,
            libraries=self.libraries,
            shared=shared,
            uses_cuda=uses_cuda,
        )


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
