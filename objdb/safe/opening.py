"""Opening safes: the safe of each module, its backend, and the layout of its directory."""

from __future__ import annotations

import atexit
import fcntl
import importlib
import json
import os
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any

from objdb.errors import (
    CorruptedDataError,
    FileFormatError,
    MissingPackageError,
    SafeError,
    UsageError,
)
from objdb.forks import Stage, at_fork
from objdb.safe.mapping import Safe
from objdb.safe.naming import directory_of_safes, folder_name, module_name, parts_of
from objdb.storage.files import make_private, open_new, path_given, sync_path

_BACKENDS = {
    "berkeley": ("objdb.safe.berkeley", "BerkeleyTable"),
    "sqlite": ("objdb.safe.sqlite", "SqliteTable"),
    "file": ("objdb.safe.file", "FileTable"),
}
BACKENDS = tuple(_BACKENDS)
_MARKER = "safe.json"  # written first, whole or not at all: names the backend; and again when
# the other files exist, to mark the safe as complete
_NEW_MARKER = "safe.json.new"
_LOCK = "lock"  # held while a safe is made or opened
_FORMAT = 1

_open_safes: dict[Path, Safe] = {}
_opening = Lock()  # around _open_safes, and around opening; held over a fork


@dataclass(frozen=True)
class SafeInfo:
    """A safe in a directory of safes, open or not."""

    path: Path
    node: str
    cage: str
    module: str
    backend: str

    @property
    def name(self) -> str:
        """The name of its directory."""
        return self.path.name

    @property
    def size_bytes(self) -> int:
        """The size of its files."""
        return sum(file.stat().st_blocks * 512 for file in self.path.iterdir())


def module_safe(
    *,
    cage: str | None = None,
    node: str | None = None,
    directory: str | os.PathLike[str] | None = None,
    backend: str | None = None,
) -> Safe:
    """Return the safe of the calling module: the same open object every time.

    *cage*: the application's name; *node*: the host's; *directory*: that of the safes (see
    `objdb.safe.naming` for the defaults). *backend*: that of a new safe, `"berkeley"`, `"sqlite"`
    or `"file"`; by default OBJDB_SAFE_BACKEND, or Berkeley DB if `berkeleydb` is installed, else
    SQLite. An existing safe is opened with its own backend.

    Raises `UsageError` for other backends, `MissingPackageError`, `SafeError` without permission,
    or if a directory that was not named belongs to another user, `FileFormatError` for a
    directory that is not a safe, `StorageLockedError` for the backend `file` if another process
    has it open, `CorruptedDataError`.
    """
    name = module_name(sys._getframe(1).f_globals["__name__"])
    path = directory_of_safes(directory) / folder_name(node, cage, name)
    if directory is None and not os.environ.get("OBJDB_SAFE"):
        _require_own(path.parent)
        _require_own(path)
    return open_safe(path, backend=backend)


def _require_own(folder: Path) -> None:
    """Raise `SafeError` if a directory that was found, not named, belongs to another user, or is
    writable by everyone: values in it are unpickled, which runs code that they name."""
    try:
        found = os.stat(folder)
    except OSError:  # it is created, or opening it raises
        return
    if found.st_uid not in (os.geteuid(), 0):
        why = f"belongs to user {found.st_uid}"
    elif found.st_mode & stat.S_IWOTH:
        why = "is writable by everyone"
    else:
        return
    raise SafeError(
        f"the directory {folder} {why}, and opening a safe in it runs code that its values name. "
        "Name it by OBJDB_SAFE if you trust it, or start the program in another directory",
        path=str(folder),
    )


def open_safe(
    path: str | os.PathLike[str], *, backend: str | None = None, create: bool = True
) -> Safe:
    """Return the safe in the directory *path*, created if missing and *create* is true.
    Arguments and errors are those of `module_safe`."""
    folder = Path(os.path.abspath(path_given(path, "safe")))
    backend = backend or os.environ.get("OBJDB_SAFE_BACKEND") or None
    if backend is not None and backend not in _BACKENDS:
        raise UsageError(f"unknown backend {backend!r}; it can be {', '.join(_BACKENDS)}")
    with _opening:
        safe = _open_safes.get(folder)
        if safe is None or safe.is_closed:
            try:
                safe = _open_safes[folder] = _open(folder, backend, create)
            except OSError as error:
                raise SafeError(
                    f"the safe {folder} cannot be opened: {error.strerror or error}. Check the "
                    "permissions, or name another directory by OBJDB_SAFE",
                    path=str(folder),
                ) from error
        return safe


