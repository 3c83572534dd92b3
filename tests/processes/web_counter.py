"""A web application that counts its calls in a database: for servers that fork. The environment
says which database (STORAGE), and whether it is opened before the fork (PRELOAD)."""

from __future__ import annotations

import os
import traceback
from collections.abc import Callable, Iterable
from typing import Any

import objdb
from objdb.errors import ObjdbError

URI = os.environ["STORAGE"]


def _begin(db: objdb.DB) -> None:
    def make(connection: objdb.Connection) -> None:
        connection.root().setdefault("calls", 0)

    db.run(make, tries=100)


_db: objdb.DB | None = None
if os.environ.get("PRELOAD"):
    from objdb.database.opening import open_storage

    _db = objdb.DB(lambda: open_storage(URI)[0])
    _begin(_db)


def database() -> objdb.DB:
    """The database of this process."""
    global _db
    if _db is None:
        _db = objdb.DB(URI)
        _begin(_db)
    return _db


def application(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    """Count a call, and tell the number and the process; or the error."""

    def count(connection: objdb.Connection) -> int:
        connection.root()["calls"] += 1
        return int(connection.root()["calls"])

    try:
        text, status = f"{database().run(count, tries=1000)} {os.getpid()}", "200 OK"
    except ObjdbError as error:
        text, status = f"{type(error).__name__}: {error}", "503 Service Unavailable"
    except Exception:
        text, status = traceback.format_exc(), "500 Internal Server Error"
    start_response(status, [("Content-Type", "text/plain"), ("Connection", "close")])
    return [text.encode()]
