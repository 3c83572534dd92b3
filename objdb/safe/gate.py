"""Lets one thread of one process at a time into a directory, and notices who died inside.

A process that is killed inside a Berkeley DB environment leaves its shared memory as it was in
the middle of a change: nobody may look at it any more, not even to close it. So:

    lock     an exclusive lock of the operating system on the file `gate`, which lasts no longer
             than its process
    busy     the first byte of that file, mapped into memory: set before the environment is
             touched, cleared when that has ended well. Who takes the lock and finds it set knows
             that its predecessor died inside, or failed
    generation   the next 8 bytes, a number that changes when the environment is recovered: who
             finds another one than its own has handles of the past, and forgets them
    users    a second file, on which every process has a shared lock while it has the directory
             open. Who is alone trusts nothing that is there, which may be from before a loss of
             power: it recovers, too

What is in these files need not survive anything.
"""

from __future__ import annotations

import fcntl
import mmap
import os
from contextlib import ExitStack
from pathlib import Path

_STATE_BYTES = 9


class Gate:
    """The gate to a directory. `lock` and `unlock` are for one thread at a time, which the caller
    sees to; everything else needs the lock.

    Raises OSError where the files cannot be made.
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
        self._own = b""  # the state in which our handles are good

    def lock(self) -> None:
        """Wait until nobody else is inside. Again does no harm."""
        fcntl.flock(self._gate, fcntl.LOCK_EX)

    def unlock(self) -> None:
        """Let the next one in. Without the lock, does nothing."""
        fcntl.flock(self._gate, fcntl.LOCK_UN)

    def is_current(self) -> bool:
        """Whether the handles that were opened after `joined` are good."""
        return self._state[:] == self._own

    def enter(self) -> None:
        """Mark that the environment is being touched."""
        self._state[0] = 1

    def leave(self) -> None:
        """Mark that it is whole."""
        self._state[0] = 0

    def needs_recovery(self) -> bool:
        """Whether the environment has to be recovered, by us, before it is opened."""
        is_first = not self._own and self.is_alone()  # whether or not it is recovered, we are in
        return is_first or bool(self._state[0])

    def next_generation(self) -> None:
        """Say that all handles are of the past."""
        generation = int.from_bytes(self._state[1:], "little") + 1
        self._state[1:] = generation.to_bytes(_STATE_BYTES - 1, "little")

    def joined(self) -> None:
        """Say that we have opened the environment as it is now."""
        self._own = b"\0" + self._state[1:]

    def is_alone(self) -> bool:
        """Whether no other process has the directory open. From then on, we have."""
        try:
            fcntl.flock(self._users, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            return False
        finally:
            # Nobody can be waiting in between, or have the exclusive lock: we are at the gate.
            fcntl.flock(self._users, fcntl.LOCK_SH)

    def close(self) -> None:
        """Close the files. In the child of a fork, this leaves the parent's locks alone."""
        self._state.close()
        self._close_files()


def _open(path: Path) -> int:
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o660)