def list_safes(directory: str | os.PathLike[str] | None = None) -> list[SafeInfo]:
    """Return the safes in a directory of safes, by name. OSError if it cannot be read."""
    found = []
    for path in sorted(directory_of_safes(directory).iterdir()):
        try:
            node, cage, module = parts_of(path.name)
        except ValueError:
            continue
        if (path / _MARKER).exists():
            found.append(SafeInfo(path, node, cage, module, _read_marker(path)[0]))
    return found


def _open(folder: Path, backend: str | None, create: bool) -> Safe:
    if not create and not (folder / _MARKER).exists():
        raise SafeError(f"there is no safe in {folder}", path=str(folder))
    folder.mkdir(parents=True, exist_ok=True)
    if not _is_safe(folder):
        with _locked(folder):
            if not _is_safe(folder):
                backend = backend or _default_backend()
                _load_backend(folder, backend)
                make_private(str(folder))
                _write_marker(folder, backend, is_complete=False)
    backend = _read_marker(folder)[0]
    table_class = _load_backend(folder, backend)
    with _locked(folder):
        is_complete = _read_marker(folder)[1]
        if is_complete and not (folder / table_class.file_name).exists():
            raise CorruptedDataError(
                f"the safe {folder} is damaged: its file {table_class.file_name} is missing. Put "
                "it back, or restore the directory from a backup", path=str(folder),
            )
        table = table_class(folder)
        if not is_complete:
            _write_marker(folder, backend, is_complete=True)
        return Safe(folder, backend, table)


def _is_safe(folder: Path) -> bool:
    names = {entry.name for entry in folder.iterdir()}
    if _MARKER in names:
        return True
    if names - {_LOCK, _NEW_MARKER}:
        raise FileFormatError(
            f"{folder} is not a safe: it has no {_MARKER}, but other files. Move them away, or "
            "name another directory by OBJDB_SAFE",
            path=str(folder),
        )
    return False


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    descriptor = os.open(folder / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o660)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _write_marker(folder: Path, backend: str, *, is_complete: bool) -> None:
    new = folder / _NEW_MARKER
    with open_new(str(new)) as file:
        json.dump({"format": _FORMAT, "backend": backend, "complete": is_complete}, file)
        file.flush()
        os.fsync(file.fileno())
    new.rename(folder / _MARKER)
    sync_path(str(folder))
    sync_path(str(folder.parent))


def _read_marker(folder: Path) -> tuple[str, bool]:
    """Return the safe's backend, and whether all its files were created."""
    path = folder / _MARKER
    try:
        marker = json.loads(path.read_bytes())
        version, backend = marker["format"], marker["backend"]
    except (ValueError, KeyError, TypeError) as error:
        raise FileFormatError(
            f"{path} is damaged: {error}. Restore it from a backup", path=str(path)
        ) from error
    if version != _FORMAT or backend not in _BACKENDS:
        raise FileFormatError(
            f"{folder} is a safe of format {version} with the backend {backend}; this release "
            f"knows format {_FORMAT} and {', '.join(_BACKENDS)}. A newer release opens it",
            path=str(folder),
        )
    return str(backend), bool(marker.get("complete"))


def _default_backend() -> str:
    try:
        importlib.import_module("berkeleydb")
    except ImportError:
        return "sqlite"
    return "berkeley"


def _load_backend(folder: Path, backend: str) -> Any:
    module, name = _BACKENDS[backend]
    try:
        return getattr(importlib.import_module(module), name)
    except ImportError as error:
        if backend != "berkeley":
            raise
        raise MissingPackageError(
            f"the safe {folder} is kept by Berkeley DB, and the package berkeleydb cannot be "
            f"imported: {error}. Install objdb[berkeley] (pip install 'objdb[berkeley]')",
            path=str(folder), package="berkeleydb", extra="objdb[berkeley]",
        ) from error


def _before_fork() -> None:
    _opening.acquire()
    for safe in _open_safes.values():
        safe.table.before_fork()


def _after_fork(in_child: bool) -> None:
    for safe in _open_safes.values():
        safe.table.after_fork(in_child)
    _opening.release()


def _close_all() -> None:
    for safe in list(_open_safes.values()):
        safe.close()


at_fork(
    Stage.SAFES, before=_before_fork, in_parent=lambda: _after_fork(False),
    in_child=lambda: _after_fork(True),
)
atexit.register(_close_all)
