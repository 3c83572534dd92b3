"""The menu: one month on the screen, one letter for each thing to do."""

from __future__ import annotations

from collections.abc import Callable
from datetime import date, timedelta
from typing import Any

import click
from rich.console import Console
from rich.text import Text

import objdb

from .errors import CalendarError
from .inputs import parse_day, parse_duration, parse_month, parse_when
from .opening import calendar_in
from .views import day_view, describe, month_view, people_view

HELP = (
    "n next · p previous · g go to · d day · a add · i invite · c change · r remove"
    " · w who · q quit"
)


class Menu:
    """A loop of prompts on one database. Each action is a transaction of its own.

    A question to the user is asked before the transaction begins, never within it: a transaction
    should be short, and `db.run` may run it more than once.
    """

    def __init__(self, db: objdb.DB, console: Console) -> None:
        self.db = db
        self.console = console
        self.month = date.today().replace(day=1)
        self.typed: dict[str, str] = {}  # by the question, while an action has not succeeded
        self.actions: dict[str, Callable[[], None]] = {
            "n": self.next_month,
            "p": self.previous_month,
            "g": self.go_to,
            "d": self.show_day,
            "a": self.add,
            "i": self.invite,
            "c": self.change,
            "r": self.remove,
            "w": self.who,
        }

    def run(self) -> None:
        """Show the month and do what is asked, until `q` or the end of the input."""
        self.show_month()
        while True:
            self.console.print(Text(HELP, style="dim"))
            try:
                letter = click.prompt("What", prompt_suffix="? ").strip().lower()[:1]
                if letter == "q":
                    return
                self.actions.get(letter, self.show_month)()
                self.typed.clear()
            except click.Abort:
                self.console.print()
                return
            except (CalendarError, objdb.ObjdbError) as error:
                kept = f"\nYour answers are kept: {letter}, and Enter for each that was right"
                self.console.print(Text(f"{error}{kept if self.typed else ''}", style="red"))

    def ask(self, question: str, default: str | None = None) -> str:
        """Ask the user; what was typed before an error is there again."""
        default = self.typed.get(question, default)
        typed: str = click.prompt(question, default=default, show_default=bool(default))
        self.typed[question] = typed
        return typed

    def show_month(self) -> None:
        """Show the month."""
        with self.db.transaction() as connection:
            calendar = calendar_in(connection)
            self.console.print(
                month_view(calendar, self.month.year, self.month.month, date.today())
            )

    def next_month(self) -> None:
        """Go on by a month."""
        self.month = (self.month + timedelta(days=31)).replace(day=1)
        self.show_month()

    def previous_month(self) -> None:
        """Go back by a month."""
        self.month = (self.month - timedelta(days=1)).replace(day=1)
        self.show_month()

    def go_to(self) -> None:
        """Go to a month."""
        year, month = parse_month(self.ask("Month (like 2026-03)"))
        self.month = date(year, month, 1)
        self.show_month()

    def show_day(self) -> None:
        """Show a day."""
        day = parse_day(self.ask("Day (like 2026-03-02)", "today"))
        with self.db.transaction() as connection:
            self.console.print(day_view(calendar_in(connection), day))

    def who(self) -> None:
        """Show the people."""
        with self.db.transaction() as connection:
            self.console.print(people_view(calendar_in(connection)))

    def add(self) -> None:
        """Make an appointment."""
        subject = self.ask("Subject")
        when = self.ask("When (like 2026-03-02 14:30)")
        lasts = parse_duration(self.ask("How long", "1d" if len(when) == 10 else "1h"))
        people = self.ask("With (usernames)", "").split()

        def make(connection: Any) -> str:
            calendar = calendar_in(connection)
            made = calendar.make_appointment(
                parse_when(when, calendar.zone), lasts, subject, participants=people
            )
            return describe(calendar, made.date)

        self.done(f"added: {self.db.run(make)}  {subject}")

    def invite(self) -> None:
        """Invite somebody."""
        subject = self.ask("Which appointment")
        username = self.ask("Whom (username)")

        def ask(connection: Any) -> str:
            calendar = calendar_in(connection)
            appointment = calendar.pick(subject)
            calendar.invite(appointment, username)
            return appointment.subject

        self.done(f"invited {username} to {self.db.run(ask)}")

    def change(self) -> None:
        """Move an appointment."""
        subject = self.ask("Which appointment")
        when = self.ask("To when (like 2026-03-02 14:30)")

        def move(connection: Any) -> str:
            calendar = calendar_in(connection)
            appointment = calendar.pick(subject)
            calendar.change(appointment, date=parse_when(when, calendar.zone))
            return f"{describe(calendar, appointment.date)}  {appointment.subject}"

        self.done(f"moved: {self.db.run(move)}")

    def remove(self) -> None:
        """Call an appointment off."""
        subject = self.ask("Which appointment")

        def drop(connection: Any) -> str:
            calendar = calendar_in(connection)
            appointment = calendar.pick(subject)
            calendar.remove(appointment)
            return appointment.subject

        self.done(f"removed: {self.db.run(drop)}")

    def done(self, text: str) -> None:
        """Say what has been committed."""
        self.console.print(Text(text, style="green"))
