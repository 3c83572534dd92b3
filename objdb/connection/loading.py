"""The first story of a connection: how objects are reached and loaded.

    attribute of a ghost ─► setstate ─► storage.loadBefore(oid, snapshot) ─► reader ─► object

The way itself is in `loadpath`; here is what it needs, and what it does not do every time.
"""

from __future__ import annotations

import enum
import threading
from collections import deque
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any, NoReturn

from persistent import Persistent, PickleCache
from transaction.interfaces import TransientError

from objdb.connection.aging import AccessEpochs
from objdb.connection.changes import ChangeSet
from objdb.connection.isolation import ReadSet, kept
from objdb.connection.loadpath import LoadPath
from objdb.connection.loops import running_loop
from objdb.connection.prefetch import Prefetch, Prefetched
from objdb.connection.root import Root
from objdb.connection.savepoint import SavepointStore
from objdb.connection.workers import Job
from objdb.errors import (
    ConcurrentUseError,
    ConflictError,
    ConnectionStateError,
    DeserializationError,
    ObjdbError,
    POSKeyError,
    ReadConflictError,
    require_at_least,
)
from objdb.ids import NO_TID, ROOT_OID, Oid, Tid, format_oid, format_tid, next_tid
from objdb.interfaces import IStoragePacked
from objdb.records.attributes import set_estimated_size
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
    VOTING = "voting on a commit"


