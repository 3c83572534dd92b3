"""Files that a library has open in this process, with locks of fcntl on them.

Such locks of a process end when anything in it closes the file, even if it was opened only to be
looked at. So nobody opens these files here but the library: who wants to look at one holds
`looking` from asking `has_locks` to closing it, and who lets the library open one holds it while he
notes that, which is before the library does.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from functools import partial
from itertools import count

from objdb.forks import Stage, at_fork

looking = threading.Lock()
# (device, number, of whom): a set, so that what is collected as garbage can let go without a lock.
_held: set[tuple[int, int, int]] = set()
_holders = count()


def note_locks(path: str) -> Callable[[], None]:
    """Open the file at *path* here no more, for the sake of the locks on it, until the function
    that is returned is called."""
    there = os.stat(path)
    hold = there.st_dev, there.st_ino, next(_holders)
    _held.add(hold)
    return partial(_held.discard, hold)


def has_locks(path: str) -> bool:
    """Whether opening and closing the file at *path* would free locks that this process has."""
    if not _held:
        return False
    try:
        there = os.stat(path)
    except OSError:
        return False
    return any((there.st_dev, there.st_ino) == hold[:2] for hold in list(_held))


def _in_child() -> None:
    _held.clear()
    looking._at_fork_reinit()  # type: ignore[attr-defined]


at_fork(Stage.FILES, in_child=_in_child)
