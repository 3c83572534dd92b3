"""The file that names the process of a server, and is locked as long as it runs.

A number alone may be that of another process by now; so a file that is not locked is stale,
whatever it says. The lock outlives an `exec`: a server that restarts keeps it.
"""

from __future__ import annotations

import fcntl
import os
import select
import signal
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from objdb.errors import UsageError

_KEPT = "OBJDB_PID_DESCRIPTOR"


class PidFile:
    """The file *path* of this process, locked until it is closed. `UsageError` if another server
    has it."""

    def __init__(self, path: str) -> None:
        self.path = os.path.abspath(path)
        self._is_kept = False
        kept = os.environ.pop(_KEPT, "")
        self._descriptor = int(kept) if kept.isdecimal() else self._open()
        os.set_inheritable(self._descriptor, False)
        os.ftruncate(self._descriptor, 0)
        os.pwrite(self._descriptor, f"{os.getpid()}\n".encode(), 0)

    def _open(self) -> int:
        while True:
            descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644)
            if not _lock(descriptor):
                os.close(descriptor)
                raise UsageError(
                    f"{self.path}: a server runs already (process {_number(self.path)}). Stop it "
                    f"with: objdb serve --stop --pid-file {self.path}"
                )
            if _is_same(descriptor, self.path):
                return descriptor
            os.close(descriptor)  # a server that stopped meanwhile has removed it

    def bequeath(self, above: int) -> None:
        """Keep the lock for the program that replaces this one, by `exec`, with a descriptor
        that is greater than *above*."""
        os.environ[_KEPT] = str(fcntl.fcntl(self._descriptor, fcntl.F_DUPFD, above + 1))
        self._is_kept = True

    def close(self) -> None:
        """Remove it, unless it is bequeathed."""
        if not self._is_kept:
            os.unlink(self.path)
        os.close(self._descriptor)


def stop(path: str, seconds: float) -> int:
    """Stop the server whose file is *path*; return the number of its process, when it is gone.
    `UsageError` if there is none, or it does not stop in time."""
    with _server_of(path) as (number, process):
        signal.pidfd_send_signal(process, signal.SIGTERM)
        if not select.select([process], [], [], seconds)[0]:
            raise UsageError(
                f"process {number} has not stopped within {seconds:g} seconds. It finishes the "
                "commits that are under way; wait, or look into its log"
            )
    return number


def restart(path: str) -> int:
    """Let the server whose file is *path* restart; return the number of its process."""
    with _server_of(path) as (number, process):
        signal.pidfd_send_signal(process, signal.SIGUSR2)
    return number


@contextmanager
def _server_of(path: str) -> Iterator[tuple[int, int]]:
    """Yield the number of the process that holds a file, and a descriptor for it; `UsageError` if
    there is none."""
    with ExitStack() as opened:
        try:
            descriptor = os.open(path, os.O_RDONLY)
        except FileNotFoundError:
            raise UsageError(
                f"{path}: there is no such file, so no server runs that made it"
            ) from None
        opened.callback(os.close, descriptor)
        number = _number(path)
        process = _open_process(number)
        if process is not None:
            opened.callback(os.close, process)
        if _lock(descriptor):  # nobody holds it
            os.unlink(path)
            raise UsageError(
                f"{path} was left by a server that is gone (process {number or 'unknown'}), and is "
                "removed now. No server was signalled"
            )
        if process is None:
            raise UsageError(f"{path}: a server runs, but the file does not say its process")
        yield number, process


def _number(path: str) -> int:
    try:
        with open(path, encoding="ascii", errors="replace") as file:
            return int(file.read(20).strip() or 0)
    except (OSError, ValueError):
        return 0


def _open_process(number: int) -> int | None:
    """Return a descriptor for a process: it stays that of this one, whoever gets its number."""
    try:
        return os.pidfd_open(number) if number > 0 else None
    except OSError:
        return None


def _lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    except BlockingIOError:
        return False


def _is_same(descriptor: int, path: str) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except FileNotFoundError:
        return False
