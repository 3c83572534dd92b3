"""The terminal application: a command for each thing one does with a calendar.

Every command opens the database, does its work in one transaction and closes it. What changes the
calendar goes through `db.run`, which runs it again when another transaction got in between, with a
note of what was done. With --plan, it happens in a version of the database.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import date
from pathlib import Path
from typing import Any, TypeVar

import click
from rich.console import Console
from rich.text import Text

import objdb

from .demo import is_from_demo, tell
from .errors import CalendarError
from .history import end_plan, list_changes, list_plans, show_plan, undo_change
from .ics_read import import_entries, read_ics
from .ics_write import calendar_as_ics
from .inputs import parse_day, parse_duration, parse_month, parse_repeat, parse_when
from .menu import Menu
from .model import Calendar
from .opening import (
    DEFAULT_FILE,
    calendar_in,
    create_calendar,
    free_beside,
    names_in,
    open_calendar,
)
from .public_holidays import add_holidays, holidays_of
from .views import day_view, describe, month_view, people_view
from .zones import local_zone_name

Result = TypeVar("Result")


class OneLineErrors(click.Group):
    """A group of commands that turns what the user can mend into one line, not a traceback."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; see the class."""
        try:
            return super().invoke(ctx)
        except BrokenPipeError:
            raise
        except (CalendarError, objdb.ObjdbError, OSError) as error:
            text = " ".join(str(error).split()) or type(error).__name__
            raise click.ClickException(text) from error


def file_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command the option --storage, so that it may stand before or after the command.
    --file is the same."""

    def remember(ctx: click.Context, _option: click.Parameter, value: str | None) -> None:
        if value is not None:
            ctx.obj = value

    return click.option(
        "--storage",
        "--file",
        metavar="PATH|URI",
        expose_value=False,
        callback=remember,
        help="Where the calendar is: a file, or a URI such as sqlite:cal.sqlite (default: cal.fs).",
    )(command)


def plan_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command the option --plan, beside --storage."""

    def remember(ctx: click.Context, _option: click.Parameter, value: str) -> None:
        ctx.meta["plan"] = value

    return file_option(
        click.option(
            "--plan",
            default="",
            expose_value=False,
            callback=remember,
            help="Look at this plan, and change nothing but it.",
        )(command)
    )


@click.group(cls=OneLineErrors, context_settings={"help_option_names": ["-h", "--help"]})
@file_option
@click.pass_context
def main(ctx: click.Context) -> None:
    """A group calendar that never books anybody twice.

    Begin with `demo`, or with `init` for an empty calendar of your own.
    """
    ctx.obj = ctx.obj or DEFAULT_FILE


@contextmanager
def opened(ctx: click.Context) -> Iterator[objdb.DB]:
    """Open the calendar's database for one command."""
    with open_calendar(ctx.obj) as db:
        yield db


@contextmanager
def calendar_of(ctx: click.Context) -> Iterator[Calendar]:
    """Give the calendar to look at, or that of a plan."""
    with opened(ctx) as db, db.transaction(version=ctx.meta["plan"]) as connection:
        yield calendar_in(connection)


def run(ctx: click.Context, note: str, work: Callable[[Calendar], Result]) -> Result:
    """Let *work* change the calendar, or that of a plan, in a transaction with this note."""
    with opened(ctx) as db:
        return db.run(
            lambda connection: work(calendar_in(connection)), note=note, version=ctx.meta["plan"]
        )


def say(text: str) -> None:
    """Print a line as it stands."""
    Console().print(Text(text))


@main.command()
@file_option
@click.option("--zone", default=None, help="Its time zone, such as Europe/Berlin.")
@click.pass_context
def init(ctx: click.Context, zone: str | None) -> None:
    """Make an empty calendar."""
    zone = zone or local_zone_name()
    create_calendar(ctx.obj, zone)
    say(f"made {ctx.obj}, in the time zone {zone}")


@main.command()
@file_option
@click.option("--interactive", is_flag=True, help="Go on with a menu; a second time, at once.")
@click.option("--fresh", is_flag=True, help="Begin again if the demo's database is there already.")
@click.option("--country", default="DE", show_default=True, help="Whose public holidays to enter.")
@click.option("--zone", default="Europe/Berlin", show_default=True)
@click.option("--year", type=click.IntRange(1000, 9000), default=None, help="Default: this year.")
@click.pass_context
def demo(
    ctx: click.Context, interactive: bool, fresh: bool, country: str, zone: str, year: int | None
) -> None:
    """Tell the whole story: fill, conflict, edit, crash, recover."""
    is_there = bool(names_in(ctx.obj))
    if is_there:
        if not is_from_demo(ctx.obj):
            raise CalendarError(f"{ctx.obj} was not made by the demo; it is left alone")
        if not (fresh or interactive) and sys.stdin.isatty():
            fresh = click.confirm(f"{ctx.obj} is there from an earlier demo. Begin again?")
        if not (fresh or interactive):
            earlier, ctx.obj = ctx.obj, free_beside(ctx.obj)
            say(
                f"{earlier} is there from an earlier demo, and stays as it is (--fresh begins it"
                f" again, --interactive opens it). This one is told in {ctx.obj}"
            )
            is_there = False
    if fresh or not is_there:
        tell(ctx.obj, Console(), country=country, zone=zone, year=year or date.today().year)
    if interactive:
        with opened(ctx) as db:
            Menu(db, Console()).run()


