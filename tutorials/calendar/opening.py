"""Opening the calendar's database: a file, or whatever a URI names."""

from __future__ import annotations

import os
from typing import Any

import objdb
from objdb.database.opening import with_parameter

from .errors import CalendarError
from .model import Calendar

KEY = "calendar"
DEFAULT_FILE = "cal.fs"
Where = str | os.PathLike[str]


def names_in(where: Where) -> list[str]:
    """Return what the root object of a database has, looking only; nothing if there is no
    database. Raises CalendarError for something else, which is left alone."""
    uri = os.fspath(where)
    for name, value in (("read_only", "yes"), ("create", "no")):
        uri = with_parameter(uri, name, value)  # if the storage has it
    try:
        with objdb.DB(uri) as db, db.transaction() as connection:
            return list(connection.root())
    except FileNotFoundError:
        return []
    except objdb.FileFormatError as error:
        raise CalendarError(f"{error}. It is left alone") from error


def free_beside(where: Where) -> str:
    """Return where there is nothing yet: cal-2.fs beside cal.fs, also in a URI."""
    path, question, query = os.fspath(where).partition("?")
    stem, ending = os.path.splitext(path)
    number = 2
    while names_in(found := f"{stem}-{number}{ending}{question}{query}"):
        number += 1
    return found


def open_calendar(where: Where) -> objdb.DB:
    """Open a database that has something in it. Raises CalendarError when it has not."""
    if not names_in(where):
        raise CalendarError(
            f"there is no calendar in {where}; `init` makes an empty one, `demo` a full one"
        )
    return objdb.DB(where)


def create_calendar(where: Where, zone: str) -> None:
    """Make a database with an empty calendar. Raises CalendarError rather than touch one."""
    calendar = Calendar(zone)
    if names_in(where):
        raise CalendarError(f"{where} exists; it is left alone")
    with objdb.DB(where) as db, db.transaction(note="a new calendar") as connection:
        connection.root()[KEY] = calendar


def calendar_in(connection: Any) -> Calendar:
    """Return the calendar that a connection sees."""
    calendar = connection.root().get(KEY)
    if not isinstance(calendar, Calendar):
        raise CalendarError("this is a database without a calendar; it is left alone")
    return calendar
