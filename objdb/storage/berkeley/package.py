"""The package `berkeleydb`, if it is installed, and the translation of its errors."""

from __future__ import annotations

import ctypes
import errno
import importlib
from typing import Any

from objdb.errors import (
    CorruptedDataError,
    MissingPackageError,
    ObjdbError,
    StorageError,
    StorageFailedError,
    StorageWriteError,
)
from objdb.storage.berkeley.directory import no_permission

bdb: Any = None
try:
    bdb = importlib.import_module("berkeleydb.db")
except ImportError:
    pass

DIRTY: int = getattr(bdb, "DB_READ_UNCOMMITTED", 0)
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def require_package() -> None:
    """Raise `MissingPackageError` if the package `berkeleydb` cannot be imported."""
    if bdb is None:
        raise MissingPackageError(
            "BerkeleyStorage needs the package berkeleydb, which cannot be imported. Install "
            "objdb[berkeley] (pip install 'objdb[berkeley]')",
            package="berkeleydb", extra="objdb[berkeley]",
        )


def abandon(handle: Any) -> None:
    """Keep a handle of the engine from ever being closed."""
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(handle))


def is_panic(error: BaseException) -> bool:
    """Whether *error* says that the engine is in a panic, and refuses everything."""
    return isinstance(error, bdb.DBRunRecoveryError)


def explained(error: BaseException, path: str) -> ObjdbError:
    """Return the objdb error for an error of the engine."""
    number, text = (*error.args, 0, "")[:2]
    if number in _FULL:
        return StorageWriteError(
            f"{path}: the disk is full ({text}); nothing was committed. Free disk space and try "
            "again"
        )
    if number in (errno.EACCES, errno.EPERM, errno.EROFS):
        return no_permission(path, error)
    if is_panic(error) and "pgin failed" not in str(text):
        return StorageFailedError(
            f"Berkeley DB refuses to go on ({text}); opening it again recovers what was committed"
        )
    if isinstance(error, bdb.DBLockDeadlockError):
        return StorageWriteError(f"{path}: Berkeley DB says {text!r}. Retry the transaction")
    if isinstance(error, MemoryError):
        return StorageError(f"{path}: Berkeley DB has too little memory: {text}")
    if is_panic(error) or number in (errno.EIO, errno.EINVAL, errno.ENOENT) or number < 0:
        return CorruptedDataError(
            f"{path} is damaged, or some of its files are missing: Berkeley DB says {text!r}. "
            "Restore the missing files, or the directory from a backup; db5.3_dump -r saves the "
            "readable rows", path=path,
        )
    return StorageError(f"{path}: Berkeley DB says {text or error!r}")
