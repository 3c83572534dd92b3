"""The story that `demo` tells, in the order of the chapters."""

from __future__ import annotations

import os
import shlex
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from datetime import date, datetime, time, timedelta
from itertools import islice
from threading import Barrier, Event
from typing import Any

from rich.console import Console
from rich.text import Text

import objdb

from .check import double_bookings, index_faults
from .crash import Outcome, crash
from .errors import CalendarError, PersonBusy
from .model import Calendar
from .opening import DEFAULT_FILE, KEY, Where, calendar_in, names_in
from .public_holidays import add_holidays, holidays_of
from .views import day_view, describe, month_view

MARK = "made by the demo"
PEOPLE = (
    ("anna", "Anna Berger"),
    ("ben", "Ben Okafor"),
    ("chiara", "Chiara Rossi"),
    ("dev", "Dev Patel"),
)
# Subject, place, hours, who takes part: one of these in each half of a month.
MEETINGS = (
    ("Plan the release", "Room 1", 2, "anna ben"),
    ("Interview a candidate", "Room 2", 1, "chiara dev"),
    ("Visit a customer", "Bremen", 4, "anna chiara"),
    ("Security review", "Room 1", 2, "ben dev"),
    ("Lunch with the new ones", "Canteen", 1, "anna ben chiara dev"),
    ("Dentist", "Main street 3", 1, "dev"),
)
A_WHILE = 60


def is_from_demo(where: Where) -> bool:
    """Tell whether a database was made by the demo."""
    return MARK in names_in(where)


def tell(where: Where, console: Console, *, country: str, zone: str, year: int) -> None:
    """Tell the whole story on one database, which is new or was made by an earlier demo."""
    holidays_of(country, year)
    Calendar(zone)
    stays = _stays(where)
    with objdb.DB(where) as db:
        chapter(console, "Persistence", f"{where} keeps Python objects: a year goes in")
        fill(db, console, country, zone, year)
        show_month(db, console, year)
        chapter(console, "Conflicts", "two threads book Anna for the same hour")
        book_twice(db, console, year)
        chapter(console, "Transactions", "an edit is one transaction: all of it or nothing")
        edit(db, console, year)
        if not stays:
            chapter(console, "Durability", "there is none")
            tell_line(console, f"what is in {where} goes when it is closed, so nobody is killed")
            with db.transaction() as connection:
                check(calendar_in(connection), console)
            return
    chapter(console, "Durability", "a process is killed while it commits")
    fall_over(where, console)
    with objdb.DB(where) as db, db.transaction() as connection:
        check(calendar_in(connection), console)
    words = ["./dev", "demo", "--interactive"]
    if os.fspath(where) != DEFAULT_FILE:
        words += ["--storage", os.fspath(where)]
    console.print(Text(f"\nUse it: {shlex.join(words)}", "bold"), soft_wrap=True)


def _stays(where: Where) -> bool:
    """Tell whether a database is there again when it was closed, by trying it."""
    with objdb.DB(where) as db, db.transaction(note="the demo begins") as connection:
        connection.root()[MARK] = True
    return is_from_demo(where)


def chapter(console: Console, title: str, text: str) -> None:
    """Print a heading."""
    console.print()
    console.rule(Text(title, "bold green"))
    console.print(Text(text), justify="center")
    console.print()


def tell_line(console: Console, text: str, style: str = "") -> None:
    """Print one line of the story."""
    console.print(Text(f"  {text}", style))


def fill(db: objdb.DB, console: Console, country: str, zone: str, year: int) -> None:
    """Put a year of holidays and appointments into the database, in one transaction."""
    with db.transaction(note="the demo fills the calendar") as connection:
        root = connection.root()
        root.clear()
        root[MARK] = True
        calendar = root[KEY] = Calendar(zone)
        for username, realname in PEOPLE:
            calendar.add_person(username, realname)
        holidays = add_holidays(calendar, country, year)
        _weekly_meeting(calendar, year)
        for month in range(1, 13):
            for half in (0, 1):
                _one_meeting(calendar, year, month, half)
        calendar.make_appointment(
            date(year, 7, 6), timedelta(days=12), "Dev is away", category="Vacation", busy=False
        )
        count = len(calendar)
    tell_line(
        console,
        f"{holidays} public holidays of {country.upper()} and"
        f" {count - holidays} appointments, of which one is a weekly series",
    )


