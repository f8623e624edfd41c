"""The backend ``cuda`` over the stand-in for the CUDA runtime, in processes of their own."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
from libraries import ROOT, build_library

from workbench.common.errors import MissingPartError
from workbench.common.torch_build import TorchBuildError, find_cuda_headers
from workbench.replay import _engine, cuda_stub

LIBRARY = "libworkbench_cuda.so"


@dataclass(frozen=True)
class OverStub:
    """What a process needs for it.

    Args:
        environment: variables to add.
        kernels: a library to load first, with our kernels as functions of this machine.
    """

    environment: dict[str, str]
    kernels: Path


def over_stub(folder: Path) -> OverStub:
    """Build what is needed in `folder`; skips the test, with the reason, where that cannot be."""
    if not (Path(_engine.__file__).parent / LIBRARY).exists():
        pytest.skip("the workbench was built without a CUDA toolkit")
    try:
        stub = cuda_stub.stub()
        headers = find_cuda_headers()
    except (MissingPartError, TorchBuildError) as error:
        pytest.skip(str(error))
    kernels = build_library(
        ROOT / "tests" / "cpp" / "cuda_kernels_on_host.cpp",
        folder,
        *("-std=c++20", f"-I{cuda_stub.FOLDER}", "-isystem", str(headers.folder)),
        *(str(stub), f"-Wl,-rpath,{stub.parent}"),
    )
    environment = {
        "LD_LIBRARY_PATH": str(stub.parent),
        "WB_CUDA_STUB_MEMORY": "host",
        "WB_CUDA_STUB_BYTES": str(4 << 30),
    }
    return OverStub(environment, kernels)
