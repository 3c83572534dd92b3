"""A connection binds objects to one snapshot of a database in one transaction after another.

    load      attribute of a ghost ─► LoadPath.setstate ─► storage ─► reader ─► object
    change    attribute set ─► register ─► Work, for the rest of the transaction: see `work`
    view      a transaction begins ─► objects changed since become ghosts ─► loads end before it

    CLOSED ──open──► OPEN, without work ──register──► with work: see its phases
       ▲ ╰───close────╯     ╰─────────── commit, abort ────╯

Where loads find a record (`_load_before`) depends on where the connection is:

    closed                      nowhere: ConnectionStateError
    open                        the storage, in the connection's version
    open, with a savepoint      the savepoint's file, and then the storage
    open, "read-current"        the storage, whatever is current (`setstate` checks it)
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Coroutine
from functools import partial
from threading import get_ident
from typing import Any, NoReturn

import transaction
from persistent import Persistent
from persistent.interfaces import IPersistentDataManager
from transaction.interfaces import ISynchronizer, TransactionFailedError
from zope.interface import implementer

from objdb.connection import loading
from objdb.connection.cache import ObjectCache
from objdb.connection.changes import RefusedChanges, adopt
from objdb.connection.loadpath import LoadPath
from objdb.connection.loops import running_loop
from objdb.connection.mutations import MutationDetector
from objdb.connection.prefetch import Prefetch, Prefetched
from objdb.connection.root import Root
from objdb.connection.view import View, set_current_state
from objdb.connection.work import Phase, Work, begin_work, require_changeable
from objdb.connection.workers import Job
from objdb.errors import (
    ConcurrentUseError,
    ConnectionStateError,
    InvalidObjectReference,
    POSKeyError,
    require_at_least,
)
from objdb.ids import NO_TID, Oid, Tid, format_oid
from objdb.interfaces import IConnection
from objdb.records.broken import class_name
from objdb.records.reader import ObjectReader
from objdb.records.writer import ObjectWriter


@implementer(IConnection, IPersistentDataManager, ISynchronizer)
class Connection(LoadPath):
    """Made and pooled by a `DB`; see `DB.open`.

    One thread at a time may use a connection and its objects; two at once are noticed at the
    next load or change and told by `ConcurrentUseError`.
    """

    def __init__(
        self, db: Any, cache_size: int, cache_size_bytes: int, version: str = ""
    ) -> None:
        self._db = db
        self._storage = db.storage
        self.version = version  # which this connection works in, always
        self._load_before = self._load_when_closed
        self.load_committed: Callable[[Oid, Tid], Any] = self._load_when_closed
        # Connections to the databases of the group, this one too, in the same transactions, by
        # name. They stay with this one, since the objects in its cache refer to theirs.
        self._companions: dict[str, Any] = {db.database_name: self}
        self._root = Root(self)
        self.cache = ObjectCache(self, cache_size, cache_size_bytes)
        self._cache = self.cache.objects
        self.reader = ObjectReader(self, self._cache)
        self._read_state = self.reader.state
        self.writer = ObjectWriter(self, db.storage.new_oid)
        self.mutations = MutationDetector(self, is_on=db.options.detect_mutations)
        self._refused = RefusedChanges()
        self._postponed: deque[Callable[[Any], None]] = deque()
        self.token = object()  # names this connection in the invalidation log
        self.pool: Any = None  # where it goes when it is closed, if it is kept
        self._when_closed: list[Callable[[], object]] = []
        self._debug_info: tuple[Any, ...] = ()
        self.is_open = False
        self.opened: float | None = None  # since when it is open, in seconds since 1970
        self.transaction_manager: Any = None
        self._owner: int | None = None  # the thread whose transactions we join, if bound to one
        self._before = NO_TID
        self.view = View(self)
        self.work: Work | None = None  # what was changed in this transaction
        self.store_count = 0
        self.committed_tid: Tid | None = None  # of the last transaction, since it was opened

    # -- reaching objects

    @property
    def root(self) -> Root:
        """The root object, a `PersistentMapping`, when it is called: `connection.root()`; what is
        reachable from it is stored. `connection.root.name` is `connection.root()["name"]`."""
        return self._root

    def get(self, oid: Oid) -> Any:
        """Return the object with this oid (8 bytes); `POSKeyError` if it does not exist."""
        if not self.is_open:
            raise _closed()
        if self._refused.waiting:
            self._refused.drop()
        if type(oid) is not bytes or len(oid) != 8:
            raise POSKeyError(f"{oid!r} is not an oid; an oid is 8 bytes")
        obj = self._cache.get(oid)
        if obj is None and self.work is not None:
            obj = self.work.changes.added.get(oid)
        if obj is None:
            record = loading.load_revision(self, oid)[0]
            # Loading may have met the object by another way.
            obj = self._cache.get(oid)
            if obj is None:
                obj = self.reader.ghost(oid, record)
        return obj

    __getitem__ = get

    def db(self) -> Any:
        """Return the database."""
        return self._db

    def getVersion(self) -> str:
        """Return the name of the version that this connection works in, "" if in none."""
        return self.version

    def modifiedInVersion(self, oid: Oid) -> str:
        """Return the version that the object *oid* is changed in, "" if in none."""
        return str(self._db.modifiedInVersion(oid))

    def history(self, obj: Any, size: int = 1) -> list[dict[str, Any]]:
        """Return the last *size* committed revisions of *obj*, newest first, as dicts: see
        `DB.history`. None for an object that was never stored."""
        self.require_usable()
        if obj._p_oid is None or (obj._p_serial == NO_TID and obj._p_changed is not None):
            return []
        entries: list[dict[str, Any]] = self._db.history(obj._p_oid, size)
        return entries

    def get_connection(self, name: str) -> Connection:
        """Return the connection to another database of the same group, in the same transaction;
        `UsageError` if the group has no database *name*."""
        self.require_usable()
        companion: Connection | None = self._companions.get(name)
        if companion is None:
            companion = self._db.connection_to(
                name, self.transaction_manager, self.view.isolation, self.view.past, self.version
            )
            assert companion is not None
            companion._companions, companion._owner = self._companions, self._owner
            self._companions[name] = companion
            if self.work is not None and self.work.phase is Phase.JOINED:
                self._join_companions()
        return companion

    # -- loading: what the load path asks for, and what others do with records

    def prefetch(self, *objects: Any, depth: int = 0) -> Coroutine[Any, Any, int]:
        """Load *objects*: in a coroutine, when the result is awaited, without keeping the event
        loop waiting; elsewhere now. Awaited, the result is how many had to be loaded.

        Each is a persistent object, an oid, or something to iterate over that yields them, such as
        `tree.values(first, last)`. *depth*: also load what these refer to, in so many steps. A
        BTree comes whole. All counts as read by the transaction, and stays loaded until it
        ends. While this runs, no other thread may use the connection. When cancelled, this ends
        with the object that is being loaded.

        Raises what loading raises; `UsageError` for objects of another connection.
        """
        if not self.is_open:
            raise _closed()
        require_at_least(0, depth=depth)
        prefetch = Prefetch(self, objects, depth)
        return self._prefetch(prefetch) if running_loop() else Prefetched(prefetch.run())

    async def _prefetch(self, prefetch: Prefetch) -> int:
        count: int = await self._db.workers.submit(Job(prefetch.run)).outcome(prefetch.stop)
        return count

    def _load_failed(self, obj: Any, error: BaseException) -> NoReturn:
        loading.load_failed(self, obj, error)

    def _is_gone(self, oid: Oid) -> NoReturn:
        loading.is_gone(self, oid)

    def _note_size(self, oid: Oid, obj: Any, record: bytes) -> None:
        self.cache.note_size(oid, obj, len(record))

    def _refuse_thread(self) -> NoReturn:
        raise ConcurrentUseError(
            f"thread {threading.current_thread().name!r} used {self!r}, which another thread is "
            "using. Open a connection per thread (db.open() in each)"
        )

    def _load_when_closed(self, oid: Oid, before: Tid) -> NoReturn:
        raise _closed()

    def oldstate(self, obj: Any, tid: Tid) -> Any:
        """Return the state *obj* had in the revision *tid*; `POSKeyError` if it does not exist."""
        return self.reader.state(type(obj), self._storage.loadSerial(obj._p_oid, tid))

    # -- changing

    def isReadOnly(self) -> bool:
        """Whether objects cannot be changed through this connection."""
        return self.view.past is not None or bool(self._storage.isReadOnly())

    def register(self, obj: Any) -> None:
        """Note that *obj* is being changed (called by it, before its first change).
        `ReadOnlyError`, `ConnectionStateError`, or `ConcurrentUseError` in another thread."""
        if self._refused.waiting:
            self._refused.drop(obj)
        try:
            self.require_usable()
            changes = self._join().changes
        except BaseException:
            self._refused.take_back(obj)
            raise
        changes.register(obj)

    def require_usable(self) -> None:
        """Raise `ConnectionStateError` if it is closed, `ConcurrentUseError` in another thread."""
        if not self.is_open:
            raise _closed()
        if self._owner is not None and self._owner != get_ident():
            self._refuse_thread()

    def add(self, obj: Any) -> None:
        """Give *obj* an oid now, and store it with this transaction, reachable or not.

        Does nothing for an object of this connection; `InvalidObjectReference` for one of
        another, TypeError for one that is not persistent.
        """
        self.require_usable()
        if not isinstance(obj, Persistent):
            raise TypeError(f"{type(obj).__name__} does not derive from objdb.Persistent")
        if obj._p_jar is self:
            return
        if obj._p_jar is not None:
            raise InvalidObjectReference(
                f"object {format_oid(obj._p_oid)} ({class_name(type(obj))}) belongs to another "
                "connection already", oid=obj._p_oid,
            )
        changes = self._join().changes
        changes.asked.add(adopt(self, changes, obj))
        changes.add(obj)

    def adopt(self, obj: Any) -> Oid:
        """Make *obj*, of no connection, one of this one; return its oid (called by the writer)."""
        return adopt(self, self._join().changes, obj)

    def was_found(self, oid: Oid) -> bool:
        """Whether an object is new in this transaction, and belongs to this connection only because
        something referred to it."""
        changes = None if self.work is None else self.work.changes
        return changes is not None and oid in changes.created and oid not in changes.asked

    def readCurrent(self, obj: Any) -> None:
        """Let the commit of this transaction, if it writes anything, fail with
        `ReadConflictError` unless *obj* is then still as it is now. BTrees call this for the
        nodes whose shape a change relies on."""
        if obj._p_jar is not self:
            return
        obj._p_activate()
        if obj._p_serial != NO_TID:
            self.view.must_be_current[obj._p_oid] = obj._p_serial

    # -- the work of a transaction

    def _join(self) -> Work:
        """Return the work of this transaction; begin it with the first change."""
        work = self.work
        if work is None:
            require_changeable(self)
            work = begin_work(self)
            self._join_companions()
        elif work.phase is Phase.VOTING:
            raise ConnectionStateError(
                f"{self!r}: its objects cannot be changed during a vote. Code that a commit "
                "calls, such as _p_resolveConflict, gets states and returns one"
            )
        return work

    def _join_companions(self) -> None:
        """Let what is read from other databases be checked with what is written to this one."""
        if self.view.reads is not None:
            for companion in self._companions.values():
                if not companion.isReadOnly():
                    companion._join()

    # -- the view

    def newTransaction(self, txn: Any) -> None:
        """Begin a new view (called when a transaction begins)."""
        self._begin_view()

    def beforeCompletion(self, txn: Any) -> None:
        """Join if objects were changed without notice, for `tpc_begin` to tell."""
        if self.work is None and self.mutations.find():
            try:
                begin_work(self)
            except TransactionFailedError:  # it can only be aborted
                return

    def afterCompletion(self, txn: Any) -> None:
        """Let the cache shrink; begin a new view, unless the manager is explicit."""
        if self._db.transaction_ended is not None:
            self._db.transaction_ended()
        self.mutations.drop()
        self._cache.incrgc()  # before the view, in which what leaves the cache counts as read
        if not getattr(self.transaction_manager, "explicit", False):
            self._begin_view()

    def sync(self) -> None:
        """Abort the transaction, and begin a view with all that anybody was told is committed."""
        self.require_usable()
        self.transaction_manager.abort()
        self._begin_view(asks=True)

    def _begin_view(self, *, asks: bool = False) -> None:
        """Move to the last transaction: objects changed since become ghosts."""
        if self.work is not None:
            self.work.abort_if_forgotten()
        if self.work is not None or not self.is_open:
            return
        if self._refused.waiting:
            self._refused.drop()
        self.view.begin(asks=asks)
        self.cache.epochs.advance()
        while self._postponed:
            self._postponed.popleft()(self)
        if self.view.reads is not None:
            self.view.reads.begin()

    def view_tid(self, last: Tid) -> Tid:
        """Return the tid that the view is at; *last* if the connection is closed: what it will
        open then is not older."""
        return self.view.snapshot if self.is_open else last

    # -- the cache

    def cacheMinimize(self, age: float = 0) -> None:
        """Make ghosts of loaded, unchanged objects not used for *age* seconds, in all its group."""
        for connection in self._companions.values():
            connection.cache.minimize(age)

    def cacheFullSweep(self, age: float | None = None) -> None:
        """Make ghosts of the loaded, unchanged objects that were not used for *age* seconds
        (default: the database's `cache_deactivate_after`)."""
        self.cache.sweep(self._db.options.cache_deactivate_after if age is None else age)

    def cacheGC(self) -> None:
        """Bring the caches of its group down to their targets, least recently used first."""
        for connection in self._companions.values():
            connection.cache.shrink()

    def cached_objects(self) -> list[Persistent]:
        """Return the loaded objects, least recently used first."""
        return self.cache.loaded()

    def postpone(self, action: Callable[[Any], None]) -> None:
        """Have *action* called with this connection when its next view begins; for other threads
        than the one that uses it, whose objects they must not touch."""
        self._postponed.append(action)

    # -- opening and closing

    def open(
        self, transaction_manager: Any, isolation: str = "snapshot", past: Tid | None = None
    ) -> None:
        """Join the transactions of *transaction_manager*; *past*: the tid before which the view
        stays (called by the database)."""
        for companion in self._companions.values():
            companion._open(transaction_manager or transaction.manager, isolation, past)

    @property
    def isolation(self) -> str:
        """The name of the isolation mode."""
        return self.view.isolation

    @property
    def is_bound_to_thread(self) -> bool:
        """Whether only the thread that opened it can use it."""
        return self._owner is not None

    @property
    def is_this_threads(self) -> bool:
        """Whether only the calling thread can use it."""
        return self._owner == get_ident()

    def _open(self, transaction_manager: Any, isolation: str, past: Tid | None) -> None:
        is_thread_bound = isinstance(transaction_manager, transaction.ThreadTransactionManager)
        # The thread's own manager: another thread may close this connection.
        manager = transaction_manager.manager if is_thread_bound else transaction_manager
        self.transaction_manager = manager
        self._owner = get_ident() if is_thread_bound else None
        self.is_open = True
        self.opened = time.time()
        self.committed_tid = None
        load, version = self._storage.loadBefore, self.version
        self.load_committed = (lambda oid, before: load(oid, before, version)) if version else load
        self._load_before = self.load_committed
        self.view.open(isolation, past)
        self.__dict__.pop("setstate", None)
        if self.view.isolation == "read-current":
            # Objects call this when they are touched, before the class's.
            self.__dict__["setstate"] = partial(set_current_state, self)
        self.transaction_manager.registerSynch(self)  # which begins one, in a transaction
        if not self.view.has_begun:
            self._begin_view()

    def onCloseCallback(self, function: Callable[[], object]) -> None:
        """Have *function* called when the connection is closed, once."""
        self._when_closed.append(function)

    def setDebugInfo(self, *info: Any) -> None:
        """Keep *info* with the connection, for `getDebugInfo`, until it is closed."""
        self._debug_info = info

    def getDebugInfo(self) -> tuple[Any, ...]:
        """Return what `setDebugInfo` was given; empty if nothing."""
        return self._debug_info

    def close(self) -> None:
        """Give the connection back to its pool; its objects must not be used any more.

        `ConnectionStateError` with uncommitted changes. A second call does nothing.
        """
        if not self.is_open:
            return
        if self.work is not None:
            self.work.abort_if_forgotten()
        if self.work is not None:
            raise ConnectionStateError(
                f"{self!r} has uncommitted changes. Commit or abort the transaction first"
            )
        holder = self._db.holder_of(self)
        try:
            while self._when_closed:
                self._when_closed.pop()()
            self._give_back()
        except BaseException:
            if self._db.holder_of(self) is holder:  # else it is given back already
                self._give_back()
            raise

    def _give_back(self) -> None:
        for companion in self._companions.values():
            companion._cache.incrgc()
            companion.abandon()
        self._db.return_connection(self)

    def abandon(self) -> None:
        """Make the connection unusable, whatever it was doing (called when it is closed, or its
        database is)."""
        if self.is_open:
            manager, self.transaction_manager, self._owner = self.transaction_manager, None, None
            try:
                manager.unregisterSynch(self)
            except (KeyError, AttributeError):
                pass  # another thread is closing it as well, or its opening was interrupted
            if self.work is not None:
                self.work.close_savepoints()
            self._load_before = self._load_when_closed
            self.is_open = False
            self.opened, self._debug_info = None, ()
            self._when_closed.clear()

    def __enter__(self) -> Connection:
        return self

    def __exit__(self, kind: Any, error: Any, traceback: Any) -> None:
        work = self.work
        if kind is not None and work is not None and work.phase is Phase.JOINED:
            self.transaction_manager.abort()
        self.close()

    def __repr__(self) -> str:
        version = f", in the version {self.version!r}" if self.version else ""
        changes = "nothing changed" if self.work is None else self.work.phase.value
        state = f"open, {changes}" if self.is_open else "closed"
        return f"<Connection to {self._db.name}{version}, {state}>"


def _closed() -> ConnectionStateError:
    return ConnectionStateError(
        "an object of a closed connection was used. Open a connection, and reach the object "
        "from its root()"
    )
