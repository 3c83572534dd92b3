"""Connections to the past: which bound a moment is, and where such connections wait.

    at=T        what was committed up to T         ─► before the tid after T
    before=T    what was committed earlier than T  ─► before T

Opening one never waits for another. Those that come back keep their caches for a while: the next
one for the same moment gets them.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from typing import Any

from objdb.connection.connection import Connection
from objdb.errors import UsageError, require_at_least
from objdb.ids import NO_TID, Tid, format_tid, next_tid, tid_after, time_from_tid

_EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)
_MINUTE = 60_000_000  # in microseconds


def bound(at: Any, before: Any, last: Tid) -> Tid | None:
    """Return the tid that the view of a connection ends before, or None if neither is given.

    *at* or *before*: a tid (8 bytes), seconds since 1970, a datetime with a time zone, or one in
    ISO form. *last*: the last tid there is. `UsageError` for both, for a moment in the future,
    and for what is no moment.
    """
    if at is None and before is None:
        return None
    if at is not None and before is not None:
        raise UsageError("give `at` or `before`, not both: at is inclusive, before exclusive")
    moment = before if at is None else at
    if isinstance(moment, bytes):
        if len(moment) != 8:
            raise UsageError(f"{moment!r} is no tid: those are 8 bytes")
        if moment > next_tid(last) and time_from_tid(moment) > time.time():
            raise UsageError(
                f"{format_tid(moment)} is in the future: the last transaction is {format_tid(last)}"
            )
        found = moment if at is None else next_tid(moment)
    else:
        microseconds = _microseconds(moment)
        if microseconds > time.time() * 1e6:
            raise UsageError(f"{moment} is in the future")
        # Tids are finer: "at" a microsecond is up to the end of it.
        found = _first_tid(moment, microseconds + (at is not None))
    return found


def _microseconds(moment: Any) -> int:
    """Return the microseconds since 1970."""
    if isinstance(moment, str):
        try:
            moment = datetime.fromisoformat(moment.replace("Z", "+00:00"))
        except ValueError:
            raise UsageError(
                f"{moment!r} is no time in ISO form, as 2026-03-02T09:30:00+01:00 is"
            ) from None
    if isinstance(moment, datetime):
        if moment.tzinfo is None:
            raise UsageError(
                f"{moment} has no time zone, so it is not known which moment it is. Give it one "
                "(datetime.now().astimezone() has the local one)"
            )
        return (moment - _EPOCH) // timedelta(microseconds=1)
    if isinstance(moment, bool) or not isinstance(moment, (int, float)):
        raise UsageError(
            f"{moment!r} is no moment: give a tid, seconds since 1970, a datetime or ISO form"
        )
    try:
        return round(moment * 1_000_000)
    except (ValueError, OverflowError):
        raise _no_time(moment) from None


def _first_tid(moment: Any, microseconds: int) -> Tid:
    """Return the first tid that is not before so many microseconds since 1970."""
    minutes, rest = divmod(microseconds, _MINUTE)
    try:
        prefix = tid_after(NO_TID, minutes * 60)[:4]
    except (ValueError, OverflowError, OSError):
        raise _no_time(moment) from None
    return prefix + (-(-(rest << 32) // _MINUTE)).to_bytes(4, "big")


def _no_time(moment: Any) -> UsageError:
    return UsageError(f"{moment} is no time that a transaction can have")


class HistoricalPool:
    """Keeps up to *size* connections to the past that nobody uses, each for *timeout* seconds
    at most; *make* makes one that works in a version.

    `_lock` covers the attributes below it.
    """

    def __init__(self, size: int, timeout: float, make: Callable[[str], Connection]) -> None:
        require_at_least(0, historical_pool_size=size)
        if not (isinstance(timeout, (int, float)) and timeout >= 0):
            raise UsageError(
                f"historical_timeout is {timeout!r}; it is a number of seconds, 0 or more"
            )
        self._size = size
        self._timeout = timeout
        self._make = make
        self.clock = time.monotonic
        self._lock = threading.Lock()
        # Since when each is free, and which moment it is of.
        self._free: list[tuple[float, Tid, Connection]] = []
        self._out: dict[Connection, Tid] = {}

    def take(self, before: Tid, version: str = "") -> Connection:
        """Return a connection that nobody else has, if possible one that was at this moment."""
        with self._lock:
            self._drop_old()
            for i, (_, moment, free) in enumerate(self._free):
                if moment == before and free.getVersion() == version:
                    del self._free[i]
                    connection = free
                    break
            else:
                connection = self._make(version)
                connection.pool = self
            self._out[connection] = before
        return connection

    def give_back(self, connection: Connection) -> bool:
        """Take a connection back; False if it is not one of this pool's."""
        with self._lock:
            before = self._out.pop(connection, None)
            if before is None:
                return False
            self._free.append((self.clock(), before, connection))
            self._drop_old()
            return True

    def _drop_old(self) -> None:
        oldest = self.clock() - self._timeout
        kept = [entry for entry in self._free if entry[0] > oldest]
        self._free = kept[max(0, len(kept) - self._size) :]

    def connections(self) -> list[Connection]:
        """Return all connections, those in use first."""
        with self._lock:
            self._drop_old()
            return [*self._out, *(connection for _, _, connection in self._free)]

    def for_each(self, action: Callable[[Connection], None]) -> None:
        """Let who has a connection call *action* with it, when the next view begins; let go of
        those that nobody uses."""
        with self._lock:
            self._free.clear()
            out = list(self._out)
        for connection in out:
            connection.postpone(action)

    def close(self) -> list[Connection]:
        """Return the connections that are in use."""
        with self._lock:
            self._free.clear()
            return list(self._out)
