"""One event of an .ics file, read property by property.

Every error says which event of which file it is about, and which property.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date, datetime, timedelta, timezone
from pathlib import Path
from typing import Any, NamedTuple
from zoneinfo import ZoneInfo

import icalendar

from .errors import BadFile, CalendarError
from .model import Appointment
from .recurrence import checked_rule
from .zones import zone_like

ESSENTIAL = {"DTSTART", "DTEND", "DURATION", "RRULE", "EXDATE", "RDATE", "RECURRENCE-ID"}


class Unsupported(CalendarError):
    """An event is legal, and this calendar cannot take it over."""


class Guest(NamedTuple):
    """Somebody whom a file invites."""

    username: str
    realname: str
    email: str


@dataclass
class Entry:
    """One event of a file: the fields of an Appointment, and the guests."""

    uid: str
    fields: dict[str, Any]
    guests: list[Guest]


class EventReader:
    """One VEVENT, read with errors that say where they are."""

    def __init__(self, path: Path | str, component: icalendar.Event, zone: ZoneInfo) -> None:
        self.path, self.component, self.zone = path, component, zone
        self.notes: list[str] = []
        self.uid = self.text("UID")
        self.name = f"event {self.text('SUMMARY') or self.uid or 'without a name'!r}"
        for name, problem in component.errors:
            if name in ESSENTIAL:
                raise self.bad(f"{name}: {problem}")
            if name is None:
                self.notes.append(f"{self.name}: a line of it was not understood, {problem}")
        if not self.uid:
            raise self.bad("UID is missing")

    def bad(self, problem: str) -> BadFile:
        """Return the error for a problem with this event."""
        return BadFile(self.path, f"{self.name}: {problem}")

    def text(self, name: str) -> str:
        """Return a text, or nothing; of a property given twice, the first."""
        value = self.component.get(name, "")
        return str(value[0] if isinstance(value, list) else value)

    def when(self, name: str) -> date | datetime | None:
        """Return a date or time in a zone that has a name, or None when the event has none."""
        value = self.component.get(name)
        if isinstance(value, list):
            raise self.bad(f"{name} is given twice")
        if value is None:
            return None
        zone = value.params.get("TZID")
        if zone and isinstance(value.dt, datetime) and value.dt.tzinfo is None:
            self.notes.append(f"{self.name}: its time zone {zone!r} is unknown, took {self.zone}")
        return self.zoned(value.dt)

    def zoned(self, when: date | datetime) -> date | datetime:
        """Return `when` in a named zone; a time in a zone nobody knows is given in UTC."""
        if not isinstance(when, datetime) or isinstance(when.tzinfo, ZoneInfo):
            return when
        if when.tzinfo is None:
            return when.replace(tzinfo=self.zone)
        zone = zone_like(when.tzinfo, when.year, self.zone)
        if zone is not None:
            return when.replace(tzinfo=zone)
        if "RRULE" in self.component:
            raise Unsupported(f"no place on earth has the time zone {when.tzname()!r}")
        return when.astimezone(timezone.utc).astimezone(ZoneInfo("UTC"))

    def times(self, name: str, start: date | datetime) -> tuple[date | datetime, ...]:
        """Return the values of EXDATE or RDATE; of a period, its beginning.

        Some programs write a day where the series has a time; they mean that time on that day.
        """
        found = self.component.get(name, [])
        values = [
            one.dt for group in (found if isinstance(found, list) else [found]) for one in group.dts
        ]
        times = (self.zoned(one[0] if isinstance(one, tuple) else one) for one in values)
        return tuple(alike(when, start) for when in times)

    def duration(self, start: date | datetime) -> timedelta:
        """Return how long the event lasts: by its end, its duration, or what RFC 5545 implies."""
        whole_day = not isinstance(start, datetime)
        end = self.when("DTEND")
        if end is None:
            if "DURATION" in self.component:
                lasts = self.component["DURATION"].dt
            else:
                lasts = timedelta(days=1) if whole_day else timedelta()
        elif isinstance(end, datetime) == whole_day:
            raise self.bad("one of DTSTART and DTEND is a day and the other a time")
        elif whole_day:
            # Some programs write the same day for both, and mean that day.
            lasts = end - start or timedelta(days=1)
        else:
            lasts = end.astimezone(timezone.utc) - start.astimezone(timezone.utc)
        if lasts < timedelta():
            raise self.bad("it ends before it begins")
        return lasts

    def rule(self, start: date | datetime) -> str | None:
        """Return the rule of a series."""
        rule = self.component.get("RRULE")
        if isinstance(rule, list):
            raise Unsupported("it has more than one rule")
        try:
            return None if rule is None else checked_rule(rule.to_ical().decode(), start)
        except CalendarError as error:
            raise Unsupported(str(error)) from None

    def guests(self) -> list[Guest]:
        """Return those invited who have not declined."""
        found = self.component.get("ATTENDEE", [])
        guests = []
        for attendee in found if isinstance(found, list) else [found]:
            if attendee.params.get("PARTSTAT", "").upper() == "DECLINED":
                continue
            scheme, _, address = str(attendee).partition(":")
            email = address if scheme.lower() == "mailto" else ""
            realname = str(attendee.params.get("CN", "")) or email.partition("@")[0]
            username = str(attendee.params.get("X-USERNAME", "")) or _slug(realname)
            if username:
                guests.append(Guest(username, realname, email))
        return guests

    def entry(self) -> Entry:
        """Return the event as an entry to import."""
        if self.text("STATUS").upper() == "CANCELLED":
            raise Unsupported("it is cancelled")
        start = self.when("DTSTART")
        if start is None:
            raise self.bad("DTSTART is missing")
        fields = {
            "date": start,
            "duration": self.duration(start),
            "subject": self.text("SUMMARY") or "(no subject)",
            "location": self.text("LOCATION"),
            "repeat": self.rule(start),
            "skipped": self.times("EXDATE", start),
            "added": self.times("RDATE", start),
            "category": self.category(),
            "busy": self.text("TRANSP").upper() != "TRANSPARENT",
        }
        # Building it once here finds what an appointment cannot be before anything is stored.
        try:
            fields = Appointment(**fields).fields()
        except CalendarError as error:
            raise Unsupported(str(error)) from None
        return Entry(self.uid, fields, self.guests())

    def category(self) -> str:
        """Return the first category."""
        found = self.component.get("CATEGORIES", [])
        found = found[0] if isinstance(found, list) and found else found
        return str(found.cats[0]) if getattr(found, "cats", None) else ""


def _slug(name: str) -> str:
    """Return a username made of a name: ``Anna Berger`` becomes ``anna.berger``."""
    letters = "".join(c if c.isalnum() else " " for c in name.lower())
    return ".".join(letters.split())


def alike(when: date | datetime, start: date | datetime) -> date | datetime:
    """Return `when` as a day or a time, whichever `start` is."""
    if isinstance(start, datetime) and not isinstance(when, datetime):
        return datetime.combine(when, start.timetz())
    if isinstance(when, datetime) and not isinstance(start, datetime):
        return when.date()
    return when
