"""A stand-in for the CUDA runtime (``cuda_stub.h``), compiled when it is needed."""

from __future__ import annotations

from pathlib import Path

from workbench.common.errors import MissingPartError
from workbench.common.torch_build import (
    CudaHeaders,
    TorchBuildError,
    compiled,
    find_cuda_headers,
)

FOLDER = Path(__file__).parent
INCLUDE = FOLDER.parent / "include"
"""Where ``workbench_allocator.h`` is, which ``cuda_stub.h`` includes."""
MAJOR = 13
"""The CUDA whose functions it has."""


def unfit(headers: CudaHeaders) -> str:
    """Why there is no stand-in for the CUDA of `headers`; empty where there is one."""
    if headers.major == MAJOR:
        return ""
    return (
        f"the stand-in for the CUDA runtime is one of CUDA {MAJOR}, and what is in "
        f"{headers.folder} is CUDA {headers.major}; install a torch built for CUDA {MAJOR}"
    )


def stub(headers: CudaHeaders | None = None) -> Path:
    """The compiled ``libcudart.so.13``; compiles it unless it is there.

    Args:
        headers: of CUDA; by default those of a toolkit.

    Raises:
        MissingPartError: there are no headers of that CUDA or no compiler, or it refused.
    """
    try:
        headers = headers or find_cuda_headers()
        if reason := unfit(headers):
            raise TorchBuildError(reason)
        name = f"libcudart.so.{MAJOR}"
        symbols = FOLDER / f"{name}.map"
        flags = [
            *("-std=c++20", "-O2", "-fPIC", "-shared", "-pthread"),
            *(f"-I{INCLUDE}", "-isystem", str(headers.folder)),
            *(f"-Wl,-soname,{name}", f"-Wl,--version-script={symbols}", "-Wl,--no-undefined"),
        ]
        return compiled(
            "cuda-stub",
            sorted(FOLDER.glob("*.cpp")),
            flags,
            headers=[*sorted(FOLDER.glob("*.h")), symbols, INCLUDE / "workbench_allocator.h"],
            file_name=name,
        )
    except TorchBuildError as error:
        raise MissingPartError(str(error)) from None
