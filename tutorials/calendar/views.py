"""A month and a day, drawn with rich.

These functions only read. What they draw comes from people and from files, so it is passed to rich
as Text, in which nothing is taken for markup.
"""

from __future__ import annotations

# The standard library's module: this package's own name is tutorials.calendar.
import calendar as standard_calendar
from datetime import date, datetime, timedelta

from rich.table import Table
from rich.text import Text

from .model import Calendar, Occurrence
from .public_holidays import CATEGORY
from .zones import midnight

LINES_PER_DAY = 4
STYLES = {True: "red", False: "cyan"}


def month_view(calendar: Calendar, year: int, month: int, today: date | None = None) -> Table:
    """Return a month as a table of weeks; the holidays are red, `today` is marked."""
    title = f"{standard_calendar.month_name[month]} {year}"
    table = Table(title=title, caption=str(calendar.zone), show_lines=True, expand=True, padding=0)
    for name in standard_calendar.day_abbr:
        table.add_column(name, ratio=1, no_wrap=True, overflow="ellipsis")
    for week in standard_calendar.Calendar().monthdatescalendar(year, month):
        begin, end = (
            midnight(day, calendar.zone) for day in (week[0], week[-1] + timedelta(days=1))
        )
        found = calendar.between(begin, end)
        table.add_row(
            *(_cell(calendar, day, found, today) if day.month == month else Text() for day in week)
        )
    return table


def day_view(calendar: Calendar, day: date) -> Table:
    """Return a day as a list: when, what, where, who."""
    table = Table(title=f"{day:%A, %d %B %Y}", caption=str(calendar.zone), expand=True)
    for name, ratio in (("Time", 2), ("What", 4), ("Where", 2), ("Who", 3)):
        table.add_column(name, ratio=ratio)
    for one in calendar.on(day):
        appointment = one.appointment
        people = ", ".join(person.realname for person in appointment.participants)
        again = " ↻" if appointment.repeat else ""
        table.add_row(
            Text(_time_span(calendar, one)),
            Text(appointment.subject + again, style=STYLES[appointment.category == CATEGORY]),
            Text(appointment.location),
            Text(people),
        )
    if not table.row_count:
        table.add_row("", Text("nothing", style="dim"))
    return table


def people_view(calendar: Calendar) -> Table:
    """Return the people of a calendar as a table."""
    table = Table(title="People", expand=True)
    for name in ("Username", "Name", "E-mail"):
        table.add_column(name)
    for person in calendar.people.values():
        table.add_row(*map(Text, (person.username, person.realname, person.email)))
    return table


def describe(calendar: Calendar, day: date | datetime) -> str:
    """Return a date, or a time on the clocks of the calendar's zone, as text."""
    if isinstance(day, datetime):
        return f"{day.astimezone(calendar.zone):%a %d %b %Y %H:%M %Z}"
    return f"{day:%a %d %b %Y}"


def _cell(calendar: Calendar, day: date, found: list[Occurrence], today: date | None) -> Text:
    """Return one day of the month: its number and the first few things that take place."""
    begin, end = (midnight(day, calendar.zone), midnight(day + timedelta(days=1), calendar.zone))
    here = [one for one in found if one.overlaps(begin, end)]
    holiday = any(one.appointment.category == CATEGORY for one in here)
    style = "bold red" if holiday else "bold"
    cell = Text(str(day.day), style=f"{style} reverse" if day == today else style)
    shown = here if len(here) <= LINES_PER_DAY else here[: LINES_PER_DAY - 1]
    for one in shown:
        appointment = one.appointment
        clock = "" if appointment.whole_day or one.start < begin else f"{_clock(calendar, one)} "
        style = STYLES[appointment.category == CATEGORY]
        cell.append("\n").append(f"{clock}{appointment.subject}", style=f"not bold {style}")
    if len(shown) < len(here):
        cell.append(f"\n+{len(here) - len(shown)} more", style="not bold dim")
    return cell


def _clock(calendar: Calendar, one: Occurrence) -> str:
    """Return when an occurrence begins, as the clock in the calendar's zone shows it."""
    return f"{one.start.astimezone(calendar.zone):%H:%M}"


def _time_span(calendar: Calendar, one: Occurrence) -> str:
    """Return when an occurrence begins and ends, naming the days where they differ."""
    if one.appointment.whole_day:
        return "all day"
    start, end = (when.astimezone(calendar.zone) for when in (one.start, one.end))
    if start.date() == end.date():
        return f"{start:%H:%M}-{end:%H:%M}"
    return f"{start:%d %b %H:%M} - {end:%d %b %H:%M}"
