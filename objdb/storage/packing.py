"""Packing: what stays, and how to work without being in the way.

    ──────────── transactions up to T ────────────│──── later ones ───►
      of each object that is reached: its last      all of them, as they are
      revision, if it exists there

An object is reached from the root, from every object that a later transaction changed, and from
every reference in later revisions. So whatever a revision that stays refers to stays as well,
and each later transaction finds what it was made from: it can still be undone.

A later transaction that undoes the end of a version brings an older revision back. That stays too,
with the one that was outside then, which is outside again. They are *orphans*: nothing of the
object's chain leads to them.
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
# How long the interpreter is kept at a time, while others want it and while they do not; and how
# long it is left to them.
_SHORT_SECONDS, _LONG_SECONDS, _PAUSE_SECONDS = 0.00005, 0.002, 0.00005
_BUSY_SECONDS = 0.00001
_BETWEEN_REPORTS_SECONDS = 0.05
# How often it is planned what stays, when others meanwhile make more stay; then, once more, all
# that exists.
MOST_PLANS = 3
_PAGE_BITS = 10
_PAGE = 1 << _PAGE_BITS
_IN_PAGE = _PAGE - 1


class PackResult(NamedTuple):
    """What a pack did, or would do: size in bytes and number of objects, before and after it."""

    size_before: int
    size_after: int
    objects_before: int
    objects_after: int


class PackOptions(NamedTuple):
    """What is asked of a pack: see `IStoragePackable.pack`. `require_wanted()` raises what ends
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
    last tid there is, which the future stands for. `UsageError` for what is no moment."""
    if isinstance(moment, bytes) and len(moment) == 8:
        return min(moment, last)
    if isinstance(moment, bool) or not isinstance(moment, (int, float)):
        raise UsageError(f"{moment!r} is no time to pack to: give seconds since 1970, or a tid")
    if moment > time.time():
        return last
    try:
        found = tid_after(NO_TID, max(moment, 0) + _RESOLUTION_SECONDS)
    except (ValueError, OverflowError, OSError):
        raise UsageError(f"{moment} is no time that a transaction can have") from None
    return found


class OidSet:
    """A set of oids: a byte for each, in pages, since most oids are numbers in a row."""

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
        """Set the number of an oid, if it has none; return whether that was so."""
        number = int.from_bytes(oid, "big")
        page = self._pages.get(number >> _PAGE_BITS)
        if page is None:
            page = self._pages[number >> _PAGE_BITS] = array("Q", bytes(8 * _PAGE))
        if page[number & _IN_PAGE]:
            return False
        page[number & _IN_PAGE] = value
        return True


class Pacer:
    """Lets other threads have the interpreter, as often as they use it; tells how far things
    are; and stops when it is no longer wanted.

    Somebody who has a short piece of work to do, between two calls to the operating system,
    would wait for each until a busy thread is made to let go, which is 5 ms in Python. So this
    thread sleeps after each slice of work. If others used the processor while it slept, the next
    slice is short, else long.

    *require_wanted* raises what ends the work.
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
        """Sleep, if it is time (called after each bit of work)."""
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
        """Raise what ends the work, if it is no longer wanted."""
        if self._require_wanted is not None:
            self._require_wanted()

    def hurry(self) -> None:
        """Work twice as long at a time from now on, however much others want to."""
        self._short *= 2

    @contextmanager
    def without_rest(self) -> Iterator[None]:
        """Do not sleep: others are waiting for this thread."""
        until, self._until = self._until, math.inf
        try:
            yield
        finally:
            self._until = until

    def report(self, phase: str, done: int, total: int) -> None:
        """Tell how far a phase is, not too often; the end of one is always told."""
        if self._progress is None:
            return
        now = time.perf_counter()
        if now >= self._report_at or done >= total:
            self._report_at = now + _BETWEEN_REPORTS_SECONDS
            self._progress(phase, done, total)


def require_none_missing(name: str, missing: list[Oid]) -> None:
    """Raise `PackError` if a pack of the storage *name* has met references to objects that do not
    exist: what those referred to is not known, and would be dropped as garbage."""
    if not missing:
        return
    shown = ", ".join(map(format_oid, sorted(missing)[:5]))
    more = f" and {len(missing) - 5} more" if len(missing) > 5 else ""
    raise PackError(
        f"{name} was not packed: {shown}{more} are referred to, and do not exist. Were they lost, "
        "what only they refer to would be dropped as garbage, for good. See objdb check for who "
        "refers to them; restore them, or remove the references; or pack with gc=False, which "
        "drops old revisions only"
    )


def nowhere_else(oid: Oid) -> bool:
    """No object is in another storage that this one is laid over."""
    return False


def no_roots() -> Iterable[Oid]:
    """Nothing elsewhere refers to anything here."""
    return ()
