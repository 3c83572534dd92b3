"""Files that a library has open in this process, with locks of fcntl on them.

Such locks of a process end when anything in it closes the file, even if it was opened only to be
looked at. So nobody opens these files here but the library.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable

_with_locks: Counter[tuple[int, int]] = Counter()  # by (device, number): how often


def note_locks(path: str) -> Callable[[], None]:
    """Open the file at *path* here no more, for the sake of the locks on it, until the function
    that is returned is called."""
    there = os.stat(path)
    key = there.st_dev, there.st_ino
    _with_locks[key] += 1

    def forget() -> None:
        _with_locks[key] -= 1
        if _with_locks[key] <= 0:
            del _with_locks[key]

    return forget


def has_locks(path: str) -> bool:
    """Whether opening and closing the file at *path* would free locks that this process has."""
    if not _with_locks:
        return False
    try:
        there = os.stat(path)
    except OSError:
        return False
    return (there.st_dev, there.st_ino) in _with_locks


os.register_at_fork(after_in_child=_with_locks.clear)
