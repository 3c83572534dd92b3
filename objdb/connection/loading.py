"""The first story of a connection: how objects are reached and loaded.

    attribute of a ghost ─► setstate ─► storage.loadBefore(oid, snapshot) ─► reader ─► object
"""

from __future__ import annotations

import enum
import threading
from collections.abc import Callable
from threading import get_ident
from typing import Any, NoReturn

from persistent import Persistent, PickleCache

from objdb.connection.aging import AccessEpochs
from objdb.connection.changes import ChangeSet
from objdb.connection.savepoint import SavepointStore
from objdb.errors import (
    ConcurrentUseError,
    ConflictError,
    ConnectionStateError,
    DeserializationError,
    ObjdbError,
    POSKeyError,
    ReadConflictError,
)
from objdb.ids import NO_TID, ROOT_OID, Oid, Tid, format_oid
from objdb.records.broken import class_name
from objdb.records.reader import ObjectReader
from objdb.records.references import references

_STICKY = 2  # the _p_state of an object that C code is working on


class Phase(enum.Enum):
    """What a connection is doing."""

    CLOSED = "closed"
    IDLE = "open, nothing changed"
    JOINED = "open, with uncommitted changes"
    COMMITTING = "committing"


class ObjectLoader:
    """The part of a connection that loads: its cache, its reader, its snapshot.

    `_before` is the tid the snapshot ends before. `_user` is the thread that is loading just
    now. `_refused` lists objects that hold a change which was refused.
    """

    def __init__(self, db: Any, cache_size: int, cache_size_bytes: int) -> None:
        self._db = db
        self._storage = db.storage
        self._load_before: Callable[[Oid, Tid], Any] = self._load_when_closed
        self._cache = PickleCache(self, cache_size, cache_size_bytes)
        self._counts_bytes = cache_size_bytes > 0
        self._reader = ObjectReader(self, self._cache)
        self._read_state = self._reader.state
        self._epochs = AccessEpochs(self, self._cache)
        self._phase = Phase.CLOSED
        self._before: Tid = NO_TID
        self._user: int | None = None
        self._refused: list[Any] = []
        self._changes = ChangeSet()
        self._savepoints: SavepointStore | None = None
        self.load_count = 0

    # -- reaching objects

    def root(self) -> Any:
        """Return the root object, a `PersistentMapping`: what is reachable from it is stored."""
        return self.get(ROOT_OID)

    def get(self, oid: Oid) -> Any:
        """Return the object with this oid (8 bytes); `POSKeyError` if there is none."""
        if self._phase is Phase.CLOSED:
            raise self._closed()
        if self._refused:
            self._drop_refused()
        if type(oid) is not bytes or len(oid) != 8:
            raise POSKeyError(f"{oid!r} is no oid: those are 8 bytes")
        obj = self._cache.get(oid)
        if obj is None:
            obj = self._changes.added.get(oid)
        if obj is None:
            record = self._load(oid)
            # Loading may have met the object by another way.
            obj = self._cache.get(oid)
            if obj is None:
                obj = self._reader.ghost(oid, record)
        return obj

    __getitem__ = get

    def db(self) -> Any:
        """Return the database."""
        return self._db

    # -- load

    def setstate(self, obj: Any) -> None:
        """Load the state of the ghost *obj* (called when it is first touched).

        Raises `POSKeyError`, `ReadConflictError`, `DeserializationError`, or
        `ConnectionStateError` after the connection was closed.
        """
        user, thread = self._user, get_ident()
        if user is not None and user != thread:
            raise self._concurrent_use()
        self._user = thread
        oid = obj._p_oid
        try:
            found = None if self._savepoints is None else self._load_saved(oid)
            record, tid, _ = found or self._load_before(oid, self._before) or self._is_gone(oid)
            obj.__setstate__(self._read_state(type(obj), record))
            obj._p_serial = tid
            if self._counts_bytes:
                self._note_size(oid, obj, len(record))
            self.load_count += 1
        except POSKeyError as error:
            if error.oid == oid and error.referrer is None:
                error.referrer = self._find_referrer(oid)
            raise
        except ObjdbError as error:
            complete_error(error, oid, type(obj))
            raise
        except OSError:
            raise
        except Exception as error:
            raise DeserializationError(
                f"object {format_oid(oid)}: {class_name(type(obj))}.__setstate__ does not take "
                f"the stored state: {type(error).__name__}: {error}",
                oid=oid, class_name=class_name(type(obj)),
            ) from error
        finally:
            self._user = user

    def _load_saved(self, oid: Oid) -> tuple[bytes, Tid, None] | None:
        """Return what a savepoint has put away for *oid*, if anything."""
        if self._savepoints is None or oid not in self._savepoints:
            return None
        return *self._savepoints.load(oid), None

    def _load(self, oid: Oid) -> bytes:
        """Return the record of *oid* as this transaction sees it."""
        found = self._load_saved(oid) or self._load_before(oid, self._before)
        if found is None:
            raise POSKeyError(oid, database=self._db.name)
        return found[0]

    def _is_gone(self, oid: Oid) -> NoReturn:
        raise ReadConflictError(
            f"object {format_oid(oid)} has no revision as old as this transaction's view any "
            "more. Abort and try the transaction again", oid=oid,
        )

    def _load_when_closed(self, oid: Oid, before: Tid) -> NoReturn:
        raise self._closed()

    def oldstate(self, obj: Any, tid: Tid) -> Any:
        """Return the state *obj* had in the revision *tid*; `POSKeyError` if there is none."""
        return self._reader.state(type(obj), self._storage.loadSerial(obj._p_oid, tid))

    def _find_referrer(self, oid: Oid) -> Oid | None:
        """Return the oid of a loaded object that refers to *oid*, the last used one first."""
        for referrer, obj in reversed(self._cache.lru_items()):
            if self._epochs.is_marker(obj) or obj._p_serial == NO_TID:
                continue
            try:
                if oid in references(self._load(referrer)):
                    return bytes(referrer)
            except ObjdbError:  # it cannot say; the error at hand is the one to raise
                continue
        return None

    def _note_size(self, oid: Oid, obj: Any, size: int) -> None:
        """Tell the cache, whose size in bytes is limited, how large an object's record is."""
        self._cache.update_object_size_estimation(oid, size)
        obj._p_estimated_size = size

    # -- refused changes

    def _refuse(self, obj: Any) -> None:
        """Take back a change that was refused: mappings, lists and trees report a change when
        they have made it. A tree is in use at this moment, and is dropped at the next one."""
        if obj._p_state == _STICKY:
            self._refused.append(obj)
        else:
            obj._p_invalidate()

    def _drop_refused(self, changing: Any = None) -> None:
        if any(obj is changing for obj in self._refused):
            raise ConnectionStateError(
                f"object {format_oid(changing._p_oid)} holds a change that was refused. Abort "
                "the transaction first"
            )
        for obj in self._refused:
            obj._p_invalidate()
        self._refused.clear()

    # -- the cache

    def cacheMinimize(self, age: float = 0) -> None:
        """Make ghosts of all loaded, unchanged objects that were not used for *age* seconds."""
        self._reader.forget()
        if age:
            self.cacheFullSweep(age)
        else:
            self._cache.minimize()

    def cacheFullSweep(self, age: float | None = None) -> None:
        """Make ghosts of the loaded, unchanged objects that were not used for *age* seconds
        (default: the database's `cache_deactivate_after`)."""
        for obj in self._epochs.idle_for(self._db.cache_deactivate_after if age is None else age):
            obj._p_deactivate()

    def cacheGC(self) -> None:
        """Bring the cache down to its target size, least recently used objects first."""
        self._cache.incrgc()

    def cached_objects(self) -> list[Persistent]:
        """Return the loaded objects, least recently used first."""
        items = self._cache.lru_items()
        return [obj for _, obj in items if not self._epochs.is_marker(obj)]

    def set_cache_limits(self, size: int, size_bytes: int) -> None:
        """Change the target: *size* objects, *size_bytes* bytes of their records (0: no limit)."""
        self._cache.cache_size = size
        self._cache.cache_size_bytes = size_bytes
        self._counts_bytes = size_bytes > 0

    def record_size(self, oid: Oid) -> int:
        """Return the size of an object's record, in bytes; 0 if it has none yet."""
        try:
            found = self._storage.loadBefore(oid, self._before)
        except KeyError:  # new, and not committed yet
            return 0
        return 0 if found is None else len(found[0])

    def estimated_bytes(self) -> int:
        """Return the size of the records the loaded objects came from: counted while the cache
        has a limit in bytes, else 0."""
        return int(self._cache.total_estimated_size)

    def ghost_count(self) -> int:
        """Return the number of ghosts in the cache."""
        return len(self._cache) - int(self._cache.ringlen())

    # -- errors

    def _closed(self) -> ConnectionStateError:
        return ConnectionStateError(
            "an object of a closed connection was used. Open a connection, and reach the object "
            "from its root()"
        )

    def _concurrent_use(self) -> ConcurrentUseError:
        return ConcurrentUseError(
            f"thread {threading.current_thread().name!r} used {self!r}, which another thread is "
            "using. Open a connection per thread (db.open() in each)"
        )


def complete_error(error: Any, oid: Oid | None, cls: type) -> None:
    """Add to an error which object it was about."""
    if getattr(error, "oid", oid) is None:
        error.oid = oid
        error.args = (f"object {format_oid(oid)}: {error}",)
    if getattr(error, "class_name", "") is None:
        error.class_name = class_name(cls)
        if isinstance(error, ConflictError):
            error.args = (str(error).replace(
                f"object {format_oid(oid)} ", f"object {format_oid(oid)} ({error.class_name}) ", 1
            ),)
