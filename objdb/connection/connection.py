"""A connection binds objects to one snapshot of a database in one transaction.

Its two stories have modules of their own; here is its life, from opening to closing, and how its
view of the data moves on.

Load:    see `loading`
Commit:  see `committing`

    CLOSED ──► IDLE ──register──► JOINED ──tpc_begin──► COMMITTING ──tpc_vote──► VOTING
                 ▲                   └─────── abort, tpc_abort ──────┴───────────────┤
                 └────────────────────────────── tpc_finish ─────────────────────────┘
"""

from __future__ import annotations

import time
from collections.abc import Callable
from threading import get_ident
from typing import Any

import transaction
from persistent import Persistent
from transaction.interfaces import (
    IDataManager,
    ISavepointDataManager,
    ISynchronizer,
    TransactionFailedError,
)
from zope.interface import implementer

from objdb.connection.committing import ObjectCommitter
from objdb.connection.isolation import ReadSet
from objdb.connection.loading import Phase
from objdb.errors import ConnectionStateError, InvalidObjectReference
from objdb.ids import MAX_TID, NO_TID, Oid, Tid, format_oid, next_tid
from objdb.interfaces import IConnection
from objdb.records.broken import class_name


@implementer(IConnection, IDataManager, ISavepointDataManager, ISynchronizer)
class Connection(ObjectCommitter):
    """Made and pooled by a `DB`; see `DB.open`.

    One thread at a time may use a connection and its objects; two at once are noticed at the
    next load or change and told by `ConcurrentUseError`.
    """

    def __init__(
        self, db: Any, cache_size: int, cache_size_bytes: int, version: str = ""
    ) -> None:
        super().__init__(db, cache_size, cache_size_bytes, version)
        self._generation = db.invalidations.generation
        self.pool: Any = None  # where it goes when it is closed, if it is kept
        self._when_closed: list[Callable[[], object]] = []
        self._debug_info: tuple[Any, ...] = ()
        self.opened: float | None = None  # since when it is open, in seconds since 1970

    def getVersion(self) -> str:
        """Return the name of the version that this connection works in, "" if in none."""
        return self._version

    def modifiedInVersion(self, oid: Oid) -> str:
        """Return the version that the object *oid* is changed in, "" if in none."""
        version: str = self._db.modifiedInVersion(oid)
        return version

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
        self._changes.asked.add(self.adopt(obj))
        self._changes.add(obj)

    def was_found(self, oid: Oid) -> bool:
        """Whether an object is new in this transaction, and belongs to this connection only because
        something referred to it."""
        return oid in self._changes.created and oid not in self._changes.asked

    def history(self, obj: Any, size: int = 1) -> list[dict[str, Any]]:
        """Return the last *size* committed revisions of *obj*, newest first, as dicts: see
        `DB.history`. None for an object that was never stored."""
        self._require_usable()
        is_new = obj._p_serial == NO_TID and obj._p_changed is not None
        if obj._p_oid is None or is_new:
            return []
        entries: list[dict[str, Any]] = self._db.history(obj._p_oid, size)
        return entries

    def get_connection(self, name: str) -> Connection:
        """Return the connection to another database of the same group, in the same transaction.

        `UsageError` if the group has no database *name*.
        """
        self._require_usable()
        companion: Connection | None = self._companions.get(name)
        if companion is None:
            companion = self._db.connection_to(
                name, self.transaction_manager, self.isolation, self._past, self._version
            )
            assert companion is not None
            companion._companions, companion._owner = self._companions, self._owner
            self._companions[name] = companion
            if self._phase is Phase.JOINED:
                self._join_companions()
        return companion

    # -- the view

    def newTransaction(self, txn: Any) -> None:
        """Begin a new view (called when a transaction begins)."""
        self._begin_view()

    def beforeCompletion(self, txn: Any) -> None:
        """Join, if objects were changed without notice: for `tpc_begin` to tell (called before a
        commit or abort)."""
        if self._phase is Phase.IDLE and self._has_mutated():
            try:
                self._enter_transaction()
            except TransactionFailedError:  # it can only be aborted
                return

    def afterCompletion(self, txn: Any) -> None:
        """Let the cache shrink; begin a new view, where transactions begin by themselves."""
        if self._db.transaction_ended is not None:
            self._db.transaction_ended()
        self._drop_mutated()
        self._cache.incrgc()  # before the view, in which what leaves the cache counts as read
        if not getattr(self.transaction_manager, "explicit", False):
            self._begin_view()

    def sync(self) -> None:
        """End the view of the data, dropping uncommitted changes, and begin a new one at the
        last transaction."""
        self._require_usable()
        self.transaction_manager.abort()
        self._begin_view()

    def _begin_view(self) -> None:
        """Move to the last transaction: objects changed since become ghosts."""
        if self._phase is not Phase.IDLE:
            self._leave_dead_transaction()
        if self._phase is not Phase.IDLE:
            return
        self._has_view = True
        self._must_be_current.clear()
        self._unreadable = None
        if self._refused:
            self._drop_refused()
        if self._past is None:
            self._move()
        self._epochs.advance()
        if self._postponed:
            self._do_postponed()
        if self._reads is not None:
            self._reads.begin()

    def _leave_dead_transaction(self) -> None:
        """Drop the changes of a transaction that has forgotten this connection: it was interrupted
        while it ended."""
        txn = self._transaction
        known = getattr(txn, "_resources", (self,))
        if txn is not None and all(each is not self for each in known):
            self.abort(txn)

    def _move(self) -> None:
        last = self._db.current_tid()
        log = self._db.invalidations
        if last != self._snapshot or log.generation != self._generation:
            oids = log.between(self._snapshot, last, self.token, self._version)
            if oids is None or log.generation != self._generation:
                self._generation = log.generation
                self._reader.forget()
                self._cache.invalidate([oid for oid, _ in self._cache.lru_items()])
            elif oids:
                self._cache.invalidate(oids)
            self._set_bound(last)
            self._snapshot = last  # the last to change: who is interrupted before comes here again

    def view_tid(self, last: Tid) -> Tid:
        """Return the tid that the view is at; *last* if the connection is closed: what it will
        open then is not older."""
        return last if self._phase is Phase.CLOSED else self._snapshot

    def _set_bound(self, snapshot: Tid) -> None:
        """Set what loads are bounded by in a view of *snapshot*."""
        if self._past is not None:
            # Nor what is committed later, should the clock go back.
            self._before = min(self._past, next_tid(snapshot))
        elif self._isolation == "read-current":
            self._before = MAX_TID
        else:
            self._before = next_tid(snapshot)

    # -- opening and closing

    def open(
        self, transaction_manager: Any, isolation: str = "snapshot", past: Tid | None = None
    ) -> None:
        """Join the transactions of *transaction_manager*; *past*: the tid before which the view
        stays (called by the database)."""
        for companion in self._companions.values():
            companion._open(transaction_manager or transaction.manager, isolation, past)

    @property
    def is_bound_to_thread(self) -> bool:
        """Whether only the thread that opened it can use it."""
        return self._owner is not None

    @property
    def is_this_threads(self) -> bool:
        """Whether only the calling thread can use it."""
        return self._owner == get_ident()

    @property
    def is_to_past(self) -> bool:
        """Whether it shows a moment of the past."""
        return self._past is not None

    @property
    def isolation(self) -> str:
        """What transactions see of one another: the name of the mode."""
        return self._isolation

    def _open(self, transaction_manager: Any, isolation: str, past: Tid | None) -> None:
        is_thread_bound = isinstance(transaction_manager, transaction.ThreadTransactionManager)
        # The thread's own manager: another thread may close this connection.
        manager = transaction_manager.manager if is_thread_bound else transaction_manager
        self.transaction_manager = manager
        self._owner = get_ident() if is_thread_bound else None
        self._phase = Phase.IDLE
        self.opened = time.time()
        self.committed_tid = None
        self._bind_storage()
        self._isolation = isolation if past is None else "snapshot"
        self._past = past
        if past is not None and self._snapshot == NO_TID:  # else it was here before
            self._snapshot = self._db.current_tid()
        self._set_bound(self._snapshot)
        self.__dict__.pop("setstate", None)
        if self._isolation == "read-current":
            # What objects call when they are touched, before the class's.
            self.__dict__["setstate"] = self._set_current_state
        self._loaded = None
        self._reads = ReadSet(self, self._cache) if self._isolation == "serializable" else None
        self._has_view = False
        self.transaction_manager.registerSynch(self)  # which begins one, in a transaction
        if not self._has_view:
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
        if self._phase is Phase.CLOSED:
            return
        self._leave_dead_transaction()
        if self._phase is not Phase.IDLE:
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
        if self._phase is not Phase.CLOSED:
            manager, self.transaction_manager, self._owner = self.transaction_manager, None, None
            if manager is not None:  # another thread may be closing it as well
                manager.unregisterSynch(self)
            if self._savepoints is not None:
                self._savepoints.close()
            self._load_before = self._load_when_closed
            self._phase = Phase.CLOSED
            self.opened, self._debug_info = None, ()
            self._when_closed.clear()

    def __enter__(self) -> Connection:
        return self

    def __exit__(self, kind: Any, error: Any, traceback: Any) -> None:
        if kind is not None and self._phase is Phase.JOINED:
            self.transaction_manager.abort()
        self.close()

    def __repr__(self) -> str:
        version = f", in the version {self._version!r}" if self._version else ""
        return f"<Connection to {self._db.name}{version}, {self._phase.value}>"
