"""The seam to the operating system: every byte a storage reads or writes goes through here.

`Files` opens, renames, removes and locks; `File` reads and writes at positions. There are two
implementations: this one, and `objdb.testing.faults.FaultyFiles`, which keeps a disk in memory
that loses power, tears writes and fills up on command. Positions and sizes are bytes.
"""

from __future__ import annotations

import errno
import functools
import mmap
import os
import socket
from collections.abc import Callable
from typing import Any, Protocol
from weakref import WeakSet

import zc.lockfile

from objdb.errors import StorageClosedError, StorageLockedError, UsageError

# What is added to the name of a backup until it is whole; nothing else is called so, and what is
# left of one is removed.
UNFINISHED = ".objdb-unfinished"


class File(Protocol):
    """One open file."""

    path: str
    # read_at(size, position) -> bytes, fewer at the end of the file
    read_at: Callable[[int, int], bytes]

    def write_at(self, data: Any, position: int) -> None:
        """Write all of *data* at *position*."""

    def truncate(self, size: int) -> None:
        """Make the file *size* bytes long."""

    def allocate(self, size: int) -> None:
        """Make the file at least *size* bytes long, with disk space behind all of it."""

    def sync(self) -> None:
        """Return when everything written so far is on the medium."""

    def size(self) -> int:
        """Return the file's length."""

    def is_in_place(self) -> bool:
        """Whether no other file has taken the place of this one, at `path`."""

    def map(self, size: int, *, read_only: bool = False) -> Any:
        """Return the first *size* bytes as a buffer whose changes go to the file (with `sync`,
        surely), or that cannot be changed."""

    def close(self) -> None:
        """Close the file."""


class Lock(Protocol):
    """A held lock."""

    def release(self) -> None:
        """Let go of the lock."""


class Files(Protocol):
    """A file system."""

    def open(self, path: str, mode: str) -> File:
        """Open *path*: mode `"r"` to read, `"w"` to read and write, `"c"` also to create.

        A created file survives a loss of power as such, if not what is written to it.
        """

    def exists(self, path: str) -> bool:
        """Whether there is anything at *path*."""

    def is_directory(self, path: str) -> bool:
        """Whether *path* is a directory."""

    def rename(self, old: str, new: str) -> None:
        """Put *old* in the place of *new*, at once, surviving a crash."""

    def link(self, path: str, new: str) -> None:
        """Give the file at *path* the further name *new*, in the place of what has it."""

    def remove(self, path: str) -> None:
        """Remove the file, surviving a crash."""

    def free_space(self, path: str) -> int:
        """Return how many bytes can be written beside *path*."""

    def lock(self, path: str, content: str) -> Lock | str:
        """Take the lock file *path* and write *content* into it.

        Returns the lock, or, when another holds it, the content of the file.
        """


class OSFile:
    """A file of the operating system. Its path is relative to *folder*."""

    def __init__(self, path: str, mode: str, folder: str = "") -> None:
        flags = {"r": os.O_RDONLY, "w": os.O_RDWR, "c": os.O_RDWR | os.O_CREAT}[mode]
        self.path = path
        self._folder = folder
        where = os.path.join(folder, path)
        self._fd = _Descriptor(os.open(where, flags | getattr(os, "O_CLOEXEC", 0), 0o644))
        self.read_at: Callable[[int, int], bytes] = functools.partial(os.pread, self._fd)

    def write_at(self, data: Any, position: int) -> None:
        written = os.pwrite(self._fd, data, position)
        while written < len(data):
            data = memoryview(data)[written:]
            position += written
            written = os.pwrite(self._fd, data, position)

    def truncate(self, size: int) -> None:
        os.ftruncate(self._fd, size)

    def allocate(self, size: int) -> None:
        current = self.size()
        if size > current:
            os.posix_fallocate(self._fd, current, size - current)

    def sync(self) -> None:
        os.fdatasync(self._fd)

    def size(self) -> int:
        return os.fstat(self._fd).st_size

    def is_in_place(self) -> bool:
        try:
            there = os.stat(os.path.join(self._folder, self.path))
        except FileNotFoundError:
            return True
        return os.path.samestat(there, os.fstat(self._fd))

    def map(self, size: int, *, read_only: bool = False) -> mmap.mmap:
        access = mmap.ACCESS_READ if read_only else mmap.ACCESS_WRITE
        return mmap.mmap(self._fd, size, access=access)

    def close(self) -> None:
        self.read_at = self._read_closed
        self._fd = _NO_FILE

    def _read_closed(self, size: int, position: int) -> bytes:
        raise StorageClosedError(f"{self.path} was closed during a read. Open it again")


class _Descriptor(int):
    """The number of an open file, which is closed when nobody holds it any more: neither the
    file nor a read under way in another thread. So no read meets the number of another file."""

    def __del__(self) -> None:
        if self >= 0:
            os.close(self)


_NO_FILE = _Descriptor(-1)


