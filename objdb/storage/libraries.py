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
from itertools import count

from objdb.forks import Stage, at_fork

looking = threading.Lock()
# (device, inode, owner): a set, so that an owner collected as garbage can remove itself without a
# lock.
_held: set[tuple[int, int, int]] = set()
_holders = count()


class _Hold:
    """An entry in `_held`, as long as the object lives and is not called: whoever is interrupted
    before having it leaves none."""

    __slots__ = ("_entry",)

    def __init__(self, path: str) -> None:
        there = os.stat(path)
        self._entry = there.st_dev, there.st_ino, next(_holders)
        _held.add(self._entry)

    def __call__(self) -> None:
        _held.discard(self._entry)

    def __del__(self) -> None:
        if hasattr(self, "_entry"):  # else there was no file
            _held.discard(self._entry)


def note_locks(path: str) -> Callable[[], None]:
    """Prevent other code from opening the file at *path*, to keep the locks on it, until the
    returned function is called, or dropped."""
    return _Hold(path)


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
