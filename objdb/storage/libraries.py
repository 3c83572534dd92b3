"""Files that a library has open in this process, with fcntl locks on them.

Such locks of a process end when any code in it closes the file, even if it opened it only for
reading. So only the library opens these files: code that reads one holds `looking` from calling
`has_locks` until closing it, and code that lets the library open one holds `looking` while it
calls `note_locks`, before the library opens it.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from functools import partial
from itertools import count

from objdb.forks import Stage, at_fork

looking = threading.Lock()
# (device, inode, owner): a set, so that an owner collected as garbage can remove itself without a
# lock.
_held: set[tuple[int, int, int]] = set()
_holders = count()


def note_locks(path: str) -> Callable[[], None]:
    """Prevent other code from opening the file at *path*, to keep the locks on it, until the
    returned function is called."""
    there = os.stat(path)
    hold = there.st_dev, there.st_ino, next(_holders)
    _held.add(hold)
    return partial(_held.discard, hold)


def has_locks(path: str) -> bool:
    """Whether opening and closing the file at *path* would release locks of this process."""
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
