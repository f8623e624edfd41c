"""What moves numbers: the machine a replay ran on, for the result and for ``wb doctor``."""

from __future__ import annotations

import os
import platform
import re
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import psutil


def _read(path: str) -> str | None:
    try:
        return Path(path).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError):
        return None


def cpu_name() -> str:
    """The processor's name as the kernel gives it, or its architecture."""
    match = re.search(r"^model name\s*:\s*(.+)$", _read("/proc/cpuinfo") or "", re.MULTILINE)
    return match[1].strip() if match else platform.machine()


def cpu_governor() -> str | None:
    """The frequency governor of the first core; None where the kernel does not say."""
    return _read("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")


def transparent_huge_pages() -> str | None:
    """The mode in force: ``always``, ``madvise`` or ``never``."""
    match = re.search(r"\[(\w+)\]", _read("/sys/kernel/mm/transparent_hugepage/enabled") or "")
    return match[1] if match else None


_CAP_IPC_LOCK = 14


def may_lock_any_memory() -> bool:
    """Whether this process may lock memory whatever its limit says."""
    status = _read("/proc/self/status") or ""
    match = re.search(r"^CapEff:\s*([0-9a-f]+)$", status, re.MULTILINE)
    return match is not None and bool(int(match[1], 16) >> _CAP_IPC_LOCK & 1)


def usable_cores() -> int:
    """How many cores this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def describe_machine() -> dict[str, Any]:
    """The fields of ``machine`` in docs/result-format.md."""
    return {
        "cpu": cpu_name(),
        "cores": usable_cores(),
        "governor": cpu_governor(),
        "numa_nodes": len(list(Path("/sys/devices/system/node").glob("node[0-9]*"))) or 1,
        "transparent_huge_pages": transparent_huge_pages(),
        "load_average": round(os.getloadavg()[0], 2),
        "memory_bytes": psutil.virtual_memory().total,
        "kernel": platform.release(),
    }


def package_versions(names: tuple[str, ...] = ("numpy", "pandas", "pyarrow")) -> dict[str, str]:
    """Versions of the workbench, of Python and of those of `names` that are installed."""
    versions = {"python": platform.python_version()}
    for key, name in (("workbench", "allocator-workbench"), *((name, name) for name in names)):
        try:
            versions[key] = version(name)
        except PackageNotFoundError:
            continue
    return versions


def noise_warnings(machine: dict[str, Any]) -> list[str]:
    """What about the machine makes timings unsteady, one sentence each."""
    warnings = []
    if machine["load_average"] > machine["cores"] / 2:
        warnings.append(
            f"The machine was busy when the replay began (load average {machine['load_average']} "
            f"on {machine['cores']} cores): latencies may be too high."
        )
    if machine["governor"] not in (None, "performance"):
        warnings.append(
            f"The processor's governor is {machine['governor']!r}: its frequency changes while "
            "measuring; 'performance' is steadier."
        )
    return warnings
