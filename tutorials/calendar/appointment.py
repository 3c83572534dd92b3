"""An appointment: what takes place, when, where, and who takes part.

It may come again (a rule in `repeat`); then it is stored once, and its occurrences are worked out
when somebody looks. Bookings are another matter: they are written down one by one, see `bookings`.
"""

from __future__ import annotations

import heapq
import uuid
from collections.abc import Iterable, Iterator
from datetime import date, datetime, timedelta
from functools import partial
from itertools import islice, pairwise
from typing import Any, NamedTuple
from zoneinfo import ZoneInfo

import objdb

from .errors import CalendarError
from .person import Person
from .recurrence import checked_rule, has_end, iter_starts
from .zones import instant, midnight

LONGEST = timedelta(days=3660)
MOST_BOOKINGS = 1000


class Occurrence(NamedTuple):
    """One time at which an appointment takes place, in UTC. Not stored: worked out when needed."""

    start: datetime
    end: datetime
    appointment: Appointment

    def overlaps(self, start: datetime, end: datetime) -> bool:
        """Tell whether this shares an instant with the time from `start` up to `end`."""
        return self.start < end and (start < self.end or self.start == self.end >= start)


class Appointment(objdb.Persistent):
    """Something that takes place at a date, for a duration.

    `date` is a datetime with a zone, or a plain date for whole days, which begin at midnight in the
    calendar's zone. `repeat` is a rule of RFC 5545; `skipped` and `added` are times at which the
    series does not, or does in addition, take place. `busy` is whether those who take part cannot
    do anything else at the time.

    The first release had no more than date, duration, subject, location and participants. What came
    later has a default on the class, which steps in for the objects stored before.
    """

    repeat: str | None = None
    skipped: tuple[date | datetime, ...] = ()
    added: tuple[date | datetime, ...] = ()
    category = ""
    busy = True

    def __init__(
        self,
        date: date | datetime,
        duration: timedelta,
        subject: str,
        *,
        location: str = "",
        repeat: str | None = None,
        skipped: Iterable[date | datetime] = (),
        added: Iterable[date | datetime] = (),
        category: str = "",
        busy: bool = True,
        uid: str = "",
    ) -> None:
        self.uid = uid or str(uuid.uuid4())
        self.date, self.duration = date, duration
        self.subject, self.location = one_line(subject), one_line(location)
        self.participants: tuple[Person, ...] = ()
        self._check()
        self.repeat = checked_rule(repeat, date) if repeat else None
        self.skipped, self.added = tuple(skipped), tuple(added)
        self.category, self.busy = category, busy

    @property
    def whole_day(self) -> bool:
        """Whether this is about days rather than times."""
        return not isinstance(self.date, datetime)

    @property
    def blocks(self) -> bool:
        """Whether its participants cannot be elsewhere; a holiday or a mere reminder lets them."""
        return self.busy and self.duration > timedelta()

    def fields(self) -> dict[str, Any]:
        """Return everything that makes an equal appointment, but the uid and the participants."""
        names = ("date", "duration", "subject", "location", "repeat", "skipped", "added")
        return {name: getattr(self, name) for name in (*names, "category", "busy")}

    def occurrences(self, zone: ZoneInfo, before: datetime | None = None) -> Iterator[Occurrence]:
        """Yield when this takes place, those that begin before the given instant, in order.

        `zone` is the calendar's. Without `before`, a series without an end yields for ever.
        """
        for start in self._starts(zone):
            begin = instant(start, zone)
            if before is not None and begin >= before:
                return
            end = begin + self.duration
            if self.whole_day:
                end = midnight(start + self.duration, zone)
            yield Occurrence(begin, end, self)

    def bookings(self, zone: ZoneInfo) -> list[Occurrence]:
        """Return every occurrence, for booking the participants; empty when it blocks nobody.

        Each of them is written down, so there must be an end to them. Raises CalendarError when
        there is none, when they are more than 1000, or when the series overlaps itself.
        """
        if not self.blocks:
            return []
        if self.repeat and not has_end(self.repeat):
            raise CalendarError(
                f"{self.subject!r} goes on for ever; a series that people take part in needs an"
                " end (UNTIL or COUNT)"
            )
        found = list(islice(self.occurrences(zone), MOST_BOOKINGS + 1))
        if len(found) > MOST_BOOKINGS:
            raise CalendarError(f"{self.subject!r} comes more than {MOST_BOOKINGS} times")
        if any(later.start < earlier.end for earlier, later in pairwise(found)):
            raise CalendarError(f"{self.subject!r} comes again before it is over")
        return found

    def _check(self) -> None:
        """Raise CalendarError when this makes no sense, whoever takes part."""
        if not self.subject:
            raise CalendarError("an appointment needs a subject")
        if not self.whole_day and self.date.tzinfo is None:
            raise CalendarError(f"{self.subject!r}: its time needs a zone")
        if not 1000 <= self.date.year <= 9000:
            raise CalendarError(f"{self.subject!r}: the year {self.date.year} is out of reach")
        if not timedelta() <= self.duration <= LONGEST:
            raise CalendarError(f"{self.subject!r} must last from 0 to {LONGEST.days} days")
        if self.whole_day and (self.duration % timedelta(days=1) or not self.duration):
            raise CalendarError(f"{self.subject!r} is about days, so it must last whole days")

    def _starts(self, zone: ZoneInfo) -> Iterator[date | datetime]:
        """Yield the beginnings: those of the rule and the added ones, without the skipped ones."""
        ruled = iter_starts(self.date, self.repeat) if self.repeat else iter((self.date,))
        skipped = {instant(when, zone) for when in self.skipped}
        by_instant = partial(instant, zone=zone)
        last = None
        for start in heapq.merge(ruled, sorted(self.added, key=by_instant), key=by_instant):
            begin = by_instant(start)
            if begin not in skipped and begin != last:
                yield start
            last = begin


def one_line(text: str) -> str:
    """Return `text` on one line and without control characters, which a terminal would obey."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())
