"""A group calendar: four classes of persistent objects.

    root["calendar"] ── Calendar
                          ├─ by_uid      uid            → Appointment
                          ├─ by_subject  (subject, uid) → Appointment
                          ├─ by_date     (day, uid)     → Appointment    each day it touches
                          ├─ series      uid            → Appointment    those that come again
                          └─ people      username       → Person
                                                            └─ days  day → Day   who, when, what

Nothing here opens a file or commits. The methods run inside somebody's transaction:

    with db.transaction() as connection:
        connection.root()["calendar"].make_appointment(...)

The trees make a large calendar cheap: showing one month loads that month, and two people who add
appointments at the same time do not disturb each other, because a BTree can merge two insertions.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from datetime import date, datetime, timedelta
from typing import Any

from BTrees.OOBTree import OOBTree

import objdb

from .appointment import Appointment, Occurrence, one_line
from .errors import CalendarError, NoSuchAppointment, PersonBusy, UnknownPerson
from .person import Day, Person
from .zones import instant, midnight, utc_days, zone_named

__all__ = ["Appointment", "Calendar", "Day", "Occurrence", "Person"]

ONE_DAY = timedelta(days=1)
MOST_TRIES = 10_000
LAST_KEY = "\U0010ffff"


class Calendar(objdb.Persistent):
    """Appointments, found by subject and by date, and the people who take part in them."""

    def __init__(self, zone: str = "UTC") -> None:
        self.zone = zone_named(zone)
        self.by_uid = OOBTree()
        self.by_subject = OOBTree()
        self.by_date = OOBTree()
        self.series = OOBTree()
        self.people = OOBTree()

    def add_person(self, username: str, realname: str = "", email: str = "") -> Person:
        """Enter somebody under a username nobody else has; return the Person."""
        username = one_line(username)
        if not username:
            raise CalendarError("a person needs a username")
        if username in self.people:
            raise CalendarError(f"there is already a person named {username!r}")
        person = self.people[username] = Person(username, one_line(realname), email.strip())
        return person

    def person(self, username: str) -> Person:
        """Return the Person with this username; raise UnknownPerson, naming those there are."""
        try:
            return self.people[username]
        except KeyError:
            known = ", ".join(self.people) or "nobody yet"
            raise UnknownPerson(f"there is no person {username!r}; there is {known}") from None

    def make_appointment(
        self,
        date: date | datetime,
        duration: timedelta,
        subject: str,
        *,
        participants: Iterable[str] = (),
        **more: Any,
    ) -> Appointment:
        """Make an appointment and book everybody who takes part; return it.

        `date` has a zone, or is a plain date for whole days; `participants` are usernames; for
        `more`, see Appointment. Raises PersonBusy when somebody is already booked; nothing has been
        changed then, so the caller may go on with the transaction. Against bookings that other
        transactions are making at this moment, the commit protects: it raises ConflictError, and
        `db.run` runs the whole function again.
        """
        people = self._people(participants)
        appointment = Appointment(date, duration, subject, **more)
        if appointment.uid in self.by_uid:
            raise CalendarError(f"there is already an appointment with the uid {appointment.uid!r}")
        self._check_free(appointment, people)
        self._enter(appointment, people)
        return appointment

    def invite(self, appointment: Appointment, username: str) -> None:
        """Let one more person take part. Raises PersonBusy when that person cannot."""
        person = self.person(username)
        if person in appointment.participants:
            raise CalendarError(f"{username} already takes part in {appointment.subject!r}")
        self._check_free(appointment, (person,))
        self._book(appointment, (person,))
        appointment.participants = (*appointment.participants, person)

    def change(self, appointment: Appointment, **fields: Any) -> None:
        """Give an appointment other values (see Appointment) and book its people anew.

        `participants` are usernames, as in `make_appointment`. Raises PersonBusy when one of them
        is busy at the new time; all stays as it was then.
        """
        people = appointment.participants
        if "participants" in fields:
            people = self._people(fields.pop("participants"))
        wanted = Appointment(uid=appointment.uid, **{**appointment.fields(), **fields})
        self._check_free(wanted, people)
        self._leave(appointment)
        for name, value in wanted.fields().items():
            setattr(appointment, name, value)
        self._enter(appointment, people)

    def remove(self, appointment: Appointment) -> None:
        """Call an appointment off: its people are free again."""
        self._leave(appointment)
        appointment.participants = ()

    def find(self, text: str) -> list[Appointment]:
        """Return the appointments whose subject begins with `text`, in any case of letters."""
        first = text.casefold()
        return list(self.by_subject.values(min=(first, ""), max=(first + LAST_KEY, "")))

    def pick(self, text: str) -> Appointment:
        """Return the one appointment meant by `text`: its subject, its beginning, or a uid."""
        found = self.find(text)
        exact = [one for one in found if one.subject.casefold() == text.casefold()]
        chosen = exact or found or list(self.by_uid.values(min=text, max=text + LAST_KEY))
        if len(chosen) == 1:
            return chosen[0]
        if not chosen:
            raise NoSuchAppointment(f"there is no appointment {text!r}")
        several = "; ".join(f"{one.subject} {one.date} [{one.uid[:8]}]" for one in chosen[:5])
        raise NoSuchAppointment(f"{text!r} could be {len(chosen)} appointments: {several}")

    def with_uid(self, uid: str) -> Appointment | None:
        """Return the appointment with this uid, or None."""
        return self.by_uid.get(uid)

    def __iter__(self) -> Iterator[Appointment]:
        return iter(self.by_subject.values())

    def __len__(self) -> int:
        return len(self.by_uid)

    def between(self, start: datetime, end: datetime) -> list[Occurrence]:
        """Return what takes place from one instant up to another, in order."""
        first, last = utc_days(start, end)[0], utc_days(start, end)[-1]
        single = {one.uid: one for one in self.by_date.values((first, ""), (last, LAST_KEY))}
        found = [
            occurrence
            for appointment in (*single.values(), *self.series.values())
            for occurrence in appointment.occurrences(self.zone, before=end)
            if occurrence.overlaps(start, end)
        ]
        return sorted(
            found,
            key=lambda one: (
                one.start,
                not one.appointment.whole_day,
                one.appointment.subject,
                one.appointment.uid,
            ),
        )

    def on(self, day: date) -> list[Occurrence]:
        """Return what takes place on a day, as the clocks of the calendar's zone count it."""
        return self.between(midnight(day, self.zone), midnight(day + ONE_DAY, self.zone))

    def free_slot(
        self,
        usernames: Iterable[str],
        start: datetime,
        duration: timedelta,
        step: timedelta = timedelta(minutes=30),
    ) -> datetime:
        """Return the first time from `start` on, in steps, at which all these people are free."""
        people = self._people(usernames)
        begin = instant(start, self.zone)
        for _ in range(MOST_TRIES):
            if not any(person.clash(begin, begin + duration) for person in people):
                return begin.astimezone(start.tzinfo)
            begin += step
        raise CalendarError(
            f"no time is free for all of {', '.join(one.username for one in people)}"
        )

    def _people(self, usernames: Iterable[str]) -> tuple[Person, ...]:
        """Return the persons of these names, each once."""
        return tuple(self.person(name) for name in dict.fromkeys(usernames))

    def _check_free(self, appointment: Appointment, people: tuple[Person, ...]) -> None:
        """Raise PersonBusy unless all these people can come; changes nothing."""
        if not people:
            return
        for one in appointment.bookings(self.zone):
            for person in people:
                clash = person.clash(one.start, one.end, ignoring=appointment.uid)
                if clash is not None:
                    start, end = (when.astimezone(self.zone) for when in clash[:2])
                    raise PersonBusy(person.username, self.by_uid[clash[2]].subject, start, end)

    def _enter(self, appointment: Appointment, people: tuple[Person, ...]) -> None:
        """Put an appointment into the trees and onto its people's days."""
        self.by_uid[appointment.uid] = appointment
        self.by_subject[appointment.subject.casefold(), appointment.uid] = appointment
        if appointment.repeat or appointment.added:
            self.series[appointment.uid] = appointment
        else:
            for day in self._touched(appointment):
                self.by_date[day, appointment.uid] = appointment
        appointment.participants = people
        self._book(appointment, people)

    def _leave(self, appointment: Appointment) -> None:
        """Undo `_enter`."""
        del self.by_uid[appointment.uid]
        del self.by_subject[appointment.subject.casefold(), appointment.uid]
        if appointment.uid in self.series:
            del self.series[appointment.uid]
        else:
            for day in self._touched(appointment):
                del self.by_date[day, appointment.uid]
        if appointment.participants:
            for one in appointment.bookings(self.zone):
                for person in appointment.participants:
                    person.release(one.start, one.end, appointment.uid)

    def _book(self, appointment: Appointment, people: tuple[Person, ...]) -> None:
        """Write an appointment onto the days of these people."""
        if people:
            for one in appointment.bookings(self.zone):
                for person in people:
                    person.book(one.start, one.end, appointment.uid)

    def _touched(self, appointment: Appointment) -> list[date]:
        """Return the days of UTC that an appointment without a rule touches."""
        occurrences = appointment.occurrences(self.zone)
        return [day for one in occurrences for day in utc_days(one.start, one.end)]
