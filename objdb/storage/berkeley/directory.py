"""The directory of a Berkeley DB storage: its files, and the checks before opening.

    objdb.json           format, and whether it keeps history; written first, and again when the
                         tables are created
    objdb.lock           locked by the process that has it open; has its pid and host
    DB_CONFIG            settings for the engine's own programs. objdb reads only the directory of
                         the log, if that is elsewhere
    current.bdb …        the tables
    log.0000000001 …     the write-ahead log
"""

from __future__ import annotations

import errno
import json
import os
from contextlib import suppress
from typing import NamedTuple

from objdb.errors import (
    CorruptedDataError,
    FileFormatError,
    StorageError,
    StorageLockedError,
    UsageError,
)
from objdb.storage.files import (
    Lock,
    OSFiles,
    open_new,
    require_regular,
    sync_path,
    take_lock,
    why_locked,
)

FORMAT = 2
_WITH_CHECKSUMS = 2  # from this format on
TABLES = ("current", "old", "transactions", "versions")
_MARKER, _LOCK, _CONFIG = "objdb.json", "objdb", "DB_CONFIG"
_LOG_DIRECTORY = "set_lg_dir"
_BEFORE = {_LOCK + ".lock", _CONFIG, _MARKER + ".new"}  # may be there before the marker is


class Marker(NamedTuple):
    """The content of the file `objdb.json`. Until the directory is complete, tables are created.
    The format is that of its creation."""

    history: bool
    is_complete: bool
    format: int = FORMAT

    @property
    def has_checksums(self) -> bool:
        """Whether rows are followed by checksums."""
        return self.format >= _WITH_CHECKSUMS


def file_of(table: str) -> str:
    """Return the name of a table's file."""
    return table + ".bdb"


def lock_directory(path: str, create: bool) -> Lock:
    """Lock the directory for this process, creating it if *create* is true.

    `StorageLockedError` names the holder; `FileFormatError` if it is not a storage's directory;
    FileNotFoundError; `StorageError` without permission.
    """
    try:
        _require_usable(path, create)
        for name in os.listdir(path):
            if not os.path.isdir(os.path.join(path, name)):
                require_regular(os.path.join(path, name))
        return take_lock(OSFiles(), os.path.join(path, _LOCK), path)
    except PermissionError as error:
        raise no_permission(path, error) from error
    except StorageLockedError as error:
        owner = f"process {error.pid}" + (f" on {error.host}" if error.host else "")
        if error.pid == os.getpid():
            owner = f"this process ({error.pid})"
        raise StorageLockedError(
            f"{path} is open in {owner}. One process at a time can have it. "
            f"{why_locked(error.pid)} Close it there",
            path=path, pid=error.pid, host=error.host,
        ) from None


def _require_usable(path: str, create: bool) -> None:
    if not os.path.isdir(path):
        if os.path.lexists(path):
            raise FileFormatError(f"{path} is a file. Name a directory", path=path)
        folder = os.path.dirname(os.path.abspath(path))
        if not create or not os.path.isdir(folder):
            what = "the folder of the database does not exist" if create else "there is no database"
            raise FileNotFoundError(errno.ENOENT, what, folder if create else path)
        os.mkdir(path)
        sync_path(folder)
    names = set(os.listdir(path))
    if _MARKER in names:
        return
    if names - _BEFORE:
        raise FileFormatError(
            f"{path} is not a database directory: it has {min(names - _BEFORE)}, but no "
            f"{_MARKER}. Nothing was changed; name another directory, or one that does not exist",
            path=path,
        )
    if not create:
        raise FileNotFoundError(errno.ENOENT, "there is no database", path)


