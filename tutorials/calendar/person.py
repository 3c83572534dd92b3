"""A person, and what keeps the person busy.

**Nobody is booked twice**, and this module is where that is decided. Two transactions look at
Anna's Tuesday at the same time, both find ten o'clock free, and both enter their own appointment.
If the entries went into a BTree only, under a key each, the tree would merge the two insertions:
each transaction was right about what it saw, and together they are wrong. This is called *write
skew*, and no conflict on any object reveals it, because the two changed different things.

    transaction 1   reads Tuesday: free      inserts (Tuesday, uid 1)     commits
    transaction 2   reads Tuesday: free      inserts (Tuesday, uid 2)     commits: double-booked

The cure is an object that both of them must change:

    transaction 1   reads Tuesday: free      changes Anna's Day           commits
    transaction 2   reads Tuesday: free      changes Anna's Day           ConflictError, runs again:
                    reads Tuesday: busy      PersonBusy

That object is the `Day`: one person's bookings of one day. It has no way of merging two changes.
Bookings of different people, or of one person on different days, change different objects and never
get in each other's way; a single "lock" for the whole calendar would be as safe and much slower.

Days are counted in UTC. Appointments that overlap share an instant, and an instant has one date in
UTC, so they share a `Day`, whichever zones they were made in.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

from BTrees.OOBTree import OOBTree

import objdb

from .zones import utc_days

# When it begins, when it ends (both in UTC), and the uid of the appointment.
Booking = tuple[datetime, datetime, str]


class Day(objdb.Persistent):
    """What one person does on one day (of UTC): a tuple of (start, end, uid of the appointment).

    Deliberately without `_p_resolveConflict`: two transactions that both change a Day cannot both
    commit. A Day that has become empty stays where it is, for the same reason: were it removed,
    a booking and a removal at the same time would touch different objects.
    """

    def __init__(self) -> None:
        self.bookings: tuple[Booking, ...] = ()

    def clash(self, start: datetime, end: datetime, ignoring: str) -> Booking | None:
        """Return a booking that overlaps the given time, except one of the uid `ignoring`."""
        for booking in self.bookings:
            if start < booking[1] and booking[0] < end and booking[2] != ignoring:
                return booking
        return None

    def book(self, start: datetime, end: datetime, uid: str) -> None:
        """Write the booking down; assigning the attribute is what marks this object as changed."""
        self.bookings = (*self.bookings, (start, end, uid))

    def release(self, uid: str) -> None:
        """Forget every booking for this appointment."""
        self.bookings = tuple(booking for booking in self.bookings if booking[2] != uid)


class Person(objdb.Persistent):
    """Somebody who can be invited.

    The first release knew only a `name`. Its objects are still in people's files; `__setstate__`
    turns them into the present shape when they are loaded (chapter 4 tells the story). `email` came
    later still, and needs no code at all: old states lack it, and the class attribute steps in.
    """

    email = ""

    def __init__(self, username: str, realname: str = "", email: str = "") -> None:
        self.username = username
        self.realname = realname or username
        if email:
            self.email = email
        self.days = OOBTree()

    def __setstate__(self, state: dict[str, Any]) -> None:
        state = dict(state)
        if "name" in state:
            name = state.pop("name")
            state.setdefault("username", name)
            state.setdefault("realname", name)
        super().__setstate__(state)

    @property
    def name(self) -> str:
        """The only name of the first release, for code that still asks for it."""
        return self.username

    def clash(self, start: datetime, end: datetime, ignoring: str = "") -> Booking | None:
        """Return a booking that keeps this person busy in the given time, or None when free."""
        days = (self.days[day] for day in utc_days(start, end) if day in self.days)
        clashes = (day.clash(start, end, ignoring) for day in days)
        return next(filter(None, clashes), None)

    def book(self, start: datetime, end: datetime, uid: str) -> None:
        """Note on each day that the person is busy from `start` up to `end`.

        A new Day is an insertion into `days`. When two transactions insert the same day, the tree
        cannot merge them either, so the first booking of a day is as safe as the later ones.
        """
        for day in utc_days(start, end):
            if day not in self.days:
                self.days[day] = Day()
            self.days[day].book(start, end, uid)

    def release(self, start: datetime, end: datetime, uid: str) -> None:
        """Undo `book`."""
        for day in utc_days(start, end):
            if day in self.days:
                self.days[day].release(uid)