def show_month(db: objdb.DB, console: Console, year: int) -> None:
    """Show the month with the most holidays."""
    with db.transaction() as connection:
        calendar = calendar_in(connection)
        months = Counter(one.date.month for one in calendar if one.category == "Holiday")
        console.print(month_view(calendar, year, months.most_common(1)[0][0], date.today()))


def book_twice(db: objdb.DB, console: Console, year: int) -> None:
    """Let two threads book Anna for the same hour, and show how the second one fares.

    Who comes first is arranged: both look at the calendar, both find Anna free, and then the one
    commits before the other.
    """
    both_have_looked = Barrier(2)
    first_is_done = Event()
    with db.transaction() as connection:
        calendar = calendar_in(connection)
        day = _working_day(calendar, year, 9, 7)
        # Anna has something else on that day, so both threads will change a Day that exists.
        when = calendar.free_slot(["anna"], _at(calendar, day, 14), timedelta(hours=2))
        calendar.make_appointment(
            when - timedelta(hours=6), timedelta(hours=1), "Read the mail", participants=["anna"]
        )

    def book(subject: str, other: str, wait_for: Event | None) -> objdb.ConflictError | None:
        """Book Anna and one more; return the error if the commit failed."""
        try:
            with db.transaction(note=subject) as connection:
                calendar_in(connection).make_appointment(
                    when, timedelta(hours=1), subject, participants=["anna", other]
                )
                both_have_looked.wait(A_WHILE)
                if wait_for is not None:
                    wait_for.wait(A_WHILE)
        except objdb.ConflictError as error:
            return error
        finally:
            first_is_done.set()
        return None

    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(book, "Budget", "ben", None)
        second = pool.submit(book, "Strategy", "chiara", first_is_done)
        errors = first.result(), second.result()
    tell_line(console, f"thread 1: Anna is free at {when:%H:%M}, books 'Budget', commits: done")
    tell_line(console, f"thread 2: Anna is free at {when:%H:%M}, books 'Strategy', commits:")
    if errors[0] is not None or errors[1] is None:
        raise CalendarError("the second commit should have met a conflict; Anna is double-booked")
    tell_line(console, f"{type(errors[1]).__name__}: {errors[1]}", "red")
    for line in _again(db, when):
        tell_line(console, line)


def _again(db: objdb.DB, when: datetime) -> list[str]:
    """Do what the second thread wanted, with the first one's booking in sight; return the story."""
    story = ["thread 2 runs its function again, on a fresh view:"]

    def book(connection: Any) -> None:
        calendar = calendar_in(connection)
        people = ["anna", "chiara"]
        begin = when
        try:
            calendar.make_appointment(when, timedelta(hours=1), "Strategy", participants=people)
        except PersonBusy as busy:
            begin = calendar.free_slot(people, when, timedelta(hours=1))
            calendar.make_appointment(begin, timedelta(hours=1), "Strategy", participants=people)
            story[1:] = [f"PersonBusy: {busy}", f"and books 'Strategy' for {begin:%H:%M} instead"]

    db.run(book)
    return story


