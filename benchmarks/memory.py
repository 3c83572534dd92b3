"""The memory of this process, as the kernel counts it."""

from __future__ import annotations

import ctypes
import gc
from dataclasses import dataclass
from pathlib import Path

ROLLUP = Path("/proc/self/smaps_rollup")
KBYTES_PER_MIB = 1024


@dataclass(frozen=True)
class Memory:
    """Resident memory in MiB.

    Private memory is what the kernel calls anonymous: it belongs to this process and cannot be
    dropped. Mapped pages come from files; the kernel can drop them, read them again, and give the
    same page to other processes. (What the kernel itself lists as private includes mapped pages
    that no other process happens to have mapped at the moment.)
    """

    resident: float
    private: float
    mapped: float

    def since(self, earlier: Memory) -> Memory:
        return Memory(
            self.resident - earlier.resident,
            self.private - earlier.private,
            self.mapped - earlier.mapped,
        )


def memory() -> Memory:
    """Collect garbage, give what is free back to the kernel, then count."""
    gc.collect()
    _trim()
    kbytes = {}
    for line in ROLLUP.read_text().splitlines()[1:]:
        name, value = line.split(":")
        kbytes[name] = int(value.split()[0])
    resident, private = kbytes["Rss"] / KBYTES_PER_MIB, kbytes["Anonymous"] / KBYTES_PER_MIB
    return Memory(resident, private, resident - private)


def reset_peak() -> None:
    """Let `peak_resident` begin anew."""
    Path("/proc/self/clear_refs").write_text("5")


def peak_resident() -> float:
    """The most resident memory since `reset_peak`, in MiB."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / KBYTES_PER_MIB
    raise OSError("the kernel does not tell the peak of resident memory")


def _trim() -> None:
    """Empty the C library's pool of freed memory: from there, growth would not be seen."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