@main.command()
@file_option
@click.pass_context
def menu(ctx: click.Context) -> None:
    """Use the calendar through a menu."""
    with opened(ctx) as db:
        Menu(db, Console()).run()


@main.command()
@plan_option
@click.argument("month", required=False)
@click.pass_context
def month(ctx: click.Context, month: str | None) -> None:
    """Show a month, such as 2026-03 (default: this one)."""
    today = date.today()
    year, number = parse_month(month) if month else (today.year, today.month)
    with calendar_of(ctx) as calendar:
        Console().print(month_view(calendar, year, number, today))


@main.command()
@plan_option
@click.argument("day", default="today")
@click.pass_context
def day(ctx: click.Context, day: str) -> None:
    """Show a day, such as 2026-03-02 (default: today)."""
    with calendar_of(ctx) as calendar:
        Console().print(day_view(calendar, parse_day(day)))


@main.command()
@plan_option
@click.argument("subject", default="")
@click.pass_context
def find(ctx: click.Context, subject: str) -> None:
    """List the appointments whose subject begins with a text."""
    with calendar_of(ctx) as calendar:
        found = calendar.find(subject)
        for one in found:
            rule = f" ({one.repeat})" if one.repeat else ""
            say(f"{describe(calendar, one.date)}  {one.subject}{rule}  [{one.uid[:8]}]")
        if not found:
            raise CalendarError(f"there is no appointment {subject!r}")


@main.command()
@plan_option
@click.argument("subject")
@click.argument("when")
@click.option("--for", "lasts", default=None, help="How long: 45m, 1h30m, 2d (default: 1h or 1d).")
@click.option("--where", default="", help="The place.")
@click.option("--with", "people", multiple=True, help="A username; may be given several times.")
@click.option("--repeat", default=None, help="daily, weekly, monthly, yearly, or an RFC 5545 rule.")
@click.option("--until", default=None, help="The last day of a series.")
@click.option("--count", type=click.IntRange(min=1), default=None, help="How often in a series.")
@click.option("--free", is_flag=True, help="Those who take part are not busy.")
@click.pass_context
def add(
    ctx: click.Context,
    subject: str,
    when: str,
    lasts: str | None,
    where: str,
    people: tuple[str, ...],
    repeat: str | None,
    until: str | None,
    count: int | None,
    free: bool,
) -> None:
    """Make an appointment: add "Board meeting" "2026-03-02 14:30" --with anna."""
    if repeat is None and (until or count):
        raise CalendarError("--until and --count need --repeat")
    rule = repeat and parse_repeat(repeat, parse_day(until) if until else None, count)

    def make(calendar: Calendar) -> str:
        begin = parse_when(when, calendar.zone)
        appointment = calendar.make_appointment(
            begin,
            parse_duration(lasts or ("1h" if hasattr(begin, "hour") else "1d")),
            subject,
            location=where,
            participants=people,
            repeat=rule,
            busy=not free,
        )
        return f"{describe(calendar, appointment.date)}  {appointment.subject}"

    say(f"added: {run(ctx, f'add {subject}', make)}")


@main.command()
@plan_option
@click.argument("appointment")
@click.option("--to", default=None, help="The new date or time.")
@click.option("--for", "lasts", default=None, help="The new duration.")
@click.option("--where", default=None, help="The new place.")
@click.option("--subject", default=None, help="The new subject.")
@click.pass_context
def change(
    ctx: click.Context,
    appointment: str,
    to: str | None,
    lasts: str | None,
    where: str | None,
    subject: str | None,
) -> None:
    """Move or rename an appointment: change "Board meeting" --to "2026-03-03 09:00"."""

    def alter(calendar: Calendar) -> str:
        one = calendar.pick(appointment)
        wanted = {
            "date": to and parse_when(to, calendar.zone),
            "duration": lasts and parse_duration(lasts),
            "location": where,
            "subject": subject,
        }
        calendar.change(one, **{name: value for name, value in wanted.items() if value is not None})
        return f"{describe(calendar, one.date)}  {one.subject}"

    say(f"changed: {run(ctx, f'change {appointment}', alter)}")


@main.command()
@plan_option
@click.argument("appointment")
@click.argument("people", nargs=-1, required=True)
@click.pass_context
def invite(ctx: click.Context, appointment: str, people: tuple[str, ...]) -> None:
    """Invite people: invite "Board meeting" anna ben."""

    def ask(calendar: Calendar) -> str:
        one = calendar.pick(appointment)
        for username in people:
            calendar.invite(one, username)
        return f"{one.subject}: {', '.join(person.realname for person in one.participants)}"

    note = f"invite {', '.join(people)} to {appointment}"
    say(f"invited to {run(ctx, note, ask)}")


