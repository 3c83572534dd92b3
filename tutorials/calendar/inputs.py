"""What people type, turned into values: dates, durations, months, repetitions."""

from __future__ import annotations

import re
from datetime import date, datetime, timedelta
from zoneinfo import ZoneInfo

from .errors import CalendarError

DURATION = re.compile(r"(?:(\d{1,4})d)?(?:(\d{1,4})h)?(?:(\d{1,5})m?)?")
WORDS = {"daily": "DAILY", "weekly": "WEEKLY", "monthly": "MONTHLY", "yearly": "YEARLY"}


def parse_when(text: str, zone: ZoneInfo) -> date | datetime:
    """Read ``2026-03-02`` as a whole day, and ``2026-03-02 14:30`` as a time on `zone`'s clocks.

    A time that carries its own offset from UTC keeps its instant.
    """
    text = text.strip()
    try:
        if len(text) == len("2026-03-02"):
            return parse_day(text)
        when = datetime.fromisoformat(text)
    except ValueError:
        raise CalendarError(
            f"{text!r} is no date: write 2026-03-02 for a day, '2026-03-02 14:30' for a time"
        ) from None
    return when.astimezone(zone) if when.tzinfo else when.replace(tzinfo=zone)


def parse_day(text: str) -> date:
    """Read a date such as ``2026-03-02``, or ``today``."""
    if text.strip().lower() == "today":
        return date.today()
    try:
        return date.fromisoformat(text.strip())
    except ValueError:
        raise CalendarError(f"{text!r} is no date: write it like 2026-03-02") from None


def parse_month(text: str) -> tuple[int, int]:
    """Read a month such as ``2026-03`` as (year, month)."""
    match = re.fullmatch(r"(\d{4})-(\d{1,2})", text.strip())
    if not match or not 1 <= int(match[2]) <= 12 or not 1000 <= int(match[1]) <= 9000:
        raise CalendarError(f"{text!r} is no month: write it like 2026-03")
    return int(match[1]), int(match[2])


def parse_duration(text: str) -> timedelta:
    """Read ``45`` or ``45m`` as minutes, ``2h``, ``1h30m``, ``3d``."""
    match = DURATION.fullmatch(text.strip().lower().replace(" ", ""))
    if not match or not any(match.groups()):
        raise CalendarError(f"{text!r} is no duration: write it like 45m, 1h30m or 2d")
    days, hours, minutes = (int(part or 0) for part in match.groups())
    return timedelta(days=days, hours=hours, minutes=minutes)


def parse_repeat(text: str, until: date | None = None, count: int | None = None) -> str:
    """Read ``weekly`` and the like, or a whole rule of RFC 5545; add an end where one is given."""
    rule = f"FREQ={WORDS[text.lower()]}" if text.lower() in WORDS else text
    if until is not None and count is not None:
        raise CalendarError("a series ends at a date or after a number of times, not both")
    if until is not None:
        rule += f";UNTIL={until:%Y%m%d}"
    if count is not None:
        rule += f";COUNT={count}"
    return rule
