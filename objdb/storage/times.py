"""Conversion of moments, as programs give them, to tids: every function with such an argument
uses this module.

A moment is a tid (8 bytes, or as text), seconds since 1970, a datetime with a time zone, or text
in ISO form.

    at=T        transactions committed up to T      ─► before the tid after T
    before=T    transactions committed before T     ─► before T
    pack(T, days=N)                                 ─► the last tid N days before T

Parts of the undo log are given by position, or by time:

    first, last        int, int >= 0     positions first … last - 1, counted from the newest
                       int, int < 0      -last entries, from position first on
                       time, time        from then to then, both included
                       time, int < 0     from then on, the newest -last entries
                       0, time           from the beginning
"""

from __future__ import annotations

import logging
import math
import time
from datetime import datetime, timedelta, timezone
from typing import Any, NamedTuple

from objdb.errors import StorageError, StorageTransactionError, UsageError
from objdb.ids import (
    LAST_TID,
    NO_TID,
    Tid,
    format_tid,
    next_tid,
    tid_after,
    tid_from_text,
    time_from_tid,
)

_EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)
_MINUTE = 60_000_000  # in microseconds
_DAY_SECONDS = 86_400
# Times are given in microseconds; tids are finer.
_RESOLUTION_SECONDS = 2e-6

logger = logging.getLogger("objdb.storage")


def bound(at: Any, before: Any, last: Tid) -> Tid | None:
    """Return the exclusive tid bound of a historical view, or None if neither is given.

    *at* or *before*: a tid (8 bytes, or as text), seconds since 1970, a datetime with a time
    zone, or text in ISO form. *last*: the storage's last tid. `UsageError` for both, for a moment
    in the future, and for any other value.
    """
    if at is None and before is None:
        return None
    if at is not None and before is not None:
        raise UsageError("give `at` (inclusive) or `before` (exclusive), not both")
    moment = before if at is None else at
    if isinstance(moment, str):
        moment = tid_from_text(moment) or moment
    if isinstance(moment, bytes):
        if len(moment) != 8:
            raise UsageError(f"{moment!r} is not a tid; a tid is 8 bytes")
        if moment > next_tid(last) and time_from_tid(moment) > time.time():
            raise UsageError(
                f"{format_tid(moment)} is in the future: the last transaction is {format_tid(last)}"
            )
        found = moment if at is None else next_tid(moment)
    else:
        microseconds = _microseconds(moment)
        if microseconds > time.time() * 1e6:
            raise UsageError(f"{moment} is in the future")
        # Tids are finer: "at" a microsecond includes all of it.
        found = _first_tid(moment, microseconds + (at is not None))
    return found


def is_future(moment: Any) -> bool:
    """Whether a moment, as in `bound`, is ahead of the clock."""
    if isinstance(moment, str):
        moment = tid_from_text(moment) or moment
    if isinstance(moment, bytes):
        return len(moment) == 8 and time_from_tid(moment) > time.time()
    return _microseconds(moment) > time.time() * 1e6


def pack_moment(t: Any, days: float, last: Tid) -> Tid:
    """Return the last tid up to which to pack; *last*: the storage's last tid."""
    if isinstance(days, bool) or not isinstance(days, (int, float)) or not 0 <= days < math.inf:
        raise UsageError(f"days is {days!r}; it must be a number, 0 or more")
    if days:
        if isinstance(t, datetime):
            t = _with_zone(t).timestamp()
        moment = time.time() if t is None else t
        if isinstance(moment, bool) or not isinstance(moment, (int, float)):
            raise UsageError(f"days can be subtracted from seconds or a datetime, not from {t!r}")
        t = moment - days * _DAY_SECONDS
    if t is None or is_future(t):
        return last
    before = bound(t, None, last)
    assert before is not None
    return (max(int.from_bytes(before, "big"), 1) - 1).to_bytes(8, "big")


def _microseconds(moment: Any) -> int:
    """Return the microseconds since 1970."""
    if isinstance(moment, str):
        try:
            moment = datetime.fromisoformat(moment.replace("Z", "+00:00"))
        except ValueError:
            raise UsageError(
                f"{moment!r} is not a time in ISO form, such as 2026-03-02T09:30:00+01:00"
            ) from None
    if isinstance(moment, datetime):
        return (_with_zone(moment) - _EPOCH) // timedelta(microseconds=1)
    if isinstance(moment, bool) or not isinstance(moment, (int, float)):
        raise UsageError(
            f"{moment!r} is not a time: give a tid, seconds since 1970, a datetime or ISO form"
        )
    try:
        return round(moment * 1_000_000)
    except (ValueError, OverflowError):
        raise _no_time(moment) from None


