"""Checking a calendar: is anybody double-booked, and does every index agree with the others?

The check looks at the appointments themselves and not at the days of the people, which is what the
bookings were made with: a check that asks the same witness again proves nothing.
"""

from __future__ import annotations

from collections import defaultdict
from itertools import pairwise

from .model import Calendar, Occurrence


def double_bookings(calendar: Calendar) -> list[tuple[str, Occurrence, Occurrence]]:
    """Return (username, one occurrence, another that overlaps it) for everybody double-booked."""
    busy: dict[str, list[Occurrence]] = defaultdict(list)
    for appointment in calendar:
        for one in appointment.bookings(calendar.zone) if appointment.participants else ():
            for person in appointment.participants:
                busy[person.username].append(one)
    found = []
    for username, occurrences in busy.items():
        occurrences.sort(key=lambda one: (one.start, one.end))
        # Neighbours suffice: where any two overlap, two neighbours do.
        found += [
            (username, one, other) for one, other in pairwise(occurrences) if other.start < one.end
        ]
    return found


def index_faults(calendar: Calendar) -> list[str]:
    """Return a line for each disagreement between the trees, the appointments and the days."""
    faults = []
    uids = set(calendar.by_uid)
    if {uid for _, uid in calendar.by_subject} != uids:
        faults.append("by_subject holds other appointments than by_uid")
    if {uid for _, uid in calendar.by_date} | set(calendar.series) != uids:
        faults.append("by_date and series together hold other appointments than by_uid")
    for username, person in calendar.people.items():
        booked = {booking for day in person.days.values() for booking in day.bookings}
        wanted = {
            (one.start, one.end, appointment.uid)
            for appointment in calendar
            if person in appointment.participants
            for one in appointment.bookings(calendar.zone)
        }
        if booked != wanted:
            faults.append(f"the days of {username} differ from the appointments")
    return faults
