"""PyTorch's own exact-size CPU cache."""

from workbench.replay.references import Reference

REFERENCE = Reference(
    name="torch-cpu-caching",
    models="cpu-caching",
    summary="PyTorch's own c10::CPUCachingAllocator, compiled against the installed torch",
    kind="cpu",
    source="torch_cpu_caching.cpp",
    libraries=("c10",),
    takes_system_memory=True,
)
