"""What has to be right before a log is opened: the path, the kind of file, the lock."""

from __future__ import annotations

import errno
import os
import socket

from objdb.errors import FileFormatError, NeedsMigrationError, StorageLockedError
from objdb.storage.file.format import MAGIC, PYTHON_TWO_MAGIC, START
from objdb.storage.files import Files, Lock


def require_openable(files: Files, path: str, *, create: bool) -> None:
    """Raise what is wrong with *path*, before anything is made beside it.

    A file that does not exist is right if it is to be created, and its folder is there.
    """
    if files.is_directory(path):
        raise FileFormatError(f"{path} is a directory. Name a file in it", path=path)
    folder = os.path.dirname(path)
    if files.exists(path) or not create:
        _check_magic(files, path)
    elif folder and not files.exists(folder):
        raise FileNotFoundError(
            errno.ENOENT, "the folder of the database does not exist", folder
        )


def _check_magic(files: Files, path: str) -> None:
    """Raise `FileFormatError`, or `NeedsMigrationError`, unless the file is one of ours."""
    file = files.open(path, "r")
    try:
        magic = file.read_at(START, 0)
    finally:
        file.close()
    if magic == MAGIC:
        return
    if magic == PYTHON_TWO_MAGIC:
        raise NeedsMigrationError(
            f"{path} was written by ZODB under Python 2 (it begins with {magic!r}). Convert it "
            "with zodbupdate --convert-py3 under ZODB; the converted file opens here", path=path,
        )
    if not magic:
        raise FileFormatError(
            f"{path} is empty, so it is no database. Remove it to let a new one be made", path=path
        )
    raise FileFormatError(
        f"{path} is no database file: it begins with {magic!r} instead of {MAGIC!r}", path=path
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
        f"{path} is open for writing in {owner}. Close it there, or open it here with "
        "read_only=True",
        path=path, pid=pid, host=owner_host or None,
    )


def create_file(files: Files, path: str) -> None:
    """Make an empty database, all at once."""
    temporary = path + ".new"
    file = files.open(temporary, "c")
    try:
        file.truncate(0)
        file.write_at(MAGIC, 0)
        file.sync()
    finally:
        file.close()
    files.rename(temporary, path)
