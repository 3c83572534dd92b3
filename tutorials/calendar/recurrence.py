"""Appointments that come again: the rules of RFC 5545, worked out by python-dateutil.

A rule is text, as calendar files spell it: ``FREQ=WEEKLY;BYDAY=TU;COUNT=10``. It is stored as text,
since that is what every other program understands, and expanded when somebody looks.

The expansion runs on the wall clock of the appointment's zone. A time that the clock skips in
spring is moved by the skipped hour, and of a time that the clock shows twice in autumn the first is
meant; RFC 5545 asks for both, and zoneinfo does both.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import date, datetime, time, timezone

from dateutil.rrule import rrulestr
from icalendar import vRecur

from .errors import CalendarError

# Rules finer than a day are legal in calendar files, and no appointment of a human being.
FREQUENCIES = ("DAILY", "WEEKLY", "MONTHLY", "YEARLY")


def checked_rule(text: str, first: date | datetime) -> str:
    """Return the rule `text` in the spelling that is stored, for a series that begins at `first`.

    An end (``UNTIL``) is made to agree with the kind of `first`: a date for a whole day, an instant
    in UTC for a time. Raises CalendarError when the rule cannot be read or never comes true.
    """
    try:
        rule = vRecur.from_ical(text.strip().removeprefix("RRULE:"))
    except ValueError as error:
        raise CalendarError(f"the rule {text!r} cannot be read: {error}") from None
    if rule.get("FREQ", [""])[0] not in FREQUENCIES:
        raise CalendarError(f"the rule {text!r} needs FREQ with one of {', '.join(FREQUENCIES)}")
    for part in ("INTERVAL", "COUNT"):
        if min(rule.get(part, [1])) < 1:
            raise CalendarError(f"the rule {text!r}: {part} must be 1 or more")
    if any(len(rule.get(part, ())) > 1 for part in ("BYHOUR", "BYMINUTE", "BYSECOND")):
        raise CalendarError(f"the rule {text!r} comes more than once a day")
    if "UNTIL" in rule:
        rule["UNTIL"] = [_until(rule["UNTIL"][0], first)]
    stored = rule.to_ical().decode()
    try:
        if next(iter_starts(first, stored), None) is None:
            raise CalendarError(f"the rule {text!r} never comes true")
    except (ValueError, TypeError) as error:
        raise CalendarError(f"the rule {text!r} cannot be read: {error}") from None
    return stored


def rule_until(rule: str, last: datetime) -> str:
    """Return `rule` with its end set to the instant `last`; an older end or count gives way."""
    parts = vRecur.from_ical(rule)
    parts.pop("COUNT", None)
    parts["UNTIL"] = [last.astimezone(timezone.utc)]
    return parts.to_ical().decode()


def has_end(rule: str) -> bool:
    """Tell whether a series with this rule ever ends."""
    parts = vRecur.from_ical(rule)
    return "UNTIL" in parts or "COUNT" in parts


def iter_starts(first: date | datetime, rule: str) -> Iterator[date | datetime]:
    """Yield when a series begins each time, in order, in the zone of `first`; perhaps for ever."""
    whole_day = not isinstance(first, datetime)
    begin = datetime.combine(first, time()) if whole_day else first
    for start in rrulestr(rule, dtstart=begin):
        yield start.date() if whole_day else start


def _until(until: date | datetime, first: date | datetime) -> date | datetime:
    """Return the end of a series as RFC 5545 wants it for a series that begins at `first`."""
    if not isinstance(first, datetime):
        return until.date() if isinstance(until, datetime) else until
    if not isinstance(until, datetime):
        until = datetime.combine(until, time.max.replace(microsecond=0))
    if until.tzinfo is None:
        until = until.replace(tzinfo=first.tzinfo)
    return until.astimezone(timezone.utc)
