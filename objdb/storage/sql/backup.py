"""Copying an SQLite database while others write."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable
from contextlib import suppress

from objdb.storage.files import UNFINISHED, keep_mode, require_folder, sync_path

_PAGES = 1000  # copied at a time


def back_up(
    connect: Callable[[], sqlite3.Connection], path: str, target: str,
    progress: Callable[[int, int], object] | None,
) -> None:
    """Write a copy of the database at *path*, which *connect* opens, to the new file *target*,
    atomically. FileExistsError if the file exists; sqlite3.Error."""
    require_folder(target, "backup")
    if os.path.lexists(target):
        raise FileExistsError(17, "the file exists already", target)
    temporary = target + UNFINISHED
    with suppress(FileNotFoundError):
        os.remove(temporary)
    try:
        os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
        source, copy = connect(), sqlite3.connect(temporary)
        try:
            keep_mode(temporary, path)
            tell = progress or (lambda done, of: None)
            source.backup(
                copy, pages=_PAGES, progress=lambda _, left, of: tell(of - left, of)
            )
        finally:
            copy.close()
            source.close()
        sync_path(temporary)
        os.rename(temporary, target)
        sync_path(os.path.dirname(os.path.abspath(target)))
    finally:
        with suppress(FileNotFoundError):
            os.remove(temporary)
