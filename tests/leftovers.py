"""What a process has open: what a test has to give back."""

from __future__ import annotations

import os
import re
import tempfile
import threading
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from objdb.storage import libraries

_ABANDONED = re.compile(r"/(__db\.\d+|log\.\d+|[^/]+\.bdb)( \(deleted\))?$")
_TEMPORARY = os.path.realpath(tempfile.gettempdir()) + "/"
_PROJECT = f"{Path(__file__).resolve().parents[1]}/"  # which may be there, with its libraries


class Open(NamedTuple):
    """What is open: threads; descriptors and mappings of files in the temporary directory, removed
    ones too; files that objdb has noted as locked. A lock of the operating system does not outlive
    the descriptors: which of them has one is said with it."""

    threads: frozenset[threading.Thread]
    files: frozenset[str]
    maps: frozenset[str]
    locks: frozenset[str]

    def beside(self, before: Open) -> dict[str, list[str]]:
        """Return what is open now and was not *before*, by kind."""
        return {
            kind: sorted(map(str, now - then))
            for kind, now, then in zip(self._fields, self, before, strict=True) if now - then
        }


def now_open(maps: frozenset[str] | None = None) -> Open:
    """Return what this process has open; *maps* if they are known: reading them takes longest."""
    return Open(
        frozenset(threading.enumerate()), frozenset(_files()),
        frozenset(_maps()) if maps is None else maps, frozenset(_locks()),
    )


def without_abandoned(left: dict[str, list[str]]) -> dict[str, list[str]]:
    """Return what is left besides the files of Berkeley DB that cannot be closed any more, as a
    process died inside."""
    wrong = {
        kind: [one for one in names if not (kind in ("files", "maps") and _ABANDONED.search(one))]
        for kind, names in left.items()
    }
    return {kind: names for kind, names in wrong.items() if names}


def _files() -> set[str]:
    found = set()
    for number in os.listdir("/proc/self/fd"):
        with suppress(OSError):  # the one of the directory itself
            target = os.readlink(f"/proc/self/fd/{number}")
            if _is_temporary(target):
                # Not from /proc/locks: while one process reads that, all that lock files wait.
                locked = "lock:" in Path(f"/proc/self/fdinfo/{number}").read_text()
                found.add(f"{number} {target}" + " (locked)" * locked)
    return found


def _is_temporary(path: str) -> bool:
    return path.startswith(_TEMPORARY) and not path.startswith(_PROJECT)


def _maps() -> set[str]:
    text = Path("/proc/self/maps").read_bytes()
    if os.fsencode(_TEMPORARY) not in text:
        return set()
    lines = (os.fsdecode(line).split(maxsplit=5) for line in text.splitlines())
    return {f"{line[0]} {line[5]}" for line in lines if line[5:] and _is_temporary(line[5])}


def _locks() -> set[str]:
    return {f"file {number} of device {device}" for device, number, _ in libraries._held}
