"""Checking that a commit fits on the disk: SQLite writes at its COMMIT, which is too late."""

from __future__ import annotations

import os
from collections.abc import Callable

from objdb.errors import StorageWriteError
from objdb.storage.files import free_bytes
from objdb.storage.rows import TransactionRow

# The space that a commit may take.
_TIMES, _ROW_BYTES, _PAGE_BYTES, _PAGES_BESIDE = 2, 110, 4096, 16


def require_space(
    path: str, transaction: TransactionRow, replaced: int, count_pages: Callable[[], int]
) -> None:
    """Raise `StorageWriteError` if a transaction that replaces some rows may fill the disk.
    `count_pages()` returns the number of pages of the database *path*."""
    rows = transaction.size * _TIMES + len(transaction.oids) * _ROW_BYTES
    changed = replaced * 2
    free = free_bytes(os.path.dirname(path))
    if rows + (changed + _PAGES_BESIDE) * _PAGE_BYTES > free:
        changed = min(changed, count_pages())
    needed = rows + (changed + _PAGES_BESIDE) * _PAGE_BYTES
    if needed > free:
        raise StorageWriteError(
            f"{path}: the disk is full: a commit of {transaction.size} bytes may need {needed}, "
            f"but {free} are free; nothing was committed. Free disk space and try again"
        )
