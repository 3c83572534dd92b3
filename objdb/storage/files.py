"""The seam to the operating system: every byte a storage reads or writes goes through here.

`Files` opens, renames, removes and locks; `File` reads and writes at positions. There are two
implementations: this one, and `objdb.testing.faults.FaultyFiles`, which keeps a disk in memory
that loses power, tears writes and fills up on command. Positions and sizes are bytes.
"""

from __future__ import annotations

import errno
import fcntl
import functools
import mmap
import os
import socket
import stat
from collections.abc import Callable
from contextlib import suppress
from typing import IO, Any, Protocol
from weakref import WeakSet

import zc.lockfile

from objdb.errors import FileFormatError, StorageClosedError, StorageLockedError, UsageError
from objdb.forks import Stage, at_fork
from objdb.storage.libraries import has_locks

# The suffix of a backup until it is complete. Only backups have it, and leftovers are removed.
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
        """Make the file at least *size* bytes long, with disk space allocated for all of it."""

    def sync(self) -> None:
        """Return when everything written so far is on disk."""

    def size(self) -> int:
        """Return the file's length."""

    def is_in_place(self) -> bool:
        """Whether this file is still the one at `path`."""

    def map(self, size: int, *, read_only: bool = False) -> Any:
        """Return the first *size* bytes as a buffer whose changes go to the file (by `sync` at
        the latest), or that is read-only."""

    def close(self) -> None:
        """Close the file."""


class Lock(Protocol):
    """A held lock."""

    def hold(self, path: str) -> bool:
        """Lock the file or directory at *path* itself as well; False if another process has it.
        Files held before stay locked until `settle`."""

    def settle(self) -> None:
        """Unlock the files locked by `hold`, except the last."""

    def release(self) -> None:
        """Release the lock."""


class Files(Protocol):
    """A file system."""

    def open(self, path: str, mode: str) -> File:
        """Open *path*: mode `"r"` to read, `"w"` to read and write, `"c"` also to create,
        `"p"` to create for the owner only, until `keep_mode`.

        A created file survives a loss of power, but its content only after `sync`.
        """

    def exists(self, path: str) -> bool:
        """Whether *path* exists."""

    def is_directory(self, path: str) -> bool:
        """Whether *path* is a directory."""

    def real_path(self, path: str) -> str:
        """Return the target of the symbolic link at *path*; *path* if it is not a link."""

    def keep_mode(self, path: str, model: str) -> None:
        """Give the file at *path* the owner, group and permissions of *model*, if that exists."""

    def rename(self, old: str, new: str) -> None:
        """Replace *new* by *old*, atomically and durably."""

    def link(self, path: str, new: str) -> None:
        """Give the file at *path* the further name *new*, replacing any file of that name."""

    def remove(self, path: str) -> None:
        """Remove the file, durably."""

    def free_space(self, path: str) -> int:
        """Return the free bytes on the disk of *path*."""

    def lock(self, path: str, content: str) -> Lock | str:
        """Take the lock file *path* and write *content* into it.

        Returns the lock, or, if another process holds it, the content of the file.
        """


# Names of new files are predictable: a link placed there by an attacker is not followed.
_MADE = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW
_FLAGS = {"r": os.O_RDONLY, "w": os.O_RDWR, "c": _MADE, "p": _MADE}
_KINDS = {
    stat.S_IFIFO: "a FIFO", stat.S_IFSOCK: "a socket", stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device", stat.S_IFDIR: "a directory",
}


def require_regular(path: str) -> None:
    """Raise `FileFormatError` if *path* exists and is not a regular file: opening it might wait
    forever."""
    try:
        kind = stat.S_IFMT(os.stat(path).st_mode)
    except OSError:  # opening it raises, if it matters
        return
    if kind != stat.S_IFREG:
        raise FileFormatError(
            f"{path} is {_KINDS.get(kind, 'something')}, not a regular file. Name another one",
            path=path,
        )


def _require_no_locks(path: str, where: str) -> None:
    if has_locks(where):
        raise FileFormatError(
            f"{path} is open in this process as an SQLite database: open it as sqlite:{path}",
            path=path,
        )


def require_no_link(path: str) -> None:
    """Raise `FileFormatError` if *path*, the name of a file to be created, is a symbolic link, or
    not a regular file: another user may have put it there."""
    if os.path.islink(path):
        raise FileFormatError(
            f"{path} is a symbolic link, which is not followed. Remove it", path=path
        )
    require_regular(path)


