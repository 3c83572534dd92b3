"""What can go wrong in a calendar that its user can mend.

    CalendarError
    ├── PersonBusy          somebody is already booked at that time
    ├── UnknownPerson       nobody of that name is in the calendar
    ├── NoSuchAppointment   nothing fits the given subject, or too much does
    └── BadFile             a file that should be imported cannot be read

The text of each error is one line that says what is wrong and, where there is one, the way out:
the terminal application prints it as it stands.
"""

from __future__ import annotations

from datetime import datetime
from pathlib import Path


class CalendarError(Exception):
    """A mistake of the calendar's user; its text is fit to be shown."""


class PersonBusy(CalendarError):
    """A person cannot be booked because another appointment has that time."""

    def __init__(self, person: str, subject: str, start: datetime, end: datetime) -> None:
        super().__init__(person, subject, start, end)
        self.person = person
        self.subject = subject
        self.start = start
        self.end = end

    def __str__(self) -> str:
        return (
            f"{self.person} is busy with {self.subject!r}"
            f" from {self.start:%Y-%m-%d %H:%M} to {self.end:%Y-%m-%d %H:%M} {self.end:%Z}"
        )


class UnknownPerson(CalendarError):
    """Nobody in the calendar has this username."""


class NoSuchAppointment(CalendarError):
    """No appointment, or more than one, fits what the user asked for."""


class BadFile(CalendarError):
    """A file cannot be read; names the file and what is wrong with it."""

    def __init__(self, path: Path | str, problem: str) -> None:
        super().__init__(path, problem)
        self.path = path
        self.problem = problem

    def __str__(self) -> str:
        return f"{self.path}: {self.problem}"
