"""Exporting a calendar as an .ics file that other calendar programs read."""

from __future__ import annotations

from datetime import date, datetime, timezone

import icalendar

from .model import Appointment, Calendar, Person

PRODUCT = "-//objdb//calendar tutorial//EN"


def calendar_as_ics(calendar: Calendar, now: datetime | None = None) -> bytes:
    """Return all appointments as the bytes of an .ics file.

    The definitions of all time zones in use are included. `now` is the time that each event is
    stamped with, by default this moment.
    """
    stamp = now or datetime.now(timezone.utc)
    file = icalendar.Calendar()
    file.add("PRODID", PRODUCT)
    file.add("VERSION", "2.0")
    for appointment in calendar.by_uid.values():
        file.add_component(_event(appointment, stamp))
    file.add_missing_timezones()
    return file.to_ical()


def _event(appointment: Appointment, stamp: datetime) -> icalendar.Event:
    """Return one appointment as an event."""
    event = icalendar.Event()
    event.add("UID", appointment.uid)
    event.add("DTSTAMP", stamp)
    event.add("SUMMARY", appointment.subject)
    event.add("DTSTART", appointment.date)
    event.add("DURATION", appointment.duration)
    if appointment.location:
        event.add("LOCATION", appointment.location)
    if appointment.repeat:
        event.add("RRULE", icalendar.vRecur.from_ical(appointment.repeat))
    for name, times in (("EXDATE", appointment.skipped), ("RDATE", appointment.added)):
        for when in times:
            event.add(name, _like(when, appointment.date))
    if appointment.category:
        event.add("CATEGORIES", [appointment.category])
    event.add("TRANSP", "OPAQUE" if appointment.busy else "TRANSPARENT")
    for person in appointment.participants:
        event.add("ATTENDEE", _attendee(person), encode=False)
    return event


def _like(when: date | datetime, first: date | datetime) -> date | datetime:
    """Return `when` in the zone of `first`: a file gives the times of a series in one zone."""
    if isinstance(when, datetime) and isinstance(first, datetime):
        return when.astimezone(first.tzinfo)
    return when


def _attendee(person: Person) -> icalendar.vCalAddress:
    """Return a person as an attendee. The format demands an address, even of those without one."""
    address = f"mailto:{person.email}" if person.email else "invalid:nomail"
    attendee = icalendar.vCalAddress(address)
    attendee.params["CN"] = person.realname
    attendee.params["X-USERNAME"] = person.username
    return attendee
