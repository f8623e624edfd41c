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
    compiled,
    find_compiler,
    find_cuda_headers,
    find_cuda_runtime,
    find_torch,
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


def cuda_torch(site: Path, version: str = "2.13.0", cuda: str = "13.0") -> TorchInstall:
    """A torch built for CUDA, as its wheel lays it out: names without contents."""
    for name in ("lib/libc10.so", "lib/libc10_cuda.so", "include/c10/core/Allocator.h"):
        (site / "torch" / name).parent.mkdir(parents=True, exist_ok=True)
        (site / "torch" / name).touch()
    told = f"'{cuda}'" if cuda else "None"
    (site / "torch" / "version.py").write_text(
        f"__version__ = '{version}'\ncuda: Optional[str] = {told}\n"
    )
    return find_torch(site / "torch")


def cuda_headers(folder: Path, version: int) -> Path:
    (folder / "crt").mkdir(parents=True)
    (folder / "crt" / "host_defines.h").touch()
    (folder / "cuda_runtime_api.h").write_text(f"#define CUDART_VERSION  {version}\n")
    return folder


@pytest.fixture
def no_toolkit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A toolkit's place, with nothing in it."""
    monkeypatch.setenv("CUDA_HOME", str(tmp_path / "toolkit"))
    monkeypatch.setattr(torch_build, "TOOLKIT", tmp_path / "nowhere")
    monkeypatch.setattr(torch_build.shutil, "which", lambda name: None)
    return tmp_path / "toolkit"


def test_the_version_of_cuda_is_read(tmp_path: Path) -> None:
    assert cuda_torch(tmp_path / "a").cuda == "13.0"
    assert cuda_torch(tmp_path / "b", cuda="").cuda == ""


def test_headers_that_came_with_torch_are_taken_before_a_toolkits(
    tmp_path: Path, no_toolkit: Path
) -> None:
    torch = cuda_torch(tmp_path)
    toolkit = cuda_headers(no_toolkit / "include", 13010)
    assert find_cuda_headers(torch).folder == find_cuda_headers().folder == toolkit
    own = cuda_headers(tmp_path / "nvidia" / "cu13" / "include", 13000)
    assert find_cuda_headers(torch).folder == own
    assert find_cuda_headers(torch).major == 13
    (own / "crt" / "host_defines.h").unlink()
    assert find_cuda_headers(torch).folder == toolkit


def test_headers_of_another_cuda_will_not_do(tmp_path: Path, no_toolkit: Path) -> None:
    cuda_headers(no_toolkit / "include", 12080)
    assert find_cuda_headers().major == 12
    with pytest.raises(TorchBuildError, match=r"of CUDA 13 were .*`pip install 'nvidia-cuda-run"):
        find_cuda_headers(cuda_torch(tmp_path))


def test_a_build_for_the_cpu_is_told_what_to_install(tmp_path: Path) -> None:
    torch = cuda_torch(tmp_path, "2.13.0+cpu", cuda="")
    with pytest.raises(
        TorchBuildError, match=r"no GPU: `pip install --no-deps 'torch===2\.13\.0'`"
    ):
        find_cuda_headers(torch)


def test_the_runtime_is_beside_torch_or_in_the_toolkit(tmp_path: Path, no_toolkit: Path) -> None:
    torch = cuda_torch(tmp_path)
    cuda_headers(no_toolkit / "include", 13000)
    with pytest.raises(TorchBuildError, match=r"libcudart.so.13 was not found"):
        find_cuda_runtime(torch)
    for folder in (no_toolkit / "lib64", tmp_path / "nvidia" / "cu13" / "lib"):
        folder.mkdir(parents=True)
        (folder / "libcudart.so.13").touch()
        assert find_cuda_runtime(torch).parent == folder


def test_a_library_that_others_know_by_name_has_a_folder_of_its_own(source: Path) -> None:
    made(source)
    flags = ["-shared", "-fPIC"]
    libraries = [
        compiled("part", [source], [*flags, f"-DTURN={turn}"], file_name="libpart.so.1")
        for turn in range(2)
    ]
    assert [library.name for library in libraries] == ["libpart.so.1"] * 2
    assert libraries[0].parent != libraries[1].parent
    assert all(is_whole(library) for library in libraries)