def _with_zone(moment: datetime) -> datetime:
    if moment.tzinfo is None:
        raise UsageError(
            f"{moment} has no time zone, so it is ambiguous. Give it one "
            "(datetime.now().astimezone() has the local one)"
        )
    return moment


def _first_tid(moment: Any, microseconds: int) -> Tid:
    """Return the first tid at or after a time in microseconds since 1970."""
    minutes, rest = divmod(microseconds, _MINUTE)
    try:
        prefix = tid_after(NO_TID, minutes * 60)[:4]
    except (ValueError, OverflowError, OSError):
        raise _no_time(moment) from None
    return prefix + (-(-(rest << 32) // _MINUTE)).to_bytes(4, "big")


def _no_time(moment: Any) -> UsageError:
    return UsageError(f"{moment} is beyond the range of tids")


def commit_tid(name: str, given: Tid | None, last: Tid) -> Tid:
    """Return the tid of a transaction that follows *last* in the storage *name*: *given*, if it
    was copied from elsewhere. `StorageTransactionError` if that is not after *last*;
    `StorageError` at the end of the range."""
    if given is not None and given <= last:
        raise StorageTransactionError(
            f"{name}: tid {given.hex()} is not after the last one, {last.hex()}. Copy "
            "transactions in tid order"
        )
    if last >= LAST_TID or (given is not None and given > LAST_TID):
        raise StorageError(
            f"{name}: the transaction {format_tid(given or last)} is at the end of the range of "
            "tids, so nothing can be committed after it. The clock was wrong. Copy the earlier "
            "transactions to a new database: objdb migrate 'before+file:PATH?before=TIME' NEW"
        )
    return tid_after(last) if given is None else given


def ahead_of_clock(last: Tid) -> str:
    """Return a sentence if the transaction *last* is more than a day ahead of the clock; else
    ""."""
    ahead = time_from_tid(last) - time.time()
    if last == NO_TID or ahead < _DAY_SECONDS:
        return ""
    return (
        f"the last transaction, {format_tid(last)}, is {ahead / _DAY_SECONDS:,.0f} days ahead of "
        "the clock. All later tids follow it: historical connections and packs, by time, do not "
        "find them"
    )


def warn_if_ahead(name: str, last: Tid) -> None:
    """Log a warning if the last transaction of a storage is in the future."""
    text = ahead_of_clock(last)
    if text:
        logger.warning("%s: %s", name, text)


# -- parts of the undo log


class Span(NamedTuple):
    """A part of the undo log: of the entries from `start` to `stop` (seconds since 1970), skip
    `skip`, then take `limit` (None: all). None is later than `stop_tid`, if that is given."""

    skip: int
    limit: int | None
    start: float
    stop: float
    stop_tid: Tid | None


def span(first: Any, last: Any) -> Span:
    """Return the span for *first* and *last*; `UsageError` if they are not valid."""
    is_time = [_is_time(first), _is_time(last)]
    if not any(is_time):
        if first < 0:
            raise UsageError(f"first is {first}; positions count from 0, the newest")
        limit = -last if last < 0 else max(last - first, 0)
        return Span(first, limit, -math.inf, math.inf, None)
    if not is_time[0] and first != 0:
        raise UsageError(f"first is the position {first}, but last a time. Give two of a kind")
    start = _seconds(first) if is_time[0] else -math.inf
    if is_time[1]:
        stop = _seconds(last)
        return Span(0, None, start, stop, _tid_behind(stop))
    if last >= 0:
        raise UsageError(
            f"first is a time, but last the number {last}. Give a time (a float or datetime), or "
            "a negative number: the maximum number of entries"
        )
    return Span(0, -last, start, math.inf, None)


def _is_time(bound: Any) -> bool:
    if isinstance(bound, (float, datetime)):
        return True
    if isinstance(bound, int) and not isinstance(bound, bool):
        return False
    raise UsageError(
        f"{bound!r} is neither a position (an int) nor a time (seconds since 1970 as a float, or "
        "a datetime)"
    )


def _seconds(moment: float | datetime) -> float:
    if isinstance(moment, float):
        if math.isnan(moment):
            raise UsageError("nan is not a time")
        return moment
    return _with_zone(moment).timestamp()


def _tid_behind(seconds: float) -> Tid | None:
    """Return a tid not before those of a time; None if there is no such tid."""
    try:
        return tid_after(NO_TID, seconds + _RESOLUTION_SECONDS)
    except (ValueError, OverflowError, OSError):
        return None
