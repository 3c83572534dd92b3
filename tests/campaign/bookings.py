"""Threads, or processes, that book the same few people of the tutorial's calendar
at the same time: nobody is booked twice.

    careful    the tutorial's way, which changes an object that two such bookings share
    naive      look whether all are free, and insert: right when transactions run one by one
"""

from __future__ import annotations

import json
import random
import subprocess
import sys
from collections import Counter
from datetime import datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import objdb
from objdb.check import check
from tests.campaign.kills import ROOT
from tests.database.staging import Worker
from tutorials.calendar.check import double_bookings
from tutorials.calendar.errors import PersonBusy
from tutorials.calendar.model import Appointment, Calendar

THREADS = 8
PEOPLE = ("anna", "ben", "chiara", "dev")
BERLIN = ZoneInfo("Europe/Berlin")
TRIES = 1000
LONGEST_SECONDS = 600.0


def naive(
    calendar: Calendar, when: datetime, lasts: timedelta, subject: str, people: list[str]
) -> None:
    """Book people if all are free, without anything that two such bookings would both change."""
    wanted = tuple(calendar.person(username) for username in people)
    for one in calendar.between(when, when + lasts):
        for person in wanted:
            if person in one.appointment.participants:
                raise PersonBusy(person.username, one.appointment.subject, one.start, one.end)
    appointment = Appointment(when, lasts, subject)
    appointment.participants = wanted
    calendar.by_uid[appointment.uid] = appointment
    calendar.by_subject[subject.casefold(), appointment.uid] = appointment
    calendar.by_date[when.date(), appointment.uid] = appointment


def careful(
    calendar: Calendar, when: datetime, lasts: timedelta, subject: str, people: list[str]
) -> None:
    """Book people as the tutorial does."""
    calendar.make_appointment(when, lasts, subject, participants=people)


def begin(db: Any) -> None:
    """Make the calendar, and the people in it."""
    with db.transaction() as connection:
        calendar = connection.root()["calendar"] = Calendar("Europe/Berlin")
        for username in PEOPLE:
            calendar.add_person(username)


def try_to_book(db: Any, number: int, tries: int, days: int, seed: int, way: Any) -> Counter[str]:
    """Try so many times, as the one with that number, and return how often that went well."""
    chance, outcomes = random.Random(f"{seed} {number}"), Counter[str]()
    for attempt in range(tries):
        when = datetime(2026, 3, 2, tzinfo=BERLIN) + timedelta(
            days=chance.randrange(days), minutes=30 * chance.randrange(16, 34)
        )
        lasts = timedelta(minutes=chance.choice([30, 60, 90]))
        people = chance.sample(PEOPLE, chance.choice([1, 1, 2]))
        arguments = when, lasts, f"{number} {attempt}", people
        try:
            db.run(lambda c, a=arguments: way(c.root()["calendar"], *a), tries=TRIES)
            outcomes["booked"] += 1
        except PersonBusy:
            outcomes["busy"] += 1
    return outcomes


def require_all(db: Any, booked: int, seed: int) -> None:
    """Raise AssertionError unless there are so many appointments."""
    with db.transaction() as connection:
        assert len(connection.root()["calendar"]) == booked, f"a booking is lost, {seed}"


def book(db: Any, tries: int, seed: int, way: Any) -> Counter[str]:
    """Try to book so many times, and return how often that went well.

    Raises AssertionError if a booking was lost. Whether anybody is booked twice is for the caller
    to look at.
    """
    begin(db)
    days = 1 + tries // 100
    workers = [
        Worker(
            lambda n=n: try_to_book(db, n, tries // THREADS, days, seed, way), f"books {n}"
        )
        for n in range(THREADS)
    ]
    total = sum((worker.finish(LONGEST_SECONDS) for worker in workers), Counter())
    require_all(db, total["booked"], seed)
    return total


def book_in_processes(uri: str, processes: int, tries: int, seed: int) -> Counter[str]:
    """The same in so many processes, each with a database of its own on one storage."""
    with objdb.DB(uri) as db:
        begin(db)
    days = 1 + tries // 100
    running = [
        subprocess.Popen(
            [sys.executable, "-m", __name__, uri, *map(str, (n, tries // processes, days, seed))],
            cwd=ROOT, stdout=subprocess.PIPE, text=True,
        )
        for n in range(processes)
    ]
    total = Counter[str]()
    for process in running:
        told, _ = process.communicate(timeout=LONGEST_SECONDS)
        assert process.returncode == 0
        total.update(json.loads(told))
    with objdb.DB(uri) as db:
        require_all(db, total["booked"], seed)
        assert booked_twice(db) == []
        check(db.storage).raise_if_damaged()
    return total


def booked_twice(db: Any) -> list[Any]:
    """Return who is booked twice."""
    with db.transaction() as connection:
        return double_bookings(connection.root()["calendar"])


def main() -> None:
    """Book, as one process of several; print how often that went well."""
    uri, (number, tries, days, seed) = sys.argv[1], map(int, sys.argv[2:])
    with objdb.DB(uri) as db:
        print(json.dumps(try_to_book(db, number, tries, days, seed, careful)))


if __name__ == "__main__":
    main()
