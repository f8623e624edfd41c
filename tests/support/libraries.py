"""Shared libraries for the tests, built with the system's compiler."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

import workbench

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "arena_allocator.c"
HOSTILE = ROOT / "tests" / "data" / "hostile"


def build_library(source: Path, folder: Path, *options: str) -> Path:
    """The library built from a C or C++ file, in `folder`; `options` go to the compiler."""
    compiler = shutil.which("cc" if source.suffix == ".c" else "c++")
    if compiler is None:
        pytest.skip("needs a C and a C++ compiler")
    library = folder / f"{source.stem}.so"
    command = [compiler, "-shared", "-fPIC", "-O1", "-Wall", "-Wextra", "-Werror"]
    command += [f"-I{workbench.include_folder()}", str(source), "-o", str(library), *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return library
