"""The stand-in for the CUDA runtime by itself: a program that uses it, on each kind of device."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from libraries import ROOT

from workbench.common.errors import MissingPartError
from workbench.common.torch_build import CudaHeaders, find_compiler, find_cuda_headers
from workbench.replay import cuda_stub
from workbench.replay.cuda_stub import INCLUDE, stub, unfit

SOURCE = ROOT / "tests" / "data" / "cuda_stub_program.cpp"
DEVICE = {"WB_CUDA_STUB_BYTES": str(256 * 2**20), "WB_CUDA_STUB_DEVICES": "2"}


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Compiled, and linked with the stand-in."""
    try:
        library = stub()
    except MissingPartError as error:
        pytest.skip(str(error))
    made = tmp_path_factory.mktemp("cuda_stub") / "program"
    command = [*find_compiler(), "-std=c++20", "-O1", "-Wall", "-Wextra", "-Werror", "-pthread"]
    command += ["-isystem", str(find_cuda_headers().folder), f"-I{INCLUDE}"]
    command += [f"-I{cuda_stub.FOLDER}", str(SOURCE), str(library), "-o", str(made)]
    done = subprocess.run(
        [*command, f"-Wl,-rpath,{library.parent}"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return made


@pytest.mark.parametrize("completion", ["immediate", "waited"])
@pytest.mark.parametrize("memory", ["none", "host"])
def test_it_does_what_programs_count_on(program: Path, memory: str, completion: str) -> None:
    done = subprocess.run(
        [program, memory, completion],
        env=os.environ
        | DEVICE
        | {"WB_CUDA_STUB_MEMORY": memory, "WB_CUDA_STUB_COMPLETION": completion},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_a_device_that_cannot_be_is_refused(program: Path) -> None:
    done = subprocess.run(
        [program, "none", "immediate"],
        env=os.environ | {"WB_CUDA_STUB_BYTES": "much"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert "WB_CUDA_STUB_BYTES=much will not do; give a number from 1 to" in done.stderr


def test_another_cuda_has_no_stand_in() -> None:
    assert "built for CUDA 13" in unfit(CudaHeaders(Path("/nowhere"), 12))
    with pytest.raises(MissingPartError, match="is CUDA 12; install a torch"):
        stub(CudaHeaders(Path("/nowhere"), 12))
