"""PyTorch's own static plans: its planner, and the allocator that runs what it planned."""

from workbench.replay.references import Reference

_DEFECT = (
    "PyTorch's own planner (c10::AllocationPlanner) ended in {}, as it does where two free ranges "
    "have the same size, which is nearly every trace; plan with planner:greedy is the same without "
    "the defect"
)

REFERENCE = Reference(
    name="torch-plan",
    models="plan",
    summary="PyTorch's own c10::AllocationPlanner and c10::CPUProfilingAllocator, compiled against "
    "the installed torch",
    kind="cpu",
    source="torch_plan.cpp",
    libraries=("c10",),
    takes_system_memory=True,
    crashes={
        "SIGSEGV": _DEFECT.format("a segmentation fault"),
        "SIGABRT": _DEFECT.format("an abort"),
    },
)
