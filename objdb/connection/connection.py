"""A connection binds objects to one snapshot of a database in one transaction.

Load:    attribute of a ghost ─► setstate ─► storage.loadBefore(oid, snapshot) ─► reader
Commit:  attribute set ─► register ─► join ─► tpc_begin ─► commit: writer, store, until nothing
         new is found ─► tpc_vote ─► tpc_finish ─► the view moves on

    CLOSED ──► IDLE ──register──► JOINED ──tpc_begin──► COMMITTING ──tpc_finish──► IDLE
                 ▲                   └─────── abort, tpc_abort ──────┘
"""

from __future__ import annotations

import enum
import threading
import warnings
from collections.abc import Callable
from threading import get_ident
from typing import Any, NoReturn

import transaction
from persistent import Persistent, PickleCache
from transaction.interfaces import IDataManager, ISavepointDataManager, ISynchronizer
from zope.interface import implementer

from objdb.connection.aging import AccessEpochs
from objdb.connection.changes import ChangeSet
from objdb.connection.savepoint import Mark, Savepoint, SavepointStore
from objdb.errors import (
    ConcurrentUseError,
    ConflictError,
    ConnectionStateError,
    DeserializationError,
    InvalidObjectReference,
    ObjdbError,
    POSKeyError,
    ReadConflictError,
    ReadOnlyError,
)
from objdb.ids import NO_TID, ROOT_OID, Oid, Tid, format_oid, next_tid
from objdb.interfaces import IConnection
from objdb.records.broken import class_name
from objdb.records.reader import ObjectReader
from objdb.records.references import references
from objdb.records.writer import ObjectWriter

_STICKY = 2  # the _p_state of an object that C code is working on
LARGE_RECORD_BYTES = 16 * 1024 * 1024


class LargeRecordWarning(UserWarning):
    """An object's state is so large that loading and storing it whole is slow."""


class Phase(enum.Enum):
    """What a connection is doing."""

    CLOSED = "closed"
    IDLE = "open, nothing changed"
    JOINED = "open, with uncommitted changes"
    COMMITTING = "committing"


