"""Oids and tids: make, compare, print.

Both are 8 bytes, big-endian, so that comparing the bytes compares the numbers.

* An **oid** identifies an object. The root object is oid 0.
* A **tid** identifies a transaction and the revisions it wrote. It is a time stamp in the
  format of ZODB: 4 bytes of minutes since 1900 (months counted as 31 days), then 4 bytes of
  seconds in units of 60 / 2**32. `persistent.timestamp.TimeStamp` computes it. Tids only grow,
  whatever the wall clock does.
"""

from __future__ import annotations

import base64
import binascii
import time
from datetime import datetime, timedelta, timezone
from functools import lru_cache

from persistent.timestamp import TimeStamp

Oid = bytes
Tid = bytes

ROOT_OID: Oid = bytes(8)
NO_TID: Tid = bytes(8)
# "Before MAX_TID" is everything: LAST_TID is the last tid that a transaction can have.
MAX_TID: Tid = b"\x7f" + b"\xff" * 7
LAST_TID: Tid = b"\x7f" + b"\xff" * 6 + b"\xfe"


def oid_from_int(number: int) -> Oid:
    """Return the oid (8 bytes) with this number."""
    return number.to_bytes(8, "big")


def int_from_oid(oid: Oid) -> int:
    """Return the number of an oid (8 bytes)."""
    return int.from_bytes(oid, "big")


def format_oid(oid: Oid | None) -> str:
    """Return an oid as messages print it, `0x2a`; any other value prints as itself."""
    return hex(int.from_bytes(oid, "big")) if isinstance(oid, bytes) else repr(oid)


def format_tid(tid: Tid | None) -> str:
    """Return a tid as messages print it: hexadecimal digits, then its time in UTC."""
    if not isinstance(tid, bytes) or len(tid) != 8:
        return repr(tid)
    if tid == NO_TID:
        return "0x0"
    return f"0x{tid.hex()} ({datetime_from_tid(tid):%Y-%m-%d %H:%M:%S.%f}Z)"


def tid_from_text(text: str) -> Tid | None:
    """Return the tid that a text stands for, or None: 16 hexadecimal digits, with or without 0x,
    or an id of `undoLog` (12 characters of base64)."""
    try:
        if len(text) == 12:
            tid = base64.b64decode(text.encode("ascii"), b"-_", validate=True)
        else:
            tid = bytes.fromhex(text.removeprefix("0x").removeprefix("0X"))
    except (ValueError, binascii.Error):
        return None
    return tid if len(tid) == 8 and " " not in text else None


def tid_after(last: Tid, now: float | None = None) -> Tid:
    """Return the tid for the time *now* (seconds since 1970, default: the clock), or the first
    one after *last* where the clock stands still or went back."""
    now = time.time() if now is None else now
    minute, prefix = _minute
    if now // 60 != minute:
        prefix = _start_minute(now)
    tid = prefix + int(now % 60 * _UNITS_PER_SECOND).to_bytes(4, "big")
    return tid if tid > last else next_tid(last)


_UNITS_PER_SECOND = 2**32 / 60
# (number of the minute that tids were last made in, the 4 bytes they begin with)
_minute: tuple[float, bytes] = (-1.0, b"")


def _start_minute(now: float) -> bytes:
    global _minute
    prefix: bytes = TimeStamp(*time.gmtime(now)[:5], 0.0).raw()[:4]
    _minute = now // 60, prefix
    return prefix


def next_tid(tid: Tid) -> Tid:
    """Return the smallest tid greater than *tid*: "at *tid*" is "before `next_tid(tid)`"."""
    return (int.from_bytes(tid, "big") + 1).to_bytes(8, "big")


def time_from_tid(tid: Tid) -> float:
    """Return the time of a tid as seconds since 1970."""
    minutes, micro = _minutes_and_micro(tid)
    return (_seconds_at(minutes) * 1_000_000 + micro) / 1_000_000


def datetime_from_tid(tid: Tid) -> datetime:
    """Return the time of a tid as an aware datetime in UTC.

    A tid that is not a valid time (a small number made by a test or another tool) gives the
    nearest valid one.
    """
    minutes, micro = _minutes_and_micro(tid)
    return _minute_at(minutes) + timedelta(microseconds=micro)


def _minutes_and_micro(tid: Tid) -> tuple[int, int]:
    """Return the minutes in a tid, unconverted, and the microseconds since."""
    seconds = int.from_bytes(tid[4:], "big") * 60 / 2**32
    return int.from_bytes(tid[:4], "big"), min(int(seconds * 1e6), 59_999_999)


@lru_cache(maxsize=16)  # neighbouring transactions are often of the same minute
def _seconds_at(minutes: int) -> int:
    return int(_minute_at(minutes).timestamp())


def _minute_at(minutes: int) -> datetime:
    days, minute = divmod(minutes, 24 * 60)
    months, day = divmod(days, 31)
    year, month = divmod(months, 12)
    for last_day in (day + 1, 30, 29, 28):
        try:
            return datetime(
                1900 + year, month + 1, last_day, minute // 60, minute % 60, tzinfo=timezone.utc
            )
        except ValueError:
            continue
    return datetime.max.replace(second=0, microsecond=0, tzinfo=timezone.utc)
