"""PyTorch's own caching allocator for pinned host memory."""

from workbench.replay.references import Reference

REFERENCE = Reference(
    name="torch-host-pinned",
    models="host-pinned",
    summary="PyTorch's own at::CachingHostAllocatorImpl over the workbench's memory and streams, "
    "compiled against the installed torch",
    kind="pinned",
    source="torch_host_pinned.cpp",
    libraries=("c10",),
    settings={
        "pinned_max_round_threshold_mb": "as of host-pinned",
        "pinned_max_cached_size_mb": "as of host-pinned",
        "pinned_reserve_segment_size_mb": "as of host-pinned",
    },
)
