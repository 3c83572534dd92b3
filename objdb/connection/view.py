"""The view of a connection: the database as it was when the transaction began.

    a transaction begins ─► move: objects that others changed since become ghosts
                         ─► loads end before the bound, the tid after the last transaction

A view of the past stays at its moment. In "read-current" loads are not bounded: see
`set_current_state`.
"""

from __future__ import annotations

from typing import Any

from objdb.connection.isolation import ReadSet
from objdb.connection.jar import Jar
from objdb.connection.loadpath import LoadPath
from objdb.connection.work import refuse_commit
from objdb.errors import POSKeyError, ReadConflictError
from objdb.ids import MAX_TID, NO_TID, Oid, Tid, format_oid, format_tid, next_tid
from objdb.interfaces import IStorageSync
from objdb.records.broken import class_name


class View:
    """The view of the connection *jar*.

    `snapshot` is the last transaction in it; `past` the tid before which it stays, None if it moves
    on. `reads` is what was read, where that is remembered; `must_be_current` has (oid: serial) of
    what must not be changed by others before the commit.
    """

    def __init__(self, jar: Jar) -> None:
        self._jar = jar
        self._db = jar.db()
        self._log = self._db.invalidations
        self._log_epoch = self._log.epoch
        self.snapshot: Tid = NO_TID
        self.past: Tid | None = None
        self.isolation = "snapshot"
        self.reads: ReadSet | None = None
        self.must_be_current: dict[Oid, Tid] = {}
        self.has_begun = False

    def open(self, isolation: str, past: Tid | None) -> None:
        """Begin with the connection's opening."""
        jar = self._jar
        self.isolation = isolation if past is None else "snapshot"
        self.past = past
        if past is not None and self.snapshot == NO_TID:  # else it was here before
            self.snapshot = self._db.current_tid()
        self._set_bound(self.snapshot)
        jar._loaded = None
        self.reads = ReadSet(jar, jar._cache) if self.isolation == "serializable" else None
        self.has_begun = False

    def begin(self, *, asks: bool = False) -> None:
        """Move to the last transaction, and forget what was read. *asks*: ask the storage for what
        was committed elsewhere, if it does not know by itself."""
        self.has_begun = True
        self.must_be_current.clear()
        if self.past is None:
            if asks and IStorageSync.providedBy(self._db.storage):
                self._db.storage.sync()
            self._move()

    def _move(self) -> None:
        jar, log = self._jar, self._log
        last: Tid = self._db.current_tid()
        if last != self.snapshot or log.epoch != self._log_epoch:
            oids = log.between(self.snapshot, last, jar.token, jar.version)
            if oids is None or log.epoch != self._log_epoch:
                self._log_epoch = log.epoch
                jar.cache.invalidate_all()
            elif oids:
                jar._cache.invalidate(oids)
            self._set_bound(last)
            self.snapshot = last  # behind all else: what is interrupted before is done again

    def _set_bound(self, snapshot: Tid) -> None:
        """Set what loads are bounded by in a view of *snapshot*."""
        if self.past is not None:
            # Nor what is committed later, should the clock go back.
            self._jar._before = min(self.past, next_tid(snapshot))
        elif self.isolation == "read-current":
            self._jar._before = MAX_TID
        else:
            self._jar._before = next_tid(snapshot)


def set_current_state(jar: Any, obj: Any) -> None:
    """Load the current state of *obj*, where the mode is "read-current".

    `ReadConflictError` if that is newer than the transaction's view, unless the object says
    that it is independent; and then nothing can be committed until the view moves on.
    """
    LoadPath.setstate(jar, obj)
    serial, snapshot = obj._p_serial, jar.view.snapshot
    if serial > snapshot and _was_changed(jar, obj._p_oid, serial):
        independent = getattr(obj, "_p_independent", None)
        if independent is None or not independent():
            error = _newer(jar, obj._p_oid, type(obj), serial)
            jar.db().count_conflict(error)
            refuse_commit(jar, error)
            raise error


def _was_changed(jar: Jar, oid: Oid, tid: Tid) -> bool:
    """Whether the object *oid*, of the revision *tid*, was there when the view began."""
    changed = jar.db().invalidations.between(jar.view.snapshot, tid, jar.token, jar.version)
    return changed is None or oid in changed


def _newer(jar: Jar, oid: Oid, cls: type, serial: Tid) -> ReadConflictError:
    try:
        found = jar.load_committed(oid, next_tid(jar.view.snapshot))
    except POSKeyError:
        found = None
    return ReadConflictError(
        f"object {format_oid(oid)} ({class_name(cls)}) was changed by "
        f"{format_tid(serial)}, after this transaction began. Abort and try it again",
        oid=oid, class_name=class_name(cls),
        serials=None if found is None else (serial, found[1]),
    )
