"""What has to be right before a log is opened: the path, the kind of file, the lock."""

from __future__ import annotations

import errno
import os

from objdb.errors import FileFormatError, NeedsMigrationError
from objdb.storage.file.format import MAGIC, PYTHON_TWO_MAGIC, START
from objdb.storage.files import Files, write_file

# How files of other kinds that can be named in a URI begin.
_OTHERS = {b"SQLite format 3\0": "sqlite", b"objdb pickle": "pickle"}


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
    kind = next((kind for begins, kind in _OTHERS.items() if magic == begins[:START]), None)
    hint = f". It is one of another kind: name it {kind}:{path}" if kind else ""
    raise FileFormatError(
        f"{path} is no database file: it begins with {magic!r} instead of {MAGIC!r}{hint}",
        path=path,
    )


def create_file(files: Files, path: str) -> None:
    """Make an empty database, all at once."""
    write_file(files, path + ".new", MAGIC)
    files.rename(path + ".new", path)