@implementer(IConnection, IDataManager, ISavepointDataManager, ISynchronizer)
class Connection:
    """Made and pooled by a `DB`; see `DB.open`.

    One thread at a time may use a connection and its objects; two at once are noticed at the
    next load or change and told by `ConcurrentUseError`.
    """

    def __init__(self, db: Any, cache_size: int, cache_size_bytes: int) -> None:
        self._db = db
        self._storage = db.storage
        self._load_before: Callable[[Oid, Tid], Any] = self._load_when_closed
        self._cache = PickleCache(self, cache_size, cache_size_bytes)
        self._counts_bytes = cache_size_bytes > 0
        self._reader = ObjectReader(self, self._cache)
        self._read_state = self._reader.state
        self._writer = ObjectWriter(self, db.storage.new_oid)
        self._epochs = AccessEpochs(self, self._cache)
        self._phase = Phase.CLOSED
        self._snapshot: Tid = NO_TID
        self._before: Tid = NO_TID
        self._user: int | None = None  # the thread that is loading just now
        self._owner: int | None = None  # the thread whose transactions we join, if bound to one
        self._reset_transaction()
        self.transaction_manager: Any = None
        # Connections to other databases of the group, in the same transactions, by name. They
        # stay with this one, since the objects in its cache refer to theirs.
        self._companions: dict[str, Connection] = {self._db.database_name: self}
        self.token = object()  # names this connection in the invalidation log
        self._refused: list[Any] = []  # objects that hold a change which was refused
        self.load_count = 0
        self.store_count = 0

    def _reset_transaction(self) -> None:
        self._changes = ChangeSet()
        self._savepoints: SavepointStore | None = None
        self._metadata: Any = None
        self._stored: dict[Oid, Persistent | None] = {}
        self._resolved: list[Oid] = []
        self._must_be_current: dict[Oid, Tid] = {}

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
        obj = self._cache.get(oid)
        if obj is None:
            obj = self._changes.added.get(oid)
        if obj is None:
            if not isinstance(oid, bytes) or len(oid) != 8:
                raise POSKeyError(f"{oid!r} is no oid: those are 8 bytes")
            record = self._load(oid)
            # Loading may have met the object by another way.
            obj = self._cache.get(oid) or self._reader.ghost(oid, record)
        return obj

    __getitem__ = get

    def add(self, obj: Any) -> None:
        """Give *obj* an oid now, and store it with this transaction, reachable or not.

        Does nothing for an object of this connection; `InvalidObjectReference` for one of
        another, TypeError for one that is not persistent.
        """
        self._require_usable()
        if not isinstance(obj, Persistent):
            raise TypeError(f"{type(obj).__name__} does not derive from objdb.Persistent")
        if obj._p_jar is self:
            return
        if obj._p_jar is not None:
            raise InvalidObjectReference(
                f"object {format_oid(obj._p_oid)} ({class_name(type(obj))}) belongs to another "
                "connection already", oid=obj._p_oid,
            )
        self._join()
        oid = obj._p_oid or self._storage.new_oid()
        obj._p_jar = self
        obj._p_oid = oid
        self._changes.add(obj)

    def db(self) -> Any:
        """Return the database."""
        return self._db

    def get_connection(self, name: str) -> Connection:
        """Return the connection to another database of the same group, in the same transaction.

        `UsageError` if the group has no database *name*.
        """
        self._require_usable()
        companion = self._companions.get(name)
        if companion is None:
            companion = self._db.connection_to(name, self.transaction_manager)
            companion._companions = self._companions
            self._companions[name] = companion
        return companion

    def isReadOnly(self) -> bool:
        """Whether objects cannot be changed through this connection."""
        return bool(self._storage.isReadOnly())

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
            _complete(error, oid, type(obj))
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

    # -- change

    def register(self, obj: Any) -> None:
        """Note that *obj* is being changed (called by the object, before its first change).

        `ReadOnlyError` on a read-only database, `ConcurrentUseError` from a thread that is not
        the connection's, `ConnectionStateError` after close.
        """
        if self._refused:
            self._drop_refused(obj)
        try:
            self._require_usable()
            self._join()
        except BaseException:
            self._refuse(obj)
            raise
        self._changes.register(obj)

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

    def _require_usable(self) -> None:
        if self._phase is Phase.CLOSED:
            raise self._closed()
        if self._owner is not None and self._owner != get_ident():
            raise self._concurrent_use()

    def readCurrent(self, obj: Any) -> None:
        """Let the commit of this transaction, if it writes anything, fail with
        `ReadConflictError` unless *obj* is then still as it is now. BTrees call this for the
        nodes whose shape a change relies on."""
        if obj._p_jar is not self:
            return
        obj._p_activate()
        if obj._p_serial != NO_TID:
            self._must_be_current[obj._p_oid] = obj._p_serial

    def _join(self) -> None:
        if self._phase is Phase.IDLE:
            if self.isReadOnly():
                raise ReadOnlyError(
                    f"{self._db.name} is open for reading only: its objects cannot be changed"
                )
            self.transaction_manager.get().join(self)
            self._phase = Phase.JOINED

    def _write_changes(self, store: Callable[[Oid, Tid, bytes, str, Any], object]) -> None:
        """Store every changed object, and every new one reachable from it."""
        serialize, new_objects = self._writer.serialize, self._writer.new_objects
        stored, created, cache = self._stored, self._changes.created, self._cache
        metadata, counts_bytes = self._metadata, self._counts_bytes
        for first in self._changes.pending():
            stack: list[Any] = [first]
            try:
                while stack:
                    obj = stack[-1]
                    oid, serial = obj._p_oid, obj._p_serial
                    # Else it is stored already, or dropped its changes.
                    if oid not in stored and (serial == NO_TID or obj._p_changed):
                        record = serialize(obj)
                        if len(record) > LARGE_RECORD_BYTES:
                            _warn_large(obj, record)
                        store(oid, serial, record, "", metadata)
                        stored[oid] = obj
                        if serial == NO_TID and oid not in created:
                            cache[oid] = obj
                            created[oid] = None
                        obj._p_changed = False
                        if counts_bytes:
                            self._note_size(oid, obj, len(record))
                    stack.pop()
                    if new_objects:
                        stack.extend(reversed(new_objects))
                        new_objects.clear()
            except BaseException:
                # What was met and not stored is taken back by the abort.
                for obj in stack + new_objects:
                    if obj._p_serial == NO_TID:
                        self._changes.add(obj)
                new_objects.clear()
                raise
        self._changes.clear_pending()

    def _note_size(self, oid: Oid, obj: Any, size: int) -> None:
        """Tell the cache, whose size in bytes is limited, how large an object's record is."""
        self._cache.update_object_size_estimation(oid, size)
        obj._p_estimated_size = size

    # -- commit: the connection as a resource of its transaction

    def sortKey(self) -> str:
        """Return where this connection stands in the order of a two-phase commit."""
        return f"{self._storage.sortKey()}:{id(self)}"

    def tpc_begin(self, txn: Any) -> None:
        """Begin to commit."""
        self._metadata = self._db.metadata_of(txn)
        self._storage.tpc_begin(self._metadata)
        self._phase = Phase.COMMITTING

    def commit(self, txn: Any) -> None:
        """Give all changed and new objects to the storage."""
        store, metadata = self._storage.store, self._metadata
        self._write_changes(store)
        if self._savepoints is not None:
            for oid in self._savepoints.oids():
                if oid not in self._stored:
                    record, base_tid = self._savepoints.load(oid)
                    store(oid, base_tid, record, "", metadata)
                    self._stored[oid] = None
        for oid, serial in self._must_be_current.items():
            if oid not in self._stored:
                self._storage.checkCurrentSerialInTransaction(oid, serial, metadata)
        self.store_count += len(self._stored)

    def tpc_vote(self, txn: Any) -> None:
        """Let the storage do everything that can fail. `ConflictError` when it is too late."""
        try:
            self._resolved = self._storage.tpc_vote(self._metadata) or []
        except ConflictError as error:
            if error.class_name is None and (obj := self._cache.get(error.oid)) is not None:
                _complete(error, error.oid, type(obj))
            self._db.count_conflict(error)
            raise

    def tpc_finish(self, txn: Any) -> None:
        """Commit; the objects now have the tid of this transaction as serial."""
        oids = list(self._stored)

        def committed(tid: Tid) -> None:
            self._db.invalidate(tid, oids, origin=self.token)

        tid = self._storage.tpc_finish(self._metadata, committed)
        cache = self._cache
        for oid, obj in self._stored.items():
            if obj is None:  # it went from the savepoint's file to the storage
                obj = cache.get(oid)
                if obj is None:
                    continue
            obj._p_serial = tid
        # What was merged is not what these objects hold.
        cache.invalidate(self._resolved)
        self._end_transaction()

    def tpc_abort(self, txn: Any) -> None:
        """Take everything back, in the storage and in memory."""
        if self._metadata is not None:
            self._storage.tpc_abort(self._metadata)
        self.abort(txn)

    def abort(self, txn: Any) -> None:
        """Drop all changes: changed objects become ghosts, new ones are unsaved again."""
        changes = self._changes
        for oid in changes.created_since(0):
            self._uncreate(oid)
        for oid, obj in changes.added.items():
            if obj._p_jar is self:
                self._uncreate(oid, obj)
        changed = set(changes.registered) | set(self._stored)
        if self._savepoints is not None:
            changed.update(self._savepoints.oids())
        self._cache.invalidate(list(changed))
        self._end_transaction()

    def _uncreate(self, oid: Oid, obj: Any = None) -> None:
        """Make a new object unsaved again. It keeps its state."""
        obj = obj if obj is not None else self._cache.get(oid)
        if obj is None:
            return
        if obj._p_changed is None:
            obj._p_activate()
        if obj._p_changed:
            obj._p_changed = False
        if self._cache.get(oid) is obj:
            del self._cache[oid]
        del obj._p_jar
        del obj._p_oid

    def _end_transaction(self) -> None:
        if self._savepoints is not None:
            self._savepoints.close()
        self._reset_transaction()
        if self._phase is not Phase.CLOSED:
            self._phase = Phase.IDLE

    # -- savepoints

    def savepoint(self) -> Savepoint:
        """Write all changes to a temporary file, where memory can let go of them, and return
        the way back to here (called by `transaction.savepoint`)."""
        if self._savepoints is None:
            self._savepoints = SavepointStore()
        self._write_changes(self._savepoints.store)
        self._stored = {}
        self._cache.incrgc()
        return Savepoint(self, self._savepoints.mark(len(self._changes.created)))

    def _roll_back(self, mark: Mark) -> None:
        changes, savepoints = self._changes, self._savepoints
        if savepoints is None:
            raise ConnectionStateError("the transaction of this savepoint has ended")
        for oid, obj in changes.added.items():
            if obj._p_jar is self:
                self._uncreate(oid, obj)
        for oid in changes.created_since(mark.created):
            self._uncreate(oid)
        changed = savepoints.roll_back(mark) | set(changes.registered)
        changes.clear_pending()
        self._cache.invalidate(list(changed))

    # -- the view

    def newTransaction(self, txn: Any) -> None:
        """Begin a new view (called when a transaction begins)."""
        self._begin_view()

    def beforeCompletion(self, txn: Any) -> None:
        """Nothing to do (called before a commit or abort)."""

    def afterCompletion(self, txn: Any) -> None:
        """Begin a new view, where transactions begin by themselves; let the cache shrink."""
        if not getattr(self.transaction_manager, "explicit", False):
            self._begin_view()
        self._cache.incrgc()

    def sync(self) -> None:
        """End the view of the data, dropping uncommitted changes, and begin a new one at the
        last transaction."""
        self._require_usable()
        self.transaction_manager.abort()
        self._begin_view()

    def _begin_view(self) -> None:
        """Move to the last transaction: objects changed since become ghosts."""
        if self._phase is not Phase.IDLE:
            return
        self._must_be_current.clear()
        if self._refused:
            self._drop_refused()
        last = self._db.current_tid()
        if last != self._snapshot:
            oids = self._db.invalidations.between(self._snapshot, last, self.token)
            if oids is None:
                self._cache.invalidate([oid for oid, _ in self._cache.lru_items()])
            elif oids:
                self._cache.invalidate(oids)
            self._snapshot = last
            self._before = next_tid(last)
        self._epochs.advance()

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
        """Return the size of an object's record, in bytes."""
        return len(self._load(oid))

    def estimated_bytes(self) -> int:
        """Return the size of the records the loaded objects came from: counted while the cache
        has a limit in bytes, else 0."""
        return int(self._cache.total_estimated_size)

    def ghost_count(self) -> int:
        """Return the number of ghosts in the cache."""
        return len(self._cache) - int(self._cache.ringlen())

    # -- opening and closing

    def open(self, transaction_manager: Any) -> None:
        """Join the transactions of *transaction_manager* (called by the database)."""
        for companion in self._companions.values():
            companion._open(transaction_manager or transaction.manager)

    def _open(self, transaction_manager: Any) -> None:
        self.transaction_manager = transaction_manager
        is_thread_bound = isinstance(
            self.transaction_manager, transaction.ThreadTransactionManager
        )
        self._owner = get_ident() if is_thread_bound else None
        self._phase = Phase.IDLE
        self._load_before = self._storage.loadBefore
        self._begin_view()
        self.transaction_manager.registerSynch(self)

    def close(self) -> None:
        """Give the connection back to its pool; its objects must not be used any more.

        `ConnectionStateError` with uncommitted changes. A second call does nothing.
        """
        if self._phase is Phase.CLOSED:
            return
        if self._phase is not Phase.IDLE:
            raise ConnectionStateError(
                f"{self!r} has uncommitted changes. Commit or abort the transaction first"
            )
        for companion in self._companions.values():
            companion._cache.incrgc()
            companion.abandon()
        self._db.return_connection(self)

    def abandon(self) -> None:
        """Make the connection unusable, whatever it was doing (called when it is closed, or its
        database is)."""
        if self._phase is not Phase.CLOSED:
            self.transaction_manager.unregisterSynch(self)
            self.transaction_manager = self._owner = None
            self._load_before = self._load_when_closed
            self._phase = Phase.CLOSED

    def __enter__(self) -> Connection:
        return self

    def __exit__(self, kind: Any, error: Any, traceback: Any) -> None:
        if kind is not None and self._phase is Phase.JOINED:
            self.transaction_manager.abort()
        self.close()

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

    def __repr__(self) -> str:
        return f"<Connection to {self._db.name}, {self._phase.value}>"


def _complete(error: Any, oid: Oid | None, cls: type) -> None:
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


def _warn_large(obj: Any, record: bytes) -> None:
    warnings.warn(
        f"the state of {class_name(type(obj))} {format_oid(obj._p_oid)} is "
        f"{len(record) / 2**20:.0f} MiB, loaded and stored whole at every change. Keep large "
        "data in many objects (a BTree), or in a file", LargeRecordWarning, stacklevel=2,
    )
