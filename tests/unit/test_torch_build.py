"""The cache of compiled parts: what is damaged in it, and what killed compilers left."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from workbench.common import torch_build
from workbench.common.torch_build import (
    TorchBuildError,
    TorchInstall,
    build,
    find_compiler,
    is_whole,
)
from workbench.replay import _engine

TORCH = TorchInstall(Path("/nowhere"), "1.0", True)


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A part to compile, with a cache of its own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "part.cpp").write_text('extern "C" int seven() { return 7; }\n')
    return tmp_path / "part.cpp"


def made(source: Path) -> Path:
    try:
        find_compiler()
    except TorchBuildError:
        pytest.skip("needs a C++ compiler")
    return build("part", [source], libraries=(), torch=TORCH)


def test_a_damaged_part_is_compiled_again(source: Path) -> None:
    library = made(source)
    whole = library.read_bytes()
    for damaged in (b"", bytes(len(whole)), whole[: len(whole) // 4]):
        library.write_bytes(damaged)
        assert not is_whole(library)
        assert made(source) == library
        assert library.read_bytes() == whole


def test_what_stands_where_a_part_belongs_is_named(source: Path) -> None:
    library = made(source)
    library.unlink()
    library.mkdir()
    with pytest.raises(TorchBuildError, match=f"cannot be kept as {library}.*remove what is there"):
        made(source)


def test_what_killed_compilers_left_is_swept(source: Path) -> None:
    folder = made(source).parent
    for name, age in ((".old.so.1.part", 7200), (".young.so.2.part", 60)):
        (folder / name).touch()
        then = (folder / name).stat().st_mtime - age
        os.utime(folder / name, (then, then))
    source.write_text('extern "C" int eight() { return 8; }\n')
    made(source)
    assert [part.name for part in folder.glob(".*.part")] == [".young.so.2.part"]


def test_a_compiler_named_with_an_open_quote_is_said_to_be(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "g++ 'x")
    with pytest.raises(TorchBuildError, match="a quote that does not end; correct the variable"):
        find_compiler()


def test_our_own_libraries_are_whole() -> None:
    assert is_whole(Path(_engine.__file__))
    assert not is_whole(Path(torch_build.__file__))