class OSFiles:
    """The operating system's file system. Relative paths stay relative to what was the current
    directory when this was made, wherever the process goes."""

    def __init__(self) -> None:
        try:
            self._folder = os.getcwd()
        except FileNotFoundError:  # it was removed; absolute paths do not need it
            self._folder = ""

    def _at(self, path: str) -> str:
        return os.path.join(self._folder, path)

    def open(self, path: str, mode: str) -> OSFile:
        is_new = mode == "c" and not os.path.exists(self._at(path))
        file = OSFile(path, mode, self._folder)
        if is_new:
            self._sync_folder_of(path)
        return file

    def exists(self, path: str) -> bool:
        return os.path.lexists(self._at(path))

    def is_directory(self, path: str) -> bool:
        return os.path.isdir(self._at(path))

    def rename(self, old: str, new: str) -> None:
        os.replace(self._at(old), self._at(new))
        self._sync_folder_of(new)

    def link(self, path: str, new: str) -> None:
        temporary = new + ".new"
        if self.exists(temporary):
            os.remove(self._at(temporary))
        os.link(self._at(path), self._at(temporary))
        self.rename(temporary, new)

    def remove(self, path: str) -> None:
        os.remove(self._at(path))
        self._sync_folder_of(path)

    def _sync_folder_of(self, path: str) -> None:
        sync_path(os.path.dirname(self._at(path)))

    def free_space(self, path: str) -> int:
        return free_bytes(os.path.dirname(self._at(path)))

    def lock(self, path: str, content: str) -> Lock | str:
        path = self._at(path)
        try:
            return OSLock(zc.lockfile.LockFile(path, content))
        except zc.lockfile.LockError:
            with open(path, encoding="utf-8", errors="replace") as file:
                return file.read().strip()


class OSLock:
    """A lock file, locked by the operating system for as long as this process lives. A forked
    child lets go of it, and has no say in it."""

    def __init__(self, lock: Any) -> None:
        self._lock = lock
        _locks.add(self)

    def leave_to_parent(self) -> None:
        """Close the file in the child, without unlocking it: else the lock would be held for as
        long as the child lives."""
        self._lock._fp.close()
        self._lock._fp = None  # what zc.lockfile takes for unlocked

    def release(self) -> None:
        _locks.discard(self)
        # The file stays: removing it could remove the one that the next opener has locked.
        self._lock.close()


_locks: WeakSet[OSLock] = WeakSet()


def _leave_locks_to_parent() -> None:
    for lock in list(_locks):
        lock.leave_to_parent()
    _locks.clear()


os.register_at_fork(after_in_child=_leave_locks_to_parent)


def path_given(path: str | bytes | os.PathLike[Any], what: str) -> str:
    """Return the path of *what* as text; `UsageError` if it is empty, or nothing can have it."""
    text = os.fsdecode(path)
    if not text:
        raise UsageError(f"the path of the {what} is empty")
    try:
        is_possible = b"\0" not in os.fsencode(text)
    except UnicodeEncodeError:
        is_possible = False
    if not is_possible:
        raise UsageError(f"{text!r} is no path: it has a character that no name of a file has")
    return text


def require_folder(path: str, what: str) -> None:
    """Raise FileNotFoundError unless the folder of *path* is there."""
    folder = os.path.dirname(path)
    if folder and not os.path.isdir(folder):
        raise FileNotFoundError(errno.ENOENT, f"the folder of the {what} does not exist", folder)


def free_bytes(folder: str) -> int:
    """Return how much can be written in a directory."""
    found = os.statvfs(folder)
    return found.f_bavail * found.f_frsize


def sync_path(path: str) -> None:
    """Make what was written to a file, or made, renamed and removed in a directory, survive a loss
    of power."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_file(files: Files, path: str, content: bytes) -> None:
    """Make *content* all that the file at *path* has, on the medium. Not all at once."""
    file = files.open(path, "c")
    try:
        file.truncate(0)
        file.write_at(content, 0)
        file.sync()
    finally:
        file.close()


def why_locked(pid: int | None) -> str:
    """Return what often is the reason why *pid* has the lock of a file, as sentences."""
    if pid == os.getpid():
        return "The program opens it twice: one DB is enough for all its threads."
    return (
        "That is often a web server's reloader, which runs the program twice, or another worker "
        "of the server, each with a DB of its own; SQLite lets several processes write (sqlite:)."
    )


def take_lock(files: Files, path: str) -> Lock:
    """Take the lock of the file; `StorageLockedError` says who has it."""
    host = socket.gethostname()
    lock = files.lock(path + ".lock", f"{os.getpid()};{host}")
    if not isinstance(lock, str):
        return lock
    pid_text, _, owner_host = (part.strip() for part in lock.partition(";"))
    pid = int(pid_text) if pid_text.isdigit() else None
    owner = f"process {pid_text}" + (f" on {owner_host}" if owner_host else "")
    if pid == os.getpid():
        owner = f"this process ({pid})"
    raise StorageLockedError(
        f"{path} is open for writing in {owner}. {why_locked(pid)} Close it there, or open it here "
        "with read_only=True",
        path=path, pid=pid, host=owner_host or None,
    )
