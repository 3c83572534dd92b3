"""Evenings, and who comes to them.

    root["evenings"]   OOBTree: title ─► Evening
                                           seats, taken
                                           guests   OOBTree: name ─► Guest

`taken` is an attribute of the evening itself. So two transactions that give away seats of the same
evening change the same object: the second conflicts, is tried again, and sees what is left. A
counter that merges, such as `BTrees.Length`, would let both through, and with them one guest too
many.
"""

from __future__ import annotations

from datetime import datetime, timezone
from typing import Any

from BTrees.OOBTree import OOBTree

import objdb


class GuestListError(Exception):
    """A wish that cannot be granted; the message is for the guest."""


class Unknown(GuestListError):
    """There is no such evening, or no such guest."""


class Refused(GuestListError):
    """There is an evening or a guest of that name already, or no seat is left."""


class Guest(objdb.Persistent):
    """Somebody who comes, and how many they bring."""

    def __init__(self, name: str, seats: int) -> None:
        self.name = name
        self.seats = seats
        self.since = datetime.now(timezone.utc)


class Evening(objdb.Persistent):
    """An evening with so many seats."""

    def __init__(self, title: str, seats: int) -> None:
        self.title = title
        self.seats = seats
        self.taken = 0
        self.guests = OOBTree()

    def sign_up(self, name: str, seats: int = 1) -> Guest:
        """Give somebody seats; `Refused` if there are not enough, or the name is on the list."""
        if name in self.guests:
            raise Refused(f"{name} is on the list already")
        if self.taken + seats > self.seats:
            raise Refused(f"{self.title} has {self.seats - self.taken} seats left")
        self.taken += seats
        guest = self.guests[name] = Guest(name, seats)
        return guest

    def sign_off(self, name: str) -> None:
        """Take somebody's seats back; `Unknown` if the name is not on the list."""
        guest = self.guests.pop(name, None)
        if guest is None:
            raise Unknown(f"{name} is not on the list")
        self.taken -= guest.seats

    def as_dict(self) -> dict[str, Any]:
        """Return what there is to tell, without the guests."""
        return {"title": self.title, "seats": self.seats, "left": self.seats - self.taken}


def evenings_in(connection: objdb.Connection) -> Any:
    """Return the tree of evenings, by title; made when it is first needed."""
    root = connection.root()
    if "evenings" not in root:
        root["evenings"] = OOBTree()
    return root["evenings"]


def evening_in(connection: objdb.Connection, title: str) -> Evening:
    """Return an evening; `Unknown` if there is none of that title."""
    evening: Evening | None = evenings_in(connection).get(title)
    if evening is None:
        raise Unknown(f"there is no evening {title!r}")
    return evening


def add_evening(connection: objdb.Connection, title: str, seats: int) -> Evening:
    """Add an evening; `Refused` if there is one of that title."""
    evenings = evenings_in(connection)
    if title in evenings:
        raise Refused(f"there is an evening {title!r} already")
    evening = evenings[title] = Evening(title, seats)
    return evening


def faults(connection: objdb.Connection) -> list[str]:
    """Return a sentence for each evening whose numbers do not fit together."""
    found = []
    for evening in evenings_in(connection).values():
        seats = sum(guest.seats for guest in evening.guests.values())
        if not evening.taken == seats <= evening.seats:
            found.append(f"{evening.title}: {seats} on the list, {evening.taken} counted")
    return found
