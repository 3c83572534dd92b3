"""Importing .ics files (RFC 5545), as other calendar programs write them.

It is done in two steps. `read_ics` turns a file into plain entries and touches no database;
`import_entries` brings the entries into a calendar within a transaction. Should that transaction
meet a conflict and run again, the file need not be read again.

A file that breaks the format is refused as a whole, with BadFile. What is legal and cannot be taken
over is left out or simplified, and the report says so, event by event.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import date, datetime, timedelta, timezone
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import icalendar

from .errors import BadFile, CalendarError, PersonBusy
from .ics_event import Entry, EventReader, Guest, Unsupported, alike
from .model import Appointment, Calendar
from .recurrence import has_end, rule_until

ENDLESS_BOOKED = timedelta(days=731)


@dataclass
class Reading:
    """What a file holds: entries to import, and a line for each thing that was left out."""

    entries: list[Entry] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


@dataclass
class ImportReport:
    """What an import did."""

    added: int = 0
    changed: int = 0
    notes: list[str] = field(default_factory=list)


def read_ics(path: Path | str, zone: ZoneInfo) -> Reading:
    """Read the events of an .ics file; times without a zone are taken to be in `zone`.

    Raises BadFile, which names the file, the event and what is wrong, for a file that cannot be
    read or breaks the format.
    """
    reading = Reading()
    masters: dict[str, Entry] = {}
    replaced: list[tuple[str, date | datetime]] = []
    for component in _parse(path):
        event = EventReader(path, component, zone)
        original = event.when("RECURRENCE-ID")
        if original is not None:
            replaced.append((event.uid, original))
        try:
            entry = event.entry()
        except Unsupported as error:
            event.notes.append(f"{event.name}: left out, {error}")
        else:
            if original is None:
                masters[entry.uid] = entry
            else:
                entry.uid = f"{entry.uid}#{_compact(original)}"
            reading.entries.append(entry)
        reading.notes.extend(dict.fromkeys(event.notes))
    # One changed occurrence of a series is an event of its own; the series skips that time.
    for uid, original in replaced:
        if uid in masters:
            fields = masters[uid].fields
            fields["skipped"] = (*fields["skipped"], alike(original, fields["date"]))
    return reading


def import_entries(calendar: Calendar, reading: Reading) -> ImportReport:
    """Bring entries into the calendar, in the caller's transaction.

    An entry whose uid is there already changes that appointment, so importing a file twice adds
    nothing. Guests who are unknown become people of the calendar. A guest who is busy elsewhere is
    left out of the appointment, and the report says so: files do contain double bookings.
    """
    report = ImportReport(notes=list(reading.notes))
    for entry in reading.entries:
        fields = dict(entry.fields)
        name = repr(fields["subject"])
        if entry.guests and fields["repeat"] and not has_end(fields["repeat"]):
            fields["repeat"] = rule_until(fields["repeat"], fields["date"] + ENDLESS_BOOKED)
            report.notes.append(f"{name}: has no end, so its people are booked for two years")
        usernames = [_username(calendar, guest) for guest in entry.guests]
        _bring_in(calendar, entry.uid, fields, usernames, report)
    return report


def _bring_in(
    calendar: Calendar,
    uid: str,
    fields: dict[str, Any],
    usernames: list[str],
    report: ImportReport,
) -> None:
    """Make or change one appointment, with as many of the people as can come."""
    known = calendar.with_uid(uid)
    try:
        if known is None:
            calendar.make_appointment(uid=uid, participants=usernames, **fields)
            report.added += 1
        else:
            if _same(known, fields, usernames):
                return
            calendar.change(known, participants=usernames, **fields)
            report.changed += 1
    except PersonBusy as busy:
        report.notes.append(f"{fields['subject']!r}: without {busy.person}, for {busy}")
        remaining = [username for username in usernames if username != busy.person]
        _bring_in(calendar, uid, fields, remaining, report)
    except CalendarError as error:
        if usernames:
            report.notes.append(f"{fields['subject']!r}: without its people, for {error}")
            _bring_in(calendar, uid, fields, [], report)
        else:
            report.notes.append(f"{fields['subject']!r}: left out, {error}")


def _same(known: Appointment, fields: dict[str, Any], usernames: list[str]) -> bool:
    """Tell whether an appointment already is what a file says."""
    people = [person.username for person in known.participants]
    return people == usernames and {**known.fields(), **fields} == known.fields()


def _username(calendar: Calendar, guest: Guest) -> str:
    """Return the username of a guest, entering the person when nobody fits."""
    if guest.email:
        for person in calendar.people.values():
            if person.email.lower() == guest.email.lower():
                return person.username
    username = guest.username
    number = 1
    while username in calendar.people:
        person = calendar.people[username]
        if not (guest.email and person.email):
            return username
        number += 1
        username = f"{guest.username}{number}"
    return calendar.add_person(username, guest.realname, guest.email).username


def _parse(path: Path | str) -> list[icalendar.Event]:
    """Return the events of all calendars in a file."""
    try:
        text = Path(path).read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise BadFile(path, error.strerror or str(error)) from None
    except UnicodeDecodeError as error:
        raise BadFile(path, f"is no text in UTF-8 (at byte {error.start})") from None
    if "BEGIN:VCALENDAR" not in text.upper():
        raise BadFile(path, "is no calendar file: BEGIN:VCALENDAR is missing")
    _check_nesting(path, text)
    try:
        calendars = icalendar.Calendar.from_ical(text, multiple=True)
        return [event for one in calendars for event in one.walk("VEVENT")]
    except (ValueError, KeyError, IndexError, AttributeError, TypeError) as error:
        raise BadFile(path, f"is no valid calendar file: {error}") from None


def _check_nesting(path: Path | str, text: str) -> None:
    """Raise BadFile unless every BEGIN has its END: icalendar silently drops what is open."""
    opened: list[str] = []
    for number, line in enumerate(text.splitlines(), start=1):
        # A line that begins with a space continues the one before.
        word, _, name = line.rstrip().upper().partition(":")
        if word == "BEGIN":
            opened.append(name)
        elif word == "END" and (not opened or opened.pop() != name):
            raise BadFile(path, f"line {number}: END:{name} without its BEGIN:{name}")
    if opened:
        raise BadFile(path, f"is cut off: END:{opened[-1]} is missing")


def _compact(when: date | datetime) -> str:
    """Return a date or an instant as calendar files write it."""
    if isinstance(when, datetime):
        return f"{when.astimezone(timezone.utc):%Y%m%dT%H%M%SZ}"
    return f"{when:%Y%m%d}"