class ObjectLoader(LoadPath):
    """The part of a connection that loads: its cache, its reader, its snapshot.

    `_refused` lists objects that hold a change which was refused.
    """

    def __init__(
        self, db: Any, cache_size: int, cache_size_bytes: int, version: str = ""
    ) -> None:
        self._db = db
        self._storage = db.storage
        self._version = version  # which this connection works in, always
        self._load_before = self._load_when_closed
        # Connections to the databases of the group, this one too, in the same transactions, by
        # name. They stay with this one, since the objects in its cache refer to theirs.
        self._companions: dict[str, Any] = {self._db.database_name: self}
        self._root = Root(self)
        self._cache = PickleCache(self, cache_size, cache_size_bytes)
        self._counts_bytes = cache_size_bytes > 0
        self._reader = ObjectReader(self, self._cache)
        self._read_state = self._reader.state
        self._epochs = AccessEpochs(self, self._cache)
        self._phase = Phase.CLOSED
        self._before = NO_TID
        self._refused: list[Any] = []
        self._changes = ChangeSet()
        self._savepoints: SavepointStore | None = None
        self._reads: ReadSet | None = None
        self._postponed: deque[Callable[[Any], None]] = deque()
        self._isolation = "snapshot"
        self._snapshot: Tid = NO_TID
        self._past: Tid | None = None  # where the view stays, if it does not move on
        self.token = object()  # names this connection in the invalidation log

    # -- reaching objects

    @property
    def root(self) -> Root:
        """The root object, a `PersistentMapping`, when it is called: `connection.root()`; what is
        reachable from it is stored. `connection.root.name` is `connection.root()["name"]`."""
        return self._root

    @property
    def is_open(self) -> bool:
        """Whether the connection can be used."""
        return self._phase is not Phase.CLOSED

    def root_object(self) -> Any:
        """Return the root object, for `root`."""
        try:
            return self.get(ROOT_OID)
        except POSKeyError:
            if self._past is None:
                raise
            error = POSKeyError(
                f"{self._db.name} had no root object before {format_tid(self._past)}: there was "
                "nothing in it yet", database=self._db.name,
            )
            error.oid = ROOT_OID
            raise error from None

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

    def prefetch(self, *objects: Any, depth: int = 0) -> Coroutine[Any, Any, int]:
        """Load *objects*: in a coroutine, when the result is awaited, without keeping the event
        loop waiting; elsewhere now. Awaited, the result is how many had to be loaded.

        Each is a persistent object, an oid, or something to iterate over that yields them, such as
        `tree.values(first, last)`. *depth*: also load what these refer to, in so many steps. A
        BTree comes whole. All counts as read by the transaction, and stays loaded until it
        ends. While this runs, nobody else may use the connection. When cancelled, this ends with
        the object that is being loaded.

        Raises what loading raises; `UsageError` for objects of another connection.
        """
        if self._phase is Phase.CLOSED:
            raise self._closed()
        require_at_least(0, depth=depth)
        prefetch = Prefetch(self, objects, depth)
        return self._prefetch(prefetch) if running_loop() else Prefetched(prefetch.run())

    async def _prefetch(self, prefetch: Prefetch) -> int:
        count: int = await self._db.workers.submit(Job(prefetch.run)).outcome(prefetch.stop)
        return count

    def _load_failed(self, obj: Any, error: BaseException) -> NoReturn:
        """Raise what loading *obj* ended in, with what is known about the object."""
        oid = obj._p_oid
        if isinstance(error, POSKeyError):
            if error.oid == oid and self._is_before_pack():
                self._is_gone(oid)
            if error.oid == oid and error.referrer is None:
                error.referrer = self._find_referrer(oid)
            raise error
        if isinstance(error, ObjdbError):
            complete_error(error, oid, type(obj))
            raise error
        passes = isinstance(error, (OSError, MemoryError, TransientError))
        if passes or not isinstance(error, Exception):
            raise error
        raise DeserializationError(
            f"object {format_oid(oid)}: {class_name(type(obj))}.__setstate__ does not take "
            f"the stored state: {type(error).__name__}: {error}",
            oid=oid, class_name=class_name(type(obj)),
        ) from error

    def _set_current_state(self, obj: Any) -> None:
        """Load the current state of *obj*, where the mode is "read-current".

        `ReadConflictError` if that is newer than the transaction's view, unless the object says
        that it is independent; and then nothing can be committed until the view moves on.
        """
        super().setstate(obj)
        serial = obj._p_serial
        if serial > self._snapshot and self._was_changed(obj._p_oid, serial):
            independent = getattr(obj, "_p_independent", None)
            if independent is None or not independent():
                error = self._is_newer(obj._p_oid, type(obj), serial)
                self._db.count_conflict(error)
                self._refuse_commit(error)
                raise error

    def _was_changed(self, oid: Oid, tid: Tid) -> bool:
        """Whether the object *oid*, of the revision *tid*, was there when the view began."""
        changed = self._db.invalidations.between(
            self._snapshot, tid, self.token, self._version
        )
        return changed is None or oid in changed

    def _is_newer(self, oid: Oid, cls: type, serial: Tid) -> ReadConflictError:
        try:
            found = self._load_committed(oid, next_tid(self._snapshot))
        except POSKeyError:
            found = None
        return ReadConflictError(
            f"object {format_oid(oid)} ({class_name(cls)}) was changed by "
            f"{format_tid(serial)}, after this transaction began. Abort and try it again",
            oid=oid, class_name=class_name(cls),
            serials=None if found is None else (serial, found[1]),
        )

    if TYPE_CHECKING:  # see `committing`

        def _refuse_commit(self, error: ReadConflictError) -> None: ...

    def _bind_storage(self) -> None:
        """Load what this connection's version shows from its storage."""
        self._load_committed: Callable[..., Any] = self._storage.loadBefore
        if self._version:
            load, version = self._storage.loadBefore, self._version
            self._load_committed = lambda oid, before: load(oid, before, version)
        self._load_before = self._load_committed

    def _load_with_savepoints(self, oid: Oid, before: Tid) -> Any:
        """Return what a savepoint has put away for *oid*, else what the storage has."""
        if self._savepoints is not None and oid in self._savepoints:
            return *self._savepoints.load(oid), None
        return self._load_committed(oid, before)

    def _load(self, oid: Oid) -> bytes:
        """Return the record of *oid* as this transaction sees it."""
        return self._load_revision(oid)[0]

    def _load_revision(self, oid: Oid) -> tuple[bytes, Tid]:
        try:
            found = self._load_before(oid, self._before)
            if found is None:
                raise POSKeyError(oid, database=self._db.name)
        except POSKeyError as error:
            if error.oid == oid and self._is_before_pack():
                self._is_gone(oid)
            raise
        return found[0], found[1]

    def _is_before_pack(self) -> bool:
        """Whether the view is at a moment of which a pack may have taken something away."""
        storage = self._storage
        return IStoragePacked.providedBy(storage) and bool(self._before <= storage.packed_tid)

    def _is_gone(self, oid: Oid) -> NoReturn:
        if self._past is not None:
            raise ReadConflictError(
                f"object {format_oid(oid)} has no revision before {format_tid(self._past)} any "
                "more: what was there was packed away. Open a later moment", oid=oid,
            )
        raise ReadConflictError(
            f"object {format_oid(oid)} has no revision as old as this transaction's view any "
            "more. Abort and try the transaction again", oid=oid,
        )

    def loaded_record(self, obj: Any) -> bytes | None:
        """Return the record that *obj* was loaded from, or put away by a savepoint; None if it is
        gone."""
        oid = obj._p_oid
        if self._savepoints is not None and oid in self._savepoints:
            return self._savepoints.load(oid)[0]
        try:
            found = self._load_committed(oid, next_tid(obj._p_serial))
        except POSKeyError:
            return None
        return None if found is None else found[0]

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

    def _note_size(self, oid: Oid, obj: Any, record: bytes) -> None:
        """Tell the cache, whose size in bytes is limited, how large an object's record is."""
        self._set_size(oid, obj, len(record))

    def _set_size(self, oid: Oid, obj: Any, size: int) -> None:
        self._cache.update_object_size_estimation(oid, size)
        set_estimated_size(obj, size)

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
        """Make ghosts of all loaded, unchanged objects that were not used for *age* seconds; in the
        connections to other databases of its group too."""
        for connection in self._companions.values():
            connection.minimize(age)

    def minimize(self, age: float = 0) -> None:
        """Make ghosts in this connection alone."""
        self._reader.forget()
        if age:
            self.cacheFullSweep(age)
        else:
            with kept(self._reads):
                self._cache.minimize()

    def cacheFullSweep(self, age: float | None = None) -> None:
        """Make ghosts of the loaded, unchanged objects that were not used for *age* seconds
        (default: the database's `cache_deactivate_after`)."""
        age = self._db.options.cache_deactivate_after if age is None else age
        with kept(self._reads):
            for obj in self._epochs.idle_for(age):
                obj._p_deactivate()

    def postpone(self, action: Callable[[Any], None]) -> None:
        """Have *action* called with this connection when its next view begins; for other threads
        than the one that uses it, whose objects they must not touch."""
        self._postponed.append(action)

    def _do_postponed(self) -> None:
        while self._postponed:
            self._postponed.popleft()(self)

    def cacheGC(self) -> None:
        """Bring the cache down to its target size, least recently used objects first; those of the
        connections to other databases of its group too."""
        for connection in self._companions.values():
            with kept(connection._reads):
                connection._cache.incrgc()

    def cached_objects(self) -> list[Persistent]:
        """Return the loaded objects, least recently used first."""
        items = self._cache.lru_items()
        return [obj for _, obj in items if not self._epochs.is_marker(obj)]

    def set_cache_limits(self, size: int, size_bytes: int) -> None:
        """Change the target: *size* objects, *size_bytes* bytes of their records (0: no limit)."""
        self._cache.cache_size = size
        self._cache.cache_size_bytes = size_bytes
        is_new = size_bytes > 0 and not self._counts_bytes
        self._counts_bytes = size_bytes > 0
        if is_new:  # what is loaded was not counted
            for oid, obj in self._cache.lru_items():
                if not self._epochs.is_marker(obj):
                    self._set_size(oid, obj, self.record_size(oid))

    def record_size(self, oid: Oid) -> int:
        """Return the size of an object's record, in bytes; 0 if it has none yet."""
        try:
            found = self._load_committed(oid, self._before)
        except (KeyError, ConflictError):  # new and not committed yet; or packed away
            return 0
        return 0 if found is None else len(found[0])

    def estimated_bytes(self) -> int:
        """Return the size of the records the loaded objects came from: counted while the cache
        has a limit in bytes, else 0."""
        return int(self._cache.total_estimated_size)

    def ghost_count(self) -> int:
        """Return the number of ghosts in the cache."""
        return len(self._cache) - int(self._cache.cache_non_ghost_count)

    # -- errors

    def _closed(self) -> ConnectionStateError:
        return ConnectionStateError(
            "an object of a closed connection was used. Open a connection, and reach the object "
            "from its root()"
        )

    def _refuse_thread(self) -> NoReturn:
        raise self._concurrent_use()

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