def read_marker(path: str, history: bool | None) -> Marker:
    """Return the storage's marker, one with *history* if it is new. The directory is locked.

    `FileFormatError`, `UsageError` if it cannot be opened this way; `CorruptedDataError` if files
    are missing.
    """
    try:
        with open(os.path.join(path, _MARKER), encoding="utf-8") as file:
            said = json.load(file)
        version = int(said["format"])
        marker = Marker(bool(said["history"]), bool(said["complete"]), version)
    except FileNotFoundError:
        marker = Marker(history is not False, False)
        write_marker(path, marker)
        return marker
    except PermissionError as error:
        raise no_permission(path, error) from error
    except (ValueError, KeyError, TypeError) as error:
        raise CorruptedDataError(
            f"{path}: {_MARKER} cannot be read ({error!r}). Restore it from a backup", path=path
        ) from error
    if version > FORMAT:
        raise FileFormatError(
            f"{path} was written by a newer release of objdb (format {version}; this one knows "
            f"{FORMAT}). Nothing was changed; open it with that release", path=path,
        )
    if history is not None and marker.history is not history:
        raise UsageError(
            f"{path} was created with history={marker.history}, which cannot change. Omit the "
            "argument, or copy it to a database created with the other (objdb migrate)"
        )
    for table in TABLES if marker.is_complete else ():
        if not os.path.exists(os.path.join(path, file_of(table))):
            raise CorruptedDataError(
                f"{path}: the file {file_of(table)} is missing. Put it back, or restore the "
                "directory from a backup", path=path,
            )
    return marker


def write_marker(path: str, marker: Marker) -> None:
    """Write the storage's marker, atomically and durably."""
    said = {"format": marker.format, "history": marker.history, "complete": marker.is_complete}
    new = os.path.join(path, _MARKER + ".new")
    with open_new(new) as file:
        json.dump(said, file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(new, os.path.join(path, _MARKER))
    sync_path(path)


def settle_log_directory(path: str, given: str | None, is_new: bool) -> str:
    """Return the directory of the log, noting it if the storage *is_new*. `UsageError` if it is
    not the *given* one; `CorruptedDataError` if the log is missing."""
    there = _log_directory(path)
    if there is not None and not os.path.isdir(os.path.join(path, there)):
        raise FileNotFoundError(
            errno.ENOENT,
            f"the log directory of {path} does not exist. Mount its disk; or, if it was moved, "
            f"change {_LOG_DIRECTORY} in {path}/{_CONFIG} to the directory with its files log.*; "
            "now it is", os.path.abspath(os.path.join(path, there)),
        )
    if given is not None:
        wanted = os.path.abspath(given)
        if is_new and there is None:
            if not os.path.isdir(wanted):
                raise FileNotFoundError(errno.ENOENT, "the log directory does not exist", wanted)
            with open(os.path.join(path, _CONFIG), "a", encoding="utf-8") as file:
                file.write(f"{_LOG_DIRECTORY} {wanted}\n")
                file.flush()
                os.fsync(file.fileno())
            there = wanted
        elif os.path.join(path, there or "") != os.path.join(path, wanted):
            raise UsageError(
                f"the log of {path} is in {there or path}. Omit log_directory; or, while the "
                f"database is closed, move the files log.* and change {_LOG_DIRECTORY} in "
                f"{path}/{_CONFIG}"
            )
    directory = os.path.join(path, there or "")
    if not is_new and not any(name.startswith("log.") for name in os.listdir(directory)):
        # The engine would begin a new log, and take its pages for newer than they are.
        raise CorruptedDataError(
            f"{path}: the files of the log are missing in {directory}. Put them back, or restore "
            "the directory from a backup", path=path,
        )
    return directory


def _log_directory(path: str) -> str | None:
    found = None
    with suppress(FileNotFoundError), open(os.path.join(path, _CONFIG), encoding="utf-8") as file:
        for line in file:
            name, *value = line.split(maxsplit=1) or [""]
            if name == _LOG_DIRECTORY and value:
                found = value[0].strip()  # the last one counts, as in the engine
    return found


def no_permission(path: str, error: BaseException) -> StorageError:
    """Return the error for a lack of permission."""
    return StorageError(
        f"{path} cannot be opened: {error}. Check the permissions of the directory, and of the "
        "files in it"
    )
