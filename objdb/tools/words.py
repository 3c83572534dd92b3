"""The arguments of subcommands: databases, oids, transactions and times.

A transaction is named by its tid, with or without 0x, or by its id in the undo log. Times without
a zone are local:

    2026-03-01    2026-03-01T09:30+01:00    09:30    today    yesterday 18:00
    2 hours ago   90s ago    a week ago     now      1767225600 (seconds since 1970)
"""

from __future__ import annotations

import re
from calendar import monthrange
from datetime import date, datetime, timedelta
from datetime import time as time_of_day
from typing import Any

import click
from click.shell_completion import CompletionItem

from objdb.ids import Oid, Tid, oid_from_int, tid_from_text

_SECONDS = {
    "s": 1, "sec": 1, "second": 1, "m": 60, "min": 60, "minute": 60, "h": 3600, "hour": 3600,
}
_DAYS = {"d": 1, "day": 1, "w": 7, "week": 7}
_MONTHS = {"month": 1, "y": 12, "year": 12}
_AGO = re.compile(r"(\d+(?:\.\d+)?|an?)\s*([a-z]+)\s+ago")
_DAY_NAMES = {"yesterday": -1, "today": 0, "tomorrow": 1}
_SINCE_1970 = re.compile(r"\d{9,11}(\.\d+)?")


class DatabaseType(click.ParamType):  # type: ignore[type-arg]
    """A path or URI of a database; the shell completes paths."""

    name = "database"

    def shell_complete(self, ctx: Any, param: Any, incomplete: str) -> list[CompletionItem]:
        """Let the shell offer its files."""
        return [CompletionItem(incomplete, type="file")]


class OidType(click.ParamType):  # type: ignore[type-arg]
    """An oid as messages print it: 0x2a, or 42."""

    name = "oid"

    def convert(self, value: Any, param: Any, ctx: Any) -> Oid:
        """Return the oid that a word stands for."""
        try:
            return oid_from_int(int(value, 0))
        except (ValueError, OverflowError):
            self.fail(f"{value!r} is not an oid, such as 0x2a or 42", param, ctx)


class MomentType(click.ParamType):  # type: ignore[type-arg]
    """A transaction, or a time. Converted to a tid, or to an aware datetime."""

    name = "moment"

    def convert(self, value: Any, param: Any, ctx: Any) -> Tid | datetime:
        """Return the tid, or the time, that a word stands for."""
        if isinstance(value, (bytes, datetime)):  # converted already
            return value
        tid = tid_from_text(value)
        if tid is not None:
            return tid
        try:
            return parse_time(value, datetime.now())
        except (ValueError, OverflowError, OSError):
            self.fail(
                f"{value!r} is neither a time, such as 2026-03-01, '2026-03-01 09:30', yesterday "
                "or '2 hours ago', nor a transaction: 16 hexadecimal digits, or an id of `objdb "
                "undolog`",
                param, ctx,
            )


def parse_time(text: str, now: datetime) -> datetime:
    """Return the time that *text* stands for at *now* (local, without zone), with the local zone;
    ValueError or OverflowError if *text* is not a time."""
    words = " ".join(text.lower().split())
    ago = _AGO.fullmatch(words)
    if ago:
        count = 1.0 if ago[1].startswith("a") else float(ago[1])
        return _ago(count, ago[2], now)
    if _SINCE_1970.fullmatch(words):
        return datetime.fromtimestamp(float(words)).astimezone()
    if words == "now":
        return now.astimezone()
    day, _, rest = words.partition(" ")
    if day in _DAY_NAMES:
        on = now.date() + timedelta(days=_DAY_NAMES[day])
        return _at(on, rest.removeprefix("at ") or "00:00")
    if re.fullmatch(r"\d\d?:\d\d(:\d\d)?", words):
        return _at(now.date(), words)
    return datetime.fromisoformat(text.strip().replace("Z", "+00:00")).astimezone()


def _at(day: date, clock: str) -> datetime:
    """Return the local time of day *clock* on a day."""
    moment = time_of_day.fromisoformat(clock.zfill(5) if clock[1:2] == ":" else clock)
    return datetime.combine(day, moment).astimezone()


def _ago(count: float, unit: str, now: datetime) -> datetime:
    unit = unit if unit in _SECONDS else unit.removesuffix("s")
    if unit in _SECONDS:  # elapsed seconds, across changes of the clock too
        return now.astimezone() - timedelta(seconds=count * _SECONDS[unit])
    if unit in _DAYS:
        return (now - timedelta(days=count * _DAYS[unit])).astimezone()
    if unit not in _MONTHS or not count.is_integer():
        raise ValueError(f"{count:g} {unit}")
    years, month = divmod(now.year * 12 + now.month - 1 - int(count) * _MONTHS[unit], 12)
    if years < 1:
        raise ValueError(f"{count:g} {unit}")
    last = monthrange(years, month + 1)[1]
    return now.replace(year=years, month=month + 1, day=min(now.day, last)).astimezone()
