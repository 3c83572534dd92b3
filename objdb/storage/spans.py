"""Which part of the undo log is wanted: by position, or by time.

    first, last        int, int >= 0     positions first … last - 1, counted from the newest
                       int, int < 0      -last entries, from position first on
                       time, time        from then to then, both included
                       time, int < 0     from then on, the newest -last entries
                       0, time           from the beginning
"""

from __future__ import annotations

import math
from datetime import datetime
from typing import Any, NamedTuple

from objdb.errors import UsageError
from objdb.ids import NO_TID, Tid, tid_after

# Times are told in microseconds, and tids are finer.
_RESOLUTION_SECONDS = 2e-6


class Span(NamedTuple):
    """`skip` so many, then take `limit` (None: all) of those from `start` to `stop` (seconds
    since 1970). None of those is later than `stop_tid`, if that is given."""

    skip: int
    limit: int | None
    start: float
    stop: float
    stop_tid: Tid | None


def span(first: Any, last: Any) -> Span:
    """Return what *first* and *last* ask for; `UsageError` if they make no sense."""
    is_time = [_is_time(first), _is_time(last)]
    if not any(is_time):
        if first < 0:
            raise UsageError(f"first is {first}; positions count from 0, the newest")
        limit = -last if last < 0 else max(last - first, 0)
        return Span(first, limit, -math.inf, math.inf, None)
    if not is_time[0] and first != 0:
        raise UsageError(f"first is the position {first}, and last a time. Give two of a kind")
    start = _seconds(first) if is_time[0] else -math.inf
    if is_time[1]:
        stop = _seconds(last)
        return Span(0, None, start, stop, _tid_behind(stop))
    if last >= 0:
        raise UsageError(
            f"first is a time, and last the number {last}. Give a time (a float or datetime), or "
            "a negative number: how many at most"
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
            raise UsageError("nan is no time")
        return moment
    if moment.tzinfo is None:
        raise UsageError(
            f"{moment} has no time zone, so it is not known which moment it is. Give it one "
            "(datetime.now().astimezone() has the local one)"
        )
    return moment.timestamp()


def _tid_behind(seconds: float) -> Tid | None:
    """Return a tid that is not before those of that time; None if there is none."""
    try:
        return tid_after(NO_TID, seconds + _RESOLUTION_SECONDS)
    except (ValueError, OverflowError, OSError):
        return None
