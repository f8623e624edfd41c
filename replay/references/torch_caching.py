"""PyTorch's own CUDA caching allocator, out of the installed torch's binary."""

from workbench.replay import _engine
from workbench.replay.references import Reference

_OURS = next(info for info in _engine.allocators() if info["name"] == "caching")

REFERENCE = Reference(
    name="torch-caching",
    models="caching",
    summary="PyTorch's own CUDA caching allocator (libc10_cuda.so), out of the installed torch",
    kind="device",
    source="torch_caching.cpp",
    libraries=("c10_cuda", "c10"),
    settings={key: "as of caching" for key in _OURS["settings"] if key != "rules"},
    cuda_allocator="native",
)
