"""Where a run took place: what a reader needs to compare it with another."""

from __future__ import annotations

import os
import platform
from importlib.metadata import version
from pathlib import Path

import psutil

from benchmarks.systems import System
from objdb.storage.file.lookup import PageTable

LIBRARIES = ("persistent", "BTrees", "transaction")


def file_system(path: Path) -> str:
    """The kind of file system that `path` is on, such as "ext4"."""
    resolved = path.resolve()
    mounted: dict[Path, str] = {
        Path(partition.mountpoint): partition.fstype
        for partition in psutil.disk_partitions(all=True)
    }
    for folder in (resolved, *resolved.parents):
        if folder in mounted:
            return mounted[folder]
    return "unknown"


def processor() -> str:
    """The model of the CPU."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def machine(directory: Path) -> dict[str, str]:
    """Facts about the machine; `directory` is where the databases were."""
    load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
    return {
        "processor": processor(),
        "cores": str(os.cpu_count()),
        "memory": f"{psutil.virtual_memory().total / (1 << 30):.0f} GiB",
        "file system": file_system(directory),
        "kernel": f"{platform.system()} {platform.release()}",
        "load average after the run (1, 5, 15 minutes)": load,
    }


def versions(systems: list[System]) -> dict[str, str]:
    """Versions of Python, of the systems and of the libraries that several of them share."""
    found = {"Python": f"{platform.python_implementation()} {platform.python_version()}"}
    found |= {system.title: system.version() for system in systems if system.is_database}
    found |= {library: version(library) for library in LIBRARIES}
    is_accelerated = PageTable.__module__ == "objdb._accelerator"
    found["objdb's accelerator"] = "used" if is_accelerated else "not used"
    return found
