"""Opening the file of a calendar."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import objdb

from .errors import CalendarError
from .model import Calendar

KEY = "calendar"
MAGIC = b"FS30"


def is_database(path: Path) -> bool:
    """Tell whether a file that exists begins like a database; no other is opened."""
    if path.is_dir():
        return False
    with path.open("rb") as file:
        return file.read(len(MAGIC)) == MAGIC


def open_calendar(path: Path) -> objdb.DB:
    """Open a file that exists. Raises CalendarError when it does not, or is something else."""
    if not path.exists():
        raise CalendarError(
            f"there is no file {path}; `init` makes an empty calendar, `demo` a full one"
        )
    if not is_database(path):
        raise CalendarError(f"{path} is not a database file; it is left alone")
    return objdb.DB(path)


def create_calendar(path: Path, zone: str) -> None:
    """Make a file with an empty calendar. Raises CalendarError rather than touch a file."""
    calendar = Calendar(zone)
    if path.exists():
        raise CalendarError(f"{path} exists; it is left alone")
    with objdb.DB(path) as db, db.transaction(note="a new calendar") as connection:
        connection.root()[KEY] = calendar


def calendar_in(connection: Any) -> Calendar:
    """Return the calendar that a connection sees."""
    calendar = connection.root().get(KEY)
    if not isinstance(calendar, Calendar):
        raise CalendarError("this file is a database without a calendar; it is left alone")
    return calendar
