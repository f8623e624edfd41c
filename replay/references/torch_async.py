"""PyTorch's own allocator over the driver's memory pool, out of the installed torch's binary."""

from workbench.replay.references import Reference

REFERENCE = Reference(
    name="torch-async",
    models="async",
    summary="PyTorch's own allocator over cudaMallocAsync (libc10_cuda.so), out of the installed "
    "torch",
    kind="device",
    source="torch_async.cpp",
    libraries=("c10_cuda", "c10"),
    settings={"per_process_memory_fraction": "as of async"},
    cuda_allocator="cudaMallocAsync",
)