def edit(db: objdb.DB, console: Console, year: int) -> None:
    """Move an appointment and invite somebody; then fail half-way, and find nothing changed."""

    def move(connection: Any) -> tuple[str, date]:
        calendar = calendar_in(connection)
        budget = calendar.pick("Budget")
        before = describe(calendar, budget.date)
        calendar.change(budget, date=budget.date + timedelta(days=1), location="Room 2")
        calendar.invite(budget, "dev")
        return f"'Budget' moves from {before} to {describe(calendar, budget.date)}", budget.date

    text, when = db.run(move)
    tell_line(console, text)
    try:
        with db.transaction() as connection:
            calendar = calendar_in(connection)
            calendar.remove(calendar.pick("Strategy"))
            calendar.invite(calendar.pick("Budget"), "zoe")
    except CalendarError as error:
        tell_line(console, f"'Strategy' is removed and zoe invited: {error}", "red")
    with db.transaction() as connection:
        calendar = calendar_in(connection)
        tell_line(console, f"'Strategy' is still there: {bool(calendar.find('Strategy'))}")
        console.print(day_view(calendar, when))


def fall_over(where: Where, console: Console) -> None:
    """Kill a committing process twice, and count what is left. Raises CalendarError on any loss."""
    for acknowledged, in_mid_commit, moment in (
        (100, False, "at some moment"),
        (20, True, "between the two phases of a commit"),
    ):
        outcome = crash(where, acknowledged, in_mid_commit)
        tell_line(
            console,
            f"SIGKILL {moment}: {outcome.promised} commits were acknowledged,"
            f" {outcome.found} are there",
        )
        _judge(outcome, console)


def _judge(outcome: Outcome, console: Console) -> None:
    """Say what a crash did, or raise CalendarError."""
    if not outcome.kept:
        raise CalendarError(
            f"the crash lost something: {outcome.promised} commits were acknowledged,"
            f" {outcome.found} are there, whole: {outcome.whole}"
        )
    tell_line(console, "nothing acknowledged was lost, nothing is there by half", "green")


def check(calendar: Calendar, console: Console) -> None:
    """Look over the whole calendar. Raises CalendarError if it is not as it should be."""
    faults = index_faults(calendar) + [
        f"{username} is double-booked: {one.appointment.subject!r}, {other.appointment.subject!r}"
        for username, one, other in double_bookings(calendar)
    ]
    if faults:
        raise CalendarError("; ".join(faults))
    tell_line(
        console, f"{len(calendar)} appointments are there, and nobody is double-booked", "green"
    )


def _weekly_meeting(calendar: Calendar, year: int) -> None:
    """Make a series: every Tuesday at ten, but on holidays, to the end of the year."""
    first = next(day for day in _days_from(date(year, 1, 1)) if day.weekday() == 1)
    skipped = [_at(calendar, one.date, 10) for one in calendar if one.category == "Holiday"]
    calendar.make_appointment(
        _at(calendar, first, 10),
        timedelta(hours=1),
        "Team meeting",
        location="Room 1",
        participants=["anna", "ben", "chiara"],
        skipped=skipped,
        repeat=f"FREQ=WEEKLY;UNTIL={year}1231",
    )


def _one_meeting(calendar: Calendar, year: int, month: int, half: int) -> None:
    """Make one appointment in a half of a month, at the first time when all can come."""
    subject, place, hours, people = MEETINGS[(2 * month + half) % len(MEETINGS)]
    day = _working_day(calendar, year, month, 1 + 14 * half + month % 5)
    duration = timedelta(hours=hours)
    begin = calendar.free_slot(people.split(), _at(calendar, day, 10), duration)
    calendar.make_appointment(begin, duration, subject, location=place, participants=people.split())


def _working_day(calendar: Calendar, year: int, month: int, number: int) -> date:
    """Return the first day from the given one on that is neither a weekend nor a holiday."""
    for day in _days_from(date(year, month, number)):
        free = any(one.appointment.category == "Holiday" for one in calendar.on(day))
        if day.weekday() < 5 and not free:
            return day
    raise CalendarError(f"{year} has no working day after {number}.{month}.")


def _days_from(first: date) -> Any:
    """Yield the days of about a year."""
    return islice((first + timedelta(days=number) for number in range(366)), 366)


def _at(calendar: Calendar, day: date, hour: int) -> datetime:
    """Return an hour of a day on the clocks of the calendar."""
    return datetime.combine(day, time(hour), calendar.zone)
