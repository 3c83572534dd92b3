"""Opening a log and its index: checking the path and the kind of file, recovery."""

from __future__ import annotations

import errno
import os

from objdb.errors import FileFormatError, NeedsMigrationError
from objdb.storage.durability import Durability
from objdb.storage.file.format import MAGIC, PYTHON_TWO_MAGIC, START
from objdb.storage.file.generation import Generation, Published
from objdb.storage.file.index import Index
from objdb.storage.file.log import Log
from objdb.storage.file.recovery import LogState, cut_tail, open_log
from objdb.storage.files import Files, write_file

# The first bytes of other kinds of files, by URI scheme.
_OTHERS = {b"SQLite format 3\0": "sqlite", b"objdb pickle": "pickle"}


def require_openable(files: Files, path: str, *, create: bool) -> None:
    """Raise an error for a *path* that cannot be opened, before creating files beside it.

    A missing file is accepted if *create* is true and its folder exists.
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
    """Raise `FileFormatError`, or `NeedsMigrationError`, unless the file is in this format."""
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
            f"{path} is empty, so it is not a database. Remove it to create a new one", path=path
        )
    kind = next((kind for begins, kind in _OTHERS.items() if magic == begins[:START]), None)
    hint = f". It is of another kind: open it as {kind}:{path}" if kind else ""
    raise FileFormatError(
        f"{path} is not a database file: it begins with {magic!r} instead of {MAGIC!r}{hint}",
        path=path,
    )


def create_file(files: Files, path: str) -> None:
    """Create an empty database, atomically."""
    write_file(files, path + ".new", MAGIC)
    files.rename(path + ".new", path)


def open_files(
    files: Files, path: str, *, read_only: bool, durability: Durability, most_replayed: int
) -> tuple[Generation, LogState, bool]:
    """Open the log at *path* and its index, and recover after a crash. Return the generation, the
    state found, and whether the index is durable: it is made so if more than *most_replayed*
    records were replayed, or the index was empty."""
    file = files.open(path, "r" if read_only else "w")
    log, index, is_new = Log(file), None, not files.exists(path + ".oidx")
    is_durable = False
    try:
        index = open_index(files, path + ".oidx", read_only=read_only)
        state = open_log(log, index, read_only=read_only)
        if not read_only:
            was_closed = file.size() == state.end > START and not state.replayed
            cut_tail(log, files, state)
            is_durable = _after_recovery(index, state, was_closed, durability, most_replayed)
    except BaseException:
        file.close()
        if index is not None:
            index.close()
            if is_new and not read_only:
                files.remove(path + ".oidx")
        raise
    generation = Generation(file, log, index, is_shared=read_only)
    generation.end = state.end
    generation.publish(Published(state.end, state.tid, state.max_oid, state.objects))
    return generation, state, is_durable


def open_index(files: Files, path: str, *, read_only: bool) -> Index:
    """Open the index at *path*."""
    if read_only and not files.exists(path):
        return Index(None, writable=False)
    return Index(files.open(path, "r" if read_only else "c"), writable=not read_only)


def _after_recovery(
    index: Index, state: LogState, was_closed: bool, durability: Durability, most_replayed: int
) -> bool:
    """Make the replayed entries durable, if they are many, or the index was empty; and the index
    itself, unless the file *was_closed* properly: a killed process may have left its data with the
    operating system only. Return whether the replayed entries were made durable."""
    checkpoint = index.checkpoint
    unsynced = durability == "os"
    is_old = checkpoint is None or not checkpoint.synced
    if is_old or unsynced or state.replayed > most_replayed:
        index.write_checkpoint(
            state.end, state.tid, state.max_oid, state.objects, synced=not unsynced
        )
        return True
    if not was_closed:
        index.sync()
    return False