@main.command()
@plan_option
@click.argument("appointment")
@click.pass_context
def remove(ctx: click.Context, appointment: str) -> None:
    """Call an appointment off."""

    def drop(calendar: Calendar) -> str:
        one = calendar.pick(appointment)
        calendar.remove(one)
        return one.subject

    say(f"removed: {run(ctx, f'remove {appointment}', drop)}")


@main.command()
@plan_option
@click.argument("username", required=False)
@click.option("--name", default="", help="The full name.")
@click.option("--email", default="")
@click.pass_context
def person(ctx: click.Context, username: str | None, name: str, email: str) -> None:
    """Enter a person; without a username, list them all."""
    if username:
        run(ctx, f"enter {username}", lambda calendar: calendar.add_person(username, name, email))
        say(f"entered: {username}")
    else:
        with calendar_of(ctx) as calendar:
            Console().print(people_view(calendar))


@main.command("holidays")
@plan_option
@click.argument("country")
@click.argument("year", type=click.IntRange(1000, 9000), required=False)
@click.option("--region", default="", help="A part of the country, such as BY.")
@click.pass_context
def holidays_command(ctx: click.Context, country: str, year: int | None, region: str) -> None:
    """Enter the public holidays of a country and year: holidays DE 2026."""
    wanted = year or date.today().year
    found = holidays_of(country, wanted, region)
    note = f"holidays of {country} in {wanted}"
    new = run(ctx, note, lambda calendar: add_holidays(calendar, country, wanted, region))
    for when, name in found:
        say(f"{when:%a %d %b %Y}  {name}")
    say(f"{new} of them are new in the calendar")


@main.command("import")
@plan_option
@click.argument("ics", type=click.Path(path_type=Path))
@click.pass_context
def import_command(ctx: click.Context, ics: Path) -> None:
    """Bring in the events of an .ics file."""
    with calendar_of(ctx) as calendar:
        zone = calendar.zone
    reading = read_ics(ics, zone)
    report = run(ctx, f"import {ics.name}", lambda calendar: import_entries(calendar, reading))
    for note in report.notes:
        say(note)
    say(f"{report.added} added, {report.changed} changed")


@main.command("export")
@plan_option
@click.argument("ics", type=click.Path(path_type=Path, allow_dash=True))
@click.option("--force", is_flag=True, help="Write over a file that is there.")
@click.pass_context
def export_command(ctx: click.Context, ics: Path, force: bool) -> None:
    """Write the calendar as an .ics file; - writes to the standard output."""
    with calendar_of(ctx) as calendar:
        text = calendar_as_ics(calendar)
    if str(ics) == "-":
        click.echo(text, nl=False)
        return
    if ics.exists() and not force:
        raise CalendarError(f"{ics} exists; --force writes over it")
    ics.write_bytes(text)
    say(f"wrote {ics}")


@main.command()
@file_option
@click.option("--last", type=click.IntRange(min=1), default=20, show_default=True)
@click.pass_context
def log(ctx: click.Context, last: int) -> None:
    """List what was done, the newest first, with the numbers that `undo` takes."""
    with opened(ctx) as db:
        for number, (when, what) in enumerate(list_changes(db, last), 1):
            say(f"{number:4}  {when:%a %d %b %Y %H:%M}  {what}")


@main.command()
@file_option
@click.argument("number", type=click.IntRange(min=1), default=1)
@click.pass_context
def undo(ctx: click.Context, number: int) -> None:
    """Undo what `log` lists under NUMBER (default: 1, the last). That can be undone, too."""
    with opened(ctx) as db:
        say(f"undone: {undo_change(db, number)}")


@main.command()
@file_option
@click.argument("name", required=False)
@click.option("--commit", is_flag=True, help="Let everybody have it.")
@click.option("--drop", is_flag=True, help="Give it up.")
@click.pass_context
def plans(ctx: click.Context, name: str | None, commit: bool, drop: bool) -> None:
    """List the plans; or show what one changes, and commit or drop it."""
    if (commit or drop) and (name is None or (commit and drop)):
        raise CalendarError("name one plan, and either --commit or --drop")
    with opened(ctx) as db:
        lines = list_plans(db) if name is None else show_plan(db, name)
        for line in lines:
            say(line)
        if name is not None and (commit or drop):
            end_plan(db, name, commit=commit)
            say("committed" if commit else "dropped")


@main.command()
@file_option
@click.option("--days", type=click.FloatRange(min=0), default=0, help="Keep all of so many days.")
@click.pass_context
def pack(ctx: click.Context, days: float) -> None:
    """Make the database smaller, by forgetting what was before. That cannot be undone any more."""
    with opened(ctx) as db:
        result = db.pack(days=days)
        say(f"{result.size_before:,} bytes before, {result.size_after:,} bytes now")
