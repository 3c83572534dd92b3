"""Settings in a file: the databases of an application, in TOML.

    [calendar]
    storage = "sqlite:calendar.sqlite"
    pool_size = 10

    [archive]
    storage = "compressed+file:archive.fs"

Each table is a database, whose name it has; besides `storage` (a path or a URI, relative to the
folder of the file) it has arguments of `DB`. `[server]` is for `objdb serve`.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from typing import Any

from objdb.database.db import DB
from objdb.database.opening import open_storage
from objdb.database.options import OPTIONS
from objdb.database.packing import open_among
from objdb.errors import UsageError
from objdb.storage.owning import drops_what_it_opened

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

DEFAULT_PATH = "objdb.toml"
SERVER = "server"  # the table of `objdb serve`, which is no database
_KNOWN = sorted(OPTIONS.keys() - {"database_name"})  # that is the table's name


class Databases(Mapping[str, DB]):
    """The databases of an application, by name; they can refer to one another. As a context
    manager, closes them."""

    def __init__(self) -> None:
        self.group: dict[str, Any] = {}

    @property
    def _open(self) -> dict[str, Any]:
        return open_among(self.group)

    def __getitem__(self, name: str) -> DB:
        if name not in self._open:
            known = ", ".join(self._open) or "none"
            raise UsageError(f"there is no database {name!r} in the settings; there are {known}")
        database: DB = self._open[name]
        return database

    def __contains__(self, name: object) -> bool:
        return name in self._open

    def __iter__(self) -> Iterator[str]:
        return iter(self._open)

    def __len__(self) -> int:
        return len(self._open)

    def close(self) -> None:
        """Close all, whatever closing one raises."""
        with ExitStack() as closing:
            for database in self._open.values():
                closing.callback(database.close)

    def __enter__(self) -> Databases:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def open_databases(path: str | os.PathLike[str] = DEFAULT_PATH) -> Databases:
    """Open all databases in the settings file *path*.

    `UsageError` for an invalid setting; the errors of opening. Then none is open.
    """
    path = os.fspath(path)
    settings = read_toml(path)
    settings.pop(SERVER, None)
    if not settings:
        raise UsageError(f"{path} has no databases: each is a table, [NAME], with its storage")
    databases = Databases()
    try:
        for name, options in settings.items():
            _open_one(path, name, options, databases.group)
    except BaseException:
        databases.close()
        raise
    return databases


def read_toml(path: str) -> dict[str, Any]:
    """Return what a settings file has; `UsageError` if it is not valid."""
    with open(path, "rb") as file:
        try:
            return tomllib.load(file)
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise UsageError(f"{path} is not valid TOML: {error}") from error


def _open_one(path: str, name: str, options: Any, databases: dict[str, Any]) -> None:
    if not isinstance(options, dict):
        raise UsageError(f"{path}: {name} is outside of a table. Each database is one: [{name}]")
    options = dict(options)
    where = options.pop("storage", None)
    if not isinstance(where, str):
        raise UsageError(f"{path}: [{name}] needs storage, a path or a URI, as text")
    unknown = options.keys() - set(_KNOWN)
    if unknown:
        raise UsageError(
            f"{path}: [{name}] has {', '.join(sorted(unknown))}; known are storage, "
            f"{', '.join(_KNOWN)}"
        )
    folder = os.path.dirname(os.path.abspath(path))
    _Opening(where, folder, {**options, "databases": databases, "database_name": name})


class _Opening:
    """Opens a database with *options* on the storage *where*; the URI's options win. The storage
    goes, too, if it is interrupted before the database has it."""

    @drops_what_it_opened
    def __init__(self, where: str, folder: str, options: dict[str, Any]) -> None:
        storage, given = open_storage(where, folder, read_only=bool(options.get("read_only")))
        given.pop("database_name", None)
        self._database = DB(storage, **{**options, **given})

    def drop_opened(self) -> None:
        """Do nothing: storage and database drop what they have."""

    def close(self) -> None:
        """Close the database."""
        self._database.close()
