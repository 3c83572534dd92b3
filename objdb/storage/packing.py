"""Packing: which revisions stay, and how to pack without delaying other threads.

    ──────────── transactions up to T ────────────│──── later ones ───►
      of each reachable object: its last            all of them, unchanged
      revision, if it exists there

An object is reachable from the root, from every object that a later transaction changed, and from
every reference in later revisions. So every object that a staying revision refers to stays too,
and each later transaction finds the revision it is based on: it can still be undone.

A later transaction that undoes the commit or abort of a version restores an older revision. That
stays too, with the one that was outside then, which is outside again. They are *orphans*: the
object's chain does not reach them.
"""

from __future__ import annotations

import math
import time
from array import array
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from objdb.errors import PackError, UsageError
from objdb.ids import NO_TID, Oid, Tid, format_oid, tid_after

References = Callable[[bytes], Iterable[Oid]]
Progress = Callable[[str, int, int], object]
Elsewhere = Callable[[Oid], bool]
# Tids are finer than the times people give.
_RESOLUTION_SECONDS = 2e-6
# How long a slice of work is, while other threads use the processor and while they do not; and
# how long the sleep after it.
_SHORT_SECONDS, _LONG_SECONDS, _PAUSE_SECONDS = 0.00005, 0.002, 0.00005
_BUSY_SECONDS = 0.00001
_BETWEEN_REPORTS_SECONDS = 0.05
# How often it is planned which objects stay, if others make more reachable; then, once more, all
# that exists.
MOST_PLANS = 3
_PAGE_BITS = 10
_PAGE = 1 << _PAGE_BITS
_IN_PAGE = _PAGE - 1


class PackResult(NamedTuple):
    """The result of a pack, or of a dry run: size in bytes and number of objects, before and
    after."""

    size_before: int
    size_after: int
    objects_before: int
    objects_after: int


class PackOptions(NamedTuple):
    """The options of a pack: see `IStoragePackable.pack`. `require_wanted()` raises to cancel
    it."""

    moment: Any
    references: References
    gc: bool
    progress: Progress | None
    keep_old: bool
    dry_run: bool
    roots: Callable[[], Iterable[Oid]]
    elsewhere: Elsewhere
    require_wanted: Callable[[], None]


def pack_tid(moment: Any, last: Tid) -> Tid:
    """Return the last tid that belongs to *moment*, seconds since 1970 or a tid; *last* is the
    storage's last tid, also for moments in the future. `UsageError` for any other value."""
    if isinstance(moment, bytes) and len(moment) == 8:
        return min(moment, last)
    if isinstance(moment, bool) or not isinstance(moment, (int, float)):
        raise UsageError(f"{moment!r} is not a time to pack to: give seconds since 1970, or a tid")
    if moment > time.time():
        return last
    try:
        found = tid_after(NO_TID, max(moment, 0) + _RESOLUTION_SECONDS)
    except (ValueError, OverflowError, OSError):
        raise UsageError(f"{moment} is beyond the range of tids") from None
    return found


class OidSet:
    """A set of oids: a byte for each, in pages, since most oids are consecutive numbers."""

    def __init__(self) -> None:
        self._pages: dict[int, bytearray] = {}

    def add(self, oid: Oid) -> bool:
        """Add an oid; return whether it is new."""
        number = int.from_bytes(oid, "big")
        page = self._pages.get(number >> _PAGE_BITS)
        if page is None:
            page = self._pages[number >> _PAGE_BITS] = bytearray(_PAGE)
        if page[number & _IN_PAGE]:
            return False
        page[number & _IN_PAGE] = 1
        return True

    def __contains__(self, oid: Oid) -> bool:
        number = int.from_bytes(oid, "big")
        page = self._pages.get(number >> _PAGE_BITS)
        return page is not None and bool(page[number & _IN_PAGE])


class OidTable:
    """A number for each of some oids, in pages; 0 for the others."""

    def __init__(self) -> None:
        self._pages: dict[int, array[int]] = {}

    def get(self, oid: Oid) -> int:
        """Return the number of an oid."""
        number = int.from_bytes(oid, "big")
        page = self._pages.get(number >> _PAGE_BITS)
        return 0 if page is None else page[number & _IN_PAGE]

    def set_once(self, oid: Oid, value: int) -> bool:
        """Set the number of an oid, if it has none; return whether it was set."""
        number = int.from_bytes(oid, "big")
        page = self._pages.get(number >> _PAGE_BITS)
        if page is None:
            page = self._pages[number >> _PAGE_BITS] = array("Q", bytes(8 * _PAGE))
        if page[number & _IN_PAGE]:
            return False
        page[number & _IN_PAGE] = value
        return True


class Pacer:
    """Yields the interpreter lock periodically, so that short work in other threads does not wait
    for CPython's 5 ms switch interval; reports progress; and stops when the work is cancelled.

    The thread sleeps after each slice of work. If other threads used the processor while it
    slept, the next slice is short, else long.

    *require_wanted* raises to cancel the work.
    """

    def __init__(
        self, progress: Progress | None = None, require_wanted: Callable[[], None] | None = None
    ) -> None:
        self._progress = progress
        self._require_wanted = require_wanted
        self._short = self._slice = _SHORT_SECONDS
        self._until = time.perf_counter() + self._slice
        self._report_at = 0.0

    def pace(self) -> None:
        """Sleep, if it is time (called after each step of the work)."""
        if time.perf_counter() >= self._until:
            self._rest()

    def _rest(self) -> None:
        self.require_wanted()
        before = time.process_time() - time.thread_time()
        time.sleep(_PAUSE_SECONDS)
        used = time.process_time() - time.thread_time() - before
        if used > _BUSY_SECONDS:
            self._slice = self._short
        else:
            self._slice = max(self._short, min(self._slice * 1.2, _LONG_SECONDS))
        self._until = time.perf_counter() + self._slice

    def require_wanted(self) -> None:
        """Raise if the work is cancelled."""
        if self._require_wanted is not None:
            self._require_wanted()

    def hurry(self) -> None:
        """Double the slice of work from now on, even if other threads are busy."""
        self._short *= 2

    @contextmanager
    def without_rest(self) -> Iterator[None]:
        """Do not sleep inside: other threads are waiting for this one."""
        until, self._until = self._until, math.inf
        try:
            yield
        finally:
            self._until = until

    def report(self, phase: str, done: int, total: int) -> None:
        """Report the progress of a phase, at intervals, and always its end."""
        if self._progress is None:
            return
        now = time.perf_counter()
        if now >= self._report_at or done >= total:
            self._report_at = now + _BETWEEN_REPORTS_SECONDS
            self._progress(phase, done, total)


def require_none_missing(name: str, missing: list[Oid]) -> None:
    """Raise `PackError` if a pack of the storage *name* has met references to missing objects:
    the objects reachable only through them would be removed as garbage."""
    if not missing:
        return
    shown = ", ".join(map(format_oid, sorted(missing)[:5]))
    more = f" and {len(missing) - 5} more" if len(missing) > 5 else ""
    raise PackError(
        f"{name} was not packed: {shown}{more} are referred to, but do not exist. If they were "
        "lost, a pack would remove objects reachable only through them. See objdb check for the "
        "objects that refer to them; restore them, or remove the references; or pack with "
        "gc=False, which removes old revisions only"
    )


def nowhere_else(oid: Oid) -> bool:
    """Return False: no object is in another storage under this one."""
    return False


def no_roots() -> Iterable[Oid]:
    """Return no roots: no other database refers to objects here."""
    return ()
