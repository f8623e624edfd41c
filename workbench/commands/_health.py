"""What ``wb doctor`` looks at: one function for each part of the machine."""

from __future__ import annotations

import os
import resource
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from workbench.common.units import format_bytes

State = Literal["ok", "note", "broken"]
# Spool files and Parquet of a long recording take some space.
_LITTLE_SPACE = 2**30


@dataclass(frozen=True)
class Finding:
    """One line of the table.

    Args:
        part: what was looked at.
        state: ``ok``; ``note`` for what is missing or makes timings unsteady; ``broken`` for what
            the workbench cannot work without.
        found: what is there.
        meaning: what that means for the user, and the remedy; empty where all is well.
    """

    part: str
    state: State
    found: str
    meaning: str = ""


def examine() -> list[Finding]:
    """Everything, in the order it is shown."""
    return [*_packages(), *_recording(), *_replaying(), *_kernel(), *_disk()]


def _packages() -> Iterator[Finding]:
    from workbench.replay.machine import package_versions

    needed = ("numpy", "pandas", "plotly", "psutil", "pyarrow", "rich", "typer")
    versions = package_versions(needed)
    yield Finding("python", "ok", f"{versions.pop('python')} ({sys.executable})")
    missing = [name for name in needed if name not in versions]
    yield Finding(
        "packages",
        "broken" if missing else "ok",
        ", ".join(f"{name} {version}" for name, version in versions.items()),
        f"not installed: {', '.join(missing)}; run pip install allocator-workbench"
        if missing
        else "",
    )


def _recording() -> Iterator[Finding]:
    from workbench.common.torch_build import TorchBuildError, find_compiler, find_torch

    if sys.platform != "linux":
        yield Finding("recording", "note", sys.platform, "recording works on Linux only")
        return
    without = "nothing can be recorded here (replaying works): "
    try:
        torch = find_torch()
        yield Finding("torch", "ok", torch.version)
    except TorchBuildError as error:
        yield Finding("torch", "note", "none that can be recorded", f"{without}{error}")
    try:
        yield Finding("compiler", "ok", " ".join(find_compiler()))
    except TorchBuildError as error:
        yield Finding("compiler", "note", "none", f"{without}{error}")


def _replaying() -> Iterator[Finding]:
    try:
        from workbench.replay import _engine
        from workbench.replay.allocators import known_allocators
    except ImportError as error:
        yield Finding("engine", "broken", "does not load", f"install the package again: {error}")
        return
    for what, known in (
        ("allocator", known_allocators().values()),
        ("backend", _engine.backends()),
    ):
        for one in known:
            yield Finding(
                f"{what} {one['name']}",
                "ok" if one["available"] else "note",
                one["summary"],
                one["reason"],
            )
    yield _profiles()


def _profiles() -> Finding:
    """What prices driver calls where there is no GPU."""
    from workbench.replay.profiles import shipped

    names = ", ".join(shipped())
    return Finding(
        "profiles of driver calls",
        "ok",
        names or "none comes with this version",
        "" if names else "wb calibrate -o FILE measures one on a machine with a GPU",
    )


def _kernel() -> Iterator[Finding]:
    from workbench.replay.machine import cpu_governor, transparent_huge_pages, usable_cores

    source = Path("/sys/devices/system/clocksource/clocksource0/current_clocksource")
    clock = source.read_text(encoding="utf-8").strip() if source.exists() else "unknown"
    processor = Path("/proc/cpuinfo")
    flags = processor.read_text(errors="replace").split() if processor.exists() else []
    steady = "constant_tsc" in flags and "nonstop_tsc" in flags
    # Processors other than x86 have a steady counter by their architecture.
    tells = "rdtscp" in flags or "tsc" in flags
    yield Finding(
        "time-stamp counter",
        "note" if tells and not steady else "ok",
        f"{'steady' if steady or not tells else 'varies with frequency'}; kernel clock: {clock}",
        "" if steady or not tells else "latencies are only as good as the processor's frequency",
    )
    governor = cpu_governor()
    yield Finding(
        "frequency governor",
        "ok" if governor in (None, "performance") else "note",
        governor or "not reported",
        "" if governor in (None, "performance") else "timings are steadier with 'performance'",
    )
    yield Finding("transparent huge pages", "ok", transparent_huge_pages() or "not reported")
    load, cores = os.getloadavg()[0], usable_cores()
    yield Finding(
        "load",
        "note" if load > cores / 2 else "ok",
        f"{load:.2f} on {cores} cores",
        "the machine is busy: measure when it is idle" if load > cores / 2 else "",
    )
    yield _locked_memory()


def _locked_memory() -> Finding:
    """How much host memory may be pinned; CAP_IPC_LOCK, which root has, is above the limit."""
    from workbench.replay.machine import may_lock_any_memory

    name = "memory that may be locked"
    limit = resource.getrlimit(resource.RLIMIT_MEMLOCK)[0]
    if limit == resource.RLIM_INFINITY:
        return Finding(name, "ok", "unlimited")
    if may_lock_any_memory():
        return Finding(
            name, "ok", f"any: the limit of {format_bytes(limit)} does not bind this process"
        )
    return Finding(
        name,
        "note",
        format_bytes(limit),
        "host-pinned on the backend host is unavailable for traffic above it: ulimit -l unlimited "
        "raises it, or use --backend simulated",
    )


def _disk() -> Iterator[Finding]:
    folder = Path.cwd()
    free = shutil.disk_usage(folder).free
    writable = os.access(folder, os.W_OK)
    meaning = "" if free > _LITTLE_SPACE else "little space for recordings: use another folder"
    yield Finding(
        "current folder",
        "ok" if writable and not meaning else "note",
        f"{format_bytes(free)} free in {folder}",
        meaning if writable else "it cannot be written to: name another folder with -o",
    )
