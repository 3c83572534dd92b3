"""Time zones: their names, and the step from a wall clock to an instant.

People mean the clock on the wall: "every Tuesday at nine" stays at nine when daylight saving time
begins, although that is 23 hours or 25 after nine of the day before. Two appointments overlap,
however, when they share an instant. So the calendar stores what people mean (a wall time with the
name of its zone) and compares instants (times in UTC).

Comparing two wall times of the same zone directly would be wrong: Python then looks at the hands of
the clock only, and in the hour that occurs twice in autumn it takes different instants for equal.
"""

from __future__ import annotations

import difflib
import os
from datetime import date, datetime, time, timedelta, timezone, tzinfo
from zoneinfo import ZoneInfo, available_timezones

from .errors import CalendarError


def zone_named(name: str) -> ZoneInfo:
    """Return the zone with this IANA name, such as ``Europe/Berlin``.

    Raises CalendarError, with similar names if there are any, when there is none.
    """
    try:
        return ZoneInfo(name)
    except (KeyError, ValueError, OSError):
        near = difflib.get_close_matches(name, sorted(available_timezones()), n=3)
        hint = f"; did you mean {' or '.join(near)}?" if near else ""
        raise CalendarError(f"there is no time zone {name!r}{hint}") from None


def local_zone_name() -> str:
    """Return the name of this machine's zone, or ``UTC`` where the machine does not tell."""
    linked = os.path.realpath("/etc/localtime").rpartition("zoneinfo/")[2]
    for name in (os.environ.get("TZ", ""), linked):
        if name in available_timezones():
            return name
    return "UTC"


def midnight(day: date, zone: tzinfo) -> datetime:
    """Return the instant at which `day` begins on the clocks of `zone`, in UTC."""
    return datetime.combine(day, time(), zone).astimezone(timezone.utc)


def instant(when: date | datetime, zone: tzinfo) -> datetime:
    """Return `when` as an instant in UTC; a plain date begins at midnight in `zone`."""
    if isinstance(when, datetime):
        return when.astimezone(timezone.utc)
    return midnight(when, zone)


def zone_like(clock: tzinfo, year: int, preferred: tzinfo) -> tzinfo | None:
    """Return a named zone whose clocks showed the same as `clock` through `year` and the next.

    Calendar files may define a zone of their own under any name. A database should not keep such a
    definition for ever: a named zone follows the law when the law changes. `preferred` is tried
    first. Returns None when no zone on earth agrees.
    """
    days = [
        datetime(y, month, day)
        for y in (year, year + 1)
        for month in range(1, 13)
        for day in (1, 11, 21)
    ]
    wanted = [day.replace(tzinfo=clock).utcoffset() for day in days]
    others = (ZoneInfo(name) for name in sorted(available_timezones()) if "/" in name)
    for zone in (preferred, timezone.utc, *others):
        if all(
            day.replace(tzinfo=zone).utcoffset() == offset
            for day, offset in zip(days, wanted, strict=True)
        ):
            return ZoneInfo("UTC") if zone is timezone.utc else zone
    return None


def utc_days(start: datetime, end: datetime) -> list[date]:
    """Return the dates, in UTC, of all days that the time from `start` up to `end` touches."""
    first = start.astimezone(timezone.utc).date()
    last = max(start, end - timedelta.resolution).astimezone(timezone.utc).date()
    return [first + timedelta(days=number) for number in range((last - first).days + 1)]
