"""Admits one thread of one process at a time to a directory, and detects processes killed inside.

A process that is killed inside a Berkeley DB environment leaves its shared memory in the middle
of a change: no process may read it any more, not even to close it. So:

    lock     an exclusive lock of the operating system on the file `gate`, which ends with its
             process
    busy     the first byte of that file, mapped into memory: set before the environment is
             used, cleared after a successful use. A process that takes the lock and finds it set
             knows that its predecessor was killed inside, or failed
    generation   the next 8 bytes, a number that changes when the environment is recovered: a
             process with another number has stale handles, and drops them
    users    a second file, on which every process has a shared lock while it has the directory
             open. The only process does not trust the environment, which may be from before a
             loss of power, and recovers it too

These files need not survive a crash.
"""

from __future__ import annotations

import fcntl
import mmap
import os
from contextlib import ExitStack
from pathlib import Path

_STATE_BYTES = 9


class Gate:
    """The gate to a directory. The caller ensures that one thread at a time calls `lock` and
    `unlock`; everything else needs the lock.

    Raises OSError if the files cannot be created.
    """

    def __init__(self, folder: Path) -> None:
        with ExitStack() as opened:
            self._gate = _open(folder / "gate")
            opened.callback(os.close, self._gate)
            self._users = _open(folder / "users")
            opened.callback(os.close, self._users)
            if os.fstat(self._gate).st_size < _STATE_BYTES:
                os.ftruncate(self._gate, _STATE_BYTES)
            self._state = mmap.mmap(self._gate, _STATE_BYTES)
            self._close_files = opened.pop_all().close
        self._own = b""  # the generation for which our handles are valid

    def lock(self) -> None:
        """Wait until no other process is inside. Calling it again does nothing."""
        fcntl.flock(self._gate, fcntl.LOCK_EX)

    def unlock(self) -> None:
        """Admit the next process. Without the lock, does nothing."""
        fcntl.flock(self._gate, fcntl.LOCK_UN)

    def is_current(self) -> bool:
        """Whether the handles opened after `joined` are valid."""
        return self._state[:] == self._own

    def enter(self) -> None:
        """Mark the environment as in use."""
        self._state[0] = 1

    def leave(self) -> None:
        """Mark the environment as consistent."""
        self._state[0] = 0

    def needs_recovery(self) -> bool:
        """Whether this process has to recover the environment before opening it."""
        is_first = not self._own and self.is_alone()  # in either case this process is a user now
        return is_first or bool(self._state[0])

    def next_generation(self) -> None:
        """Make all handles, of all processes, stale."""
        generation = int.from_bytes(self._state[1:], "little") + 1
        self._state[1:] = generation.to_bytes(_STATE_BYTES - 1, "little")

    def joined(self) -> None:
        """Note that this process has opened the environment in its present generation."""
        self._own = b"\0" + self._state[1:]

    def is_alone(self) -> bool:
        """Whether no other process has the directory open. From then on, this process has."""
        try:
            fcntl.flock(self._users, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            return False
        finally:
            # No process can wait in between, or have the exclusive lock: we hold the gate.
            fcntl.flock(self._users, fcntl.LOCK_SH)

    def close(self) -> None:
        """Close the files. In the child of a fork, this leaves the parent's locks alone."""
        self._state.close()
        self._close_files()


def _open(path: Path) -> int:
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o660)
