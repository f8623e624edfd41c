"""PyTorch's own static plans: its planner, and the allocator that runs what it planned."""

from workbench.replay.references import Reference

REFERENCE = Reference(
    name="torch-plan",
    models="plan",
    summary="PyTorch's own c10::AllocationPlanner and c10::CPUProfilingAllocator, compiled against "
    "the installed torch",
    kind="cpu",
    source="torch_plan.cpp",
    libraries=("c10",),
    takes_system_memory=True,
    several_threads=False,
)