def open_new(path: str, bits: int = 0o644) -> IO[str]:
    """Return the file at *path*, created or emptied, to write text to, with these permissions if
    it is new. OSError if *path* is a symbolic link."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
    return open(os.open(path, flags, bits), "w", encoding="utf-8")


class OSFile:
    """A file of the operating system. Its path is relative to *folder*."""

    def __init__(self, path: str, mode: str, folder: str = "") -> None:
        self.path = path
        self._folder = folder
        where = os.path.join(folder, path)
        require_regular(where)
        _require_no_locks(path, where)
        flags, bits = _FLAGS[mode] | os.O_CLOEXEC | os.O_NONBLOCK, 0o600 if mode == "p" else 0o644
        self._fd = open_descriptor(where, flags, bits)
        if not stat.S_ISREG(os.fstat(self._fd).st_mode):  # it was replaced just now
            raise FileFormatError(f"{path} is not a regular file", path=path)
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
        try:
            os.fdatasync(self._fd)
        except ValueError:  # -1, which stands for no file
            raise StorageClosedError(f"{self.path} was closed during a sync") from None

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
        self._fd = NO_FILE

    def _read_closed(self, size: int, position: int) -> bytes:
        raise StorageClosedError(f"{self.path} was closed during a read. Open it again")


class Descriptor(int):
    """A file descriptor, closed when it is no longer referenced, neither by the file nor by a
    read in another thread. So no read uses a descriptor that was reused for another file."""

    def __del__(self) -> None:
        if self >= 0:
            os.close(self)


NO_FILE = Descriptor(-1)


def open_descriptor(path: str, flags: int, bits: int = 0o644) -> Descriptor:
    """Open a file, in one step: no interrupt leaves it open."""
    (descriptor,) = map(Descriptor, map(os.open, (path,), (flags,), (bits,)))
    return descriptor


class OSFiles:
    """The operating system's file system. Relative paths stay relative to the current directory
    at its creation, even if the process changes directory."""

    def __init__(self) -> None:
        try:
            self._folder = os.getcwd()
        except FileNotFoundError:  # the directory was removed; absolute paths do not need it
            self._folder = ""

    def _at(self, path: str) -> str:
        return os.path.join(self._folder, path)

    def open(self, path: str, mode: str) -> OSFile:
        is_new = mode in "cp" and not os.path.exists(self._at(path))
        file = OSFile(path, mode, self._folder)
        if is_new:
            self._sync_folder_of(path)
        return file

    def exists(self, path: str) -> bool:
        return os.path.lexists(self._at(path))

    def is_directory(self, path: str) -> bool:
        return os.path.isdir(self._at(path))

    def real_path(self, path: str) -> str:
        where = self._at(path)
        return os.path.realpath(where) if os.path.islink(where) else path

    def keep_mode(self, path: str, model: str) -> None:
        keep_mode(self._at(path), self._at(model))

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
        require_no_link(path)
        try:
            return OSLock(zc.lockfile.LockFile(path, content), self._at)
        except zc.lockfile.LockError:
            with open(path, encoding="utf-8", errors="replace") as file:
                return file.read().strip()


class OSLock:
    """A lock file, locked by the operating system as long as this process lives. A forked child
    closes it, and cannot unlock it."""

    def __init__(self, lock: Any, at: Callable[[str], str]) -> None:
        self._lock = lock
        self._at = at
        # Of the locked files themselves. An flock belongs to the open file, unlike a lock of
        # fcntl, which ends when any code in the process closes the file.
        self._held: list[Descriptor] = []
        _locks.add(self)

    def hold(self, path: str) -> bool:
        where = self._at(path)
        _require_no_locks(path, where)
        kind = os.O_RDONLY if os.path.isdir(where) else os.O_RDWR
        descriptor = open_descriptor(where, kind | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        self._held.append(descriptor)
        return True

    def settle(self) -> None:
        del self._held[:-1]

    def leave_to_parent(self) -> None:
        """Close the file in the child, without unlocking it: otherwise the lock would be held as
        long as the child lives."""
        self._lock._fp.close()
        self._lock._fp = None  # unlocked, to zc.lockfile
        self._held.clear()

    def release(self) -> None:
        _locks.discard(self)
        self._held.clear()
        # The file stays: removing it could remove a file that the next opener has locked.
        self._lock.close()


_locks: WeakSet[OSLock] = WeakSet()


def _leave_locks_to_parent() -> None:
    for lock in list(_locks):
        lock.leave_to_parent()
    _locks.clear()


at_fork(Stage.FILES, in_child=_leave_locks_to_parent)


def path_given(path: str | bytes | os.PathLike[Any], what: str) -> str:
    """Return the path of *what* as text; `UsageError` if it is empty or not valid."""
    text = os.fsdecode(path)
    if not text:
        raise UsageError(f"the path of the {what} is empty")
    try:
        is_possible = b"\0" not in os.fsencode(text)
    except UnicodeEncodeError:
        is_possible = False
    if not is_possible:
        raise UsageError(f"{text!r} is not a path: it has a character that a file name cannot have")
    return text


def require_folder(path: str, what: str) -> None:
    """Raise FileNotFoundError unless the folder of *path* exists."""
    folder = os.path.dirname(path)
    if folder and not os.path.isdir(folder):
        raise FileNotFoundError(errno.ENOENT, f"the folder of the {what} does not exist", folder)


def free_bytes(folder: str) -> int:
    """Return the free bytes on the disk of a directory."""
    found = os.statvfs(folder)
    return found.f_bavail * found.f_frsize


def keep_mode(path: str, model: str) -> None:
    """Give the file at *path* the owner, group and permissions of *model*, if that exists, as far
    as this process may."""
    try:
        like = os.stat(model)
    except FileNotFoundError:
        return
    mode = stat.S_IMODE(like.st_mode)
    there = os.stat(path)
    if (there.st_uid, there.st_gid) != (like.st_uid, like.st_gid):
        try:
            os.chown(path, like.st_uid, like.st_gid)
        except PermissionError:
            mode &= ~0o070  # the file has another group
    os.chmod(path, mode)


def make_private(path: str) -> None:
    """Make a new database readable by its owner only: the directory, or the file and the files
    beside it. Does nothing for a name that is not a path, or files of other users."""
    if os.path.isdir(path):
        found, mode = [path], 0o700
    else:
        found = [path + ending for ending in ("", ".oidx", ".lock", "-wal", "-shm")]
        mode = 0o600
    for name in found:
        with suppress(FileNotFoundError, PermissionError, ValueError):
            os.chmod(name, mode)


def sync_path(path: str) -> None:
    """Make writes to a file durable, or files created, renamed and removed in a directory."""
    os.fsync(open_descriptor(path, os.O_RDONLY))


def what_is_gone(files: Files, path: str, file: File) -> str | None:
    """Return a clause about the file *file*, if it is no longer the one at *path*; else None."""
    if not files.exists(path):
        return f"{path} was removed while it was open"
    return None if file.is_in_place() else f"{path} was replaced by another file while it was open"


def write_file(files: Files, path: str, content: bytes, model: str | None = None) -> None:
    """Write *content* to the file at *path*, durably but not atomically; *model*: the file whose
    owner and mode it gets."""
    file = files.open(path, "c" if model is None else "p")
    try:
        if model is not None:
            files.keep_mode(path, model)
        file.truncate(0)
        file.write_at(content, 0)
        file.sync()
    finally:
        file.close()


def why_locked(pid: int | None) -> str:
    """Return the usual reason why *pid* has the lock of a file, as sentences."""
    if pid == os.getpid():
        return "The program opens it twice: one DB is enough for all its threads."
    return (
        "That is often a web server's reloader, which runs the program twice, or another worker "
        "of the server, each with its own DB; SQLite allows several writing processes (sqlite:)."
    )


def take_lock(files: Files, path: str, itself: str | None = None) -> Lock:
    """Take the lock of the file, and lock *itself* (default: the file, if it exists), which has
    one lock under all its names; `StorageLockedError` names the holder."""
    host = socket.gethostname()
    lock = files.lock(path + ".lock", f"{os.getpid()};{host}")
    if not isinstance(lock, str):
        if itself is None and files.exists(path):
            itself = path
        if itself is not None:
            hold_or_release(lock, itself)
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


def hold_or_release(lock: Lock, path: str) -> None:
    """Lock the file at *path* itself; release *lock* and raise `StorageLockedError` if another
    process has it."""
    is_held = False
    try:
        is_held = lock.hold(path)
    finally:
        if not is_held:
            lock.release()
    if not is_held:
        raise StorageLockedError(
            f"{path} is open for writing already, under another name (a link), or with its .lock "
            "removed. Close it there, or open it here with read_only=True", path=path,
        )
