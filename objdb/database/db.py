"""The database: one storage, a pool of connections, and the log of what changed."""

from __future__ import annotations

import os
import pickle
import threading
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, TypeVar
from weakref import WeakSet

from persistent.mapping import PersistentMapping
from zope.interface import implementer

from objdb.connection.connection import Connection
from objdb.connection.isolation import Isolation, require_isolation
from objdb.connection.retry import Attempts, Block, require_done
from objdb.connection.tasks import bound as bound_to_task
from objdb.connection.tasks import later_of
from objdb.connection.transactions import OneTransaction
from objdb.connection.turns import Turns
from objdb.connection.workers import MOST_THREADS, MOST_TOGETHER, Workers
from objdb.database.aio import AsyncDatabase
from objdb.database.caches import DatabaseCaches
from objdb.database.conflicts import ConflictLog, LookUp
from objdb.database.historical import HistoricalPool
from objdb.database.invalidations import InvalidationLog
from objdb.database.opening import open_storage
from objdb.database.options import Options, described
from objdb.database.packing import AutoPack, DatabasePack, PackThread, open_among
from objdb.database.pool import ConnectionPool
from objdb.database.shared_commit import StorageCommit
from objdb.database.undoing import DatabaseUndo
from objdb.database.versions import DatabaseVersions, VersionPools
from objdb.errors import (
    ConflictError,
    POSKeyError,
    StorageClosedError,
    StorageForkedError,
    UsageError,
)
from objdb.forks import Stage, at_fork
from objdb.ids import MAX_TID, NO_TID, ROOT_OID, Oid, Tid
from objdb.interfaces import IDatabase, IDatabaseForConnection, IStorageShared
from objdb.records.conflicts import resolve
from objdb.records.format import PROTOCOL, class_prefix
from objdb.records.references import references
from objdb.storage.commit import TransactionMetaData
from objdb.storage.foreign import give_resolver, hooks_of
from objdb.storage.owning import Closing, drops_what_it_opened
from objdb.storage.times import bound, warn_if_ahead
from objdb.storage.versions import require_name

Result = TypeVar("Result")

_after_fork = threading.Lock()  # held while a child sets up a database
at_fork(
    Stage.DATABASES,
    in_child=_after_fork._at_fork_reinit,  # type: ignore[attr-defined]
)


@implementer(IDatabase, IDatabaseForConnection)
class DB(AsyncDatabase, DatabaseCaches, DatabaseUndo, DatabaseVersions, DatabasePack):
    """A database of objects.

    *storage*: a storage, a path, a URI, None (in memory), or a callable that makes a storage.
    *databases*: a dict shared by the databases that can refer to one another. The other arguments
    are the options below; a URI can have them too, and wins.

    After `os.fork()`, a database made with a callable, or whose storage several processes can
    share, opens a storage of its own in the child, when it is first used there; any other raises
    `StorageForkedError`.

    Raises what opening the storage raises. Closing the database closes the storage.
    """

    storage: Any = None
    database_name = ""
    _pack_thread: PackThread | None = None

    @drops_what_it_opened
    def __init__(
        self, storage: Any = None, pool_size: int = Options.pool_size,
        cache_size: int = Options.cache_size, cache_size_bytes: int = Options.cache_size_bytes,
        cache_deactivate_after: float = Options.cache_deactivate_after, *,
        isolation: Isolation = "snapshot", pool_wait: float = Options.pool_wait,
        databases: dict[str, Any] | None = None, database_name: str = Options.database_name,
        record_stacks: bool = Options.record_stacks,
        detect_mutations: bool = Options.detect_mutations,
        historical_pool_size: int = Options.historical_pool_size,
        historical_timeout: float = Options.historical_timeout,
        historical_cache_size: int = Options.historical_cache_size,
        version_pool_size: int = Options.version_pool_size,
        version_cache_size: int = Options.version_cache_size,
        autopack: AutoPack | dict[str, Any] | None = Options.autopack,
        read_only: bool = Options.read_only,
    ) -> None:
        arguments = locals()
        self.databases = {} if databases is None else databases
        self._factory = partial(_opened, storage, read_only) if callable(storage) else None
        self.storage, given = open_storage(storage, read_only=read_only)
        self.name: str = self.storage.getName()
        self._is_closed = False
        self._closing = Closing()
        self.options = Options.chosen(arguments, given)
        self.database_name = self.options.database_name
        if self.database_name in open_among(self.databases):
            raise UsageError(
                f"there is a database {self.database_name!r} in this group already. Give each "
                "a database_name of its own"
            )
        self.isolation = self.options.isolation
        self._begin()
        self.databases[self.database_name] = self

    def drop_opened(self) -> None:
        """Close what the constructor has opened: the storage (see `storage.owning`)."""
        if self._pack_thread is not None:
            self._pack_thread.close()
        databases = self.__dict__.get("databases", {})
        if databases.get(self.database_name) is self:
            del databases[self.database_name]
        if self.storage is not None:
            self.storage.close()

    def _begin(self) -> None:
        """Set up what belongs to one storage, and to one process."""
        self._pid = os.getpid()
        self.conflicts = ConflictLog()
        self.turns = Turns()
        self._commits = 0
        self._all_connections: WeakSet[Connection] = WeakSet()
        self._companions: WeakSet[Connection] = WeakSet()
        self._connections_lock = threading.Lock()  # of adding to these, and going through them
        self._for_transaction: dict[tuple[int, str, Tid | None], Connection] = {}
        # Threads that wait in place of coroutines: for commits together, and for the rest.
        self.committer = Workers(f"{self.name} commit", 1, MOST_TOGETHER)
        self.workers = Workers(self.name, MOST_THREADS)
        options = self.options
        self._pool = ConnectionPool(options.pool_size, options.pool_wait, self._make_connection)
        self._pool.record_stacks = options.record_stacks
        self._past = HistoricalPool(
            options.historical_pool_size, options.historical_timeout,
            self._make_historical_connection,
        )
        self._version_pools = VersionPools(self._make_version_pool, self.versions)
        self.invalidations = InvalidationLog(self.storage.lastTransaction())
        warn_if_ahead(self.name, self.storage.lastTransaction())
        self.storage.registerDB(self)
        give_resolver(self.storage, self.resolve)
        self._require_root()
        if options.autopack is not None:
            self._pack_thread = PackThread(self, options.autopack)
            self._pack_thread.start()
        self._poll, self.transaction_ended = hooks_of(self.storage)

    def _require_usable(self) -> None:
        if self._is_closed:
            raise StorageClosedError(f"the database {self.name} is closed")
        if self._pid != os.getpid():
            self._begin_in_child()

    def _begin_in_child(self) -> None:
        with _after_fork:
            if self._pid == os.getpid():
                return
            make = self._factory
            if make is None and IStorageShared.providedBy(self.storage):
                make = self.storage.again
            if make is None:
                raise StorageForkedError(
                    f"the database {self.name} was opened by process {self._pid}, of which this "
                    "one is a fork. Open it here, or give DB a function that makes the storage: "
                    "then each process gets its own"
                )
            self.storage = make()
            self._begin()

    def _require_root(self) -> None:
        """Make the root object if the storage is new."""
        if self._has_root():
            return
        if len(self.storage):
            if self._has_root():  # another process has just made it
                return
            raise POSKeyError(
                f"{self.name} has {len(self.storage)} objects, but no root object (oid 0). It "
                "is damaged, or was made by something else: check it before using it"
            )
        state = PersistentMapping().__getstate__()
        record = class_prefix(PersistentMapping) + pickle.dumps(state, PROTOCOL)
        metadata = TransactionMetaData(description="initial database creation")
        try:
            self.storage.tpc_begin(metadata)
            self.storage.store(ROOT_OID, NO_TID, record, "", metadata)
            self.storage.tpc_vote(metadata)
            self.storage.tpc_finish(metadata)
        except BaseException as error:
            self.storage.tpc_abort(metadata)
            # Another process may have made one at this moment.
            if not isinstance(error, ConflictError) or not self._has_root():
                raise

    def _has_root(self) -> bool:
        if IStorageShared.providedBy(self.storage):
            self.storage.poll()
        try:
            return self.storage.loadBefore(ROOT_OID, MAX_TID) is not None
        except KeyError:  # POSKeyError, ours or that of a storage written for ZODB
            return False

    # -- connections

    def open(
        self, version: Any = "", transaction: Any = None, temporary: bool = False, *,
        transaction_manager: Any = None, isolation: Isolation | None = None, at: Any = None,
        before: Any = None,
    ) -> Connection:
        """Return a connection that takes part in the transactions of *transaction_manager*
        (default: those of the calling thread).

        Waits while all connections are out, at most `pool_wait` seconds; then
        `PoolTimeoutError`. *temporary*: make one beside the pool, which is dropped when closed.
        *transaction*: return the same connection for the same transaction, closed when that
        ends. *isolation*: another mode than the database's. *at*, *before*: a connection for
        reading what was there at a moment of the past, or just before it (a tid, seconds since
        1970, a datetime with a time zone, or one in ISO form); those are not counted with the
        others. *version*: the name of the version to work in, which has a pool of its own;
        `VersionError` for an invalid name, `Unsupported` where there are no versions. A first
        argument that is not a string is taken for a transaction manager.
        """
        if not isinstance(version, str):
            version, transaction_manager = "", version
        self._require_usable()
        if version:
            self._require_versions()
            require_name(version)
        mode = self.isolation if isolation is None else require_isolation(isolation)
        is_past = at is not None or before is not None
        past = bound(at, before, self.storage.lastTransaction()) if is_past else None
        if transaction is not None:
            return self._open_for(transaction, version, mode, past)
        connection = self._take(temporary, version, past)
        try:
            connection.open(bound_to_task(transaction_manager), mode, past)
        except BaseException:
            self.return_connection(connection)
            raise
        return connection

    def _take(self, temporary: bool, version: str, past: Tid | None) -> Connection:
        if past is not None:
            return self._past.take(past, version)
        if temporary:
            return self._make_connection(version)
        return self._pool_of(version).take()

    def _pool_of(self, version: str) -> ConnectionPool:
        return self._version_pools.of(version) if version else self._pool

    def _make_connection(self, version: str = "") -> Connection:
        options = self.options
        size = options.version_cache_size if version else options.cache_size
        connection = Connection(self, size, options.cache_size_bytes, version)
        with self._connections_lock:
            self._all_connections.add(connection)
        return connection

    def _make_historical_connection(self, version: str) -> Connection:
        options = self.options
        return Connection(self, options.historical_cache_size, options.cache_size_bytes, version)

    def _make_version_pool(self, version: str) -> ConnectionPool:
        make = partial(self._make_connection, version)
        pool = ConnectionPool(
            self.options.version_pool_size, self._pool.wait, make, "version_pool_size"
        )
        pool.record_stacks = self._pool.record_stacks
        return pool

    def _open_for(self, txn: Any, version: str, isolation: Any, past: Tid | None) -> Connection:
        key = id(txn), version, past
        connection = self._for_transaction.get(key)
        if connection is None:
            manager = OneTransaction(txn)
            connection = self.open(
                version, transaction_manager=manager, isolation=isolation, before=past
            )
            self._for_transaction[key] = connection
            txn.addBeforeCommitHook(connection.beforeCompletion, (txn,))
            txn.addAfterCommitHook(self._transaction_ended, (key,))
            txn.addAfterAbortHook(self._transaction_ended, (True, key))
        return connection

    def _transaction_ended(self, is_over: bool, key: tuple[int, str, Tid | None]) -> None:
        if is_over:  # a commit that failed is followed by an abort
            connection = self._for_transaction.pop(key, None)
            if connection is not None:
                connection.close()

    def holder_of(self, connection: Connection) -> Any:
        """Return the holder of *connection* in its pool; None if it is free, or has no pool."""
        return None if connection.pool is None else connection.pool.holder_of(connection)

    def return_connection(self, connection: Connection) -> None:
        """Take back a connection (called when it is closed)."""
        if connection.pool is not None:
            connection.pool.give_back(connection)

    def connection_to(
        self, name: str, transaction_manager: Any, isolation: str, past: Tid | None, version: str
    ) -> Connection:
        """Return a connection to the database *name* of the same group, in the same version and
        at the same moment of the past; `UsageError` if there is no such database."""
        group = open_among(self.databases)
        if name not in group:
            raise UsageError(
                f"an object refers to the database {name!r}, which is not open here; there are "
                f"{', '.join(map(repr, group))}. Give all of them one `databases` dict"
            )
        other = group[name]
        connection: Connection = other.open(
            version, temporary=True, transaction_manager=transaction_manager,
            isolation=isolation, before=past,
        )
        with other._connections_lock:
            other._companions.add(connection)
        return connection

    # -- transactions

    def transaction(self, note: str | None = None, version: str = "") -> Block:
        """Give a connection in a transaction of its own: committed at the end of the block,
        aborted when the block raises. For `with`, and for `async with`.

        *note* describes the transaction in the history; *version* is the one to work in.
        """
        return Block(self, note, version)

    def attempts(
        self, tries: int = 3, note: str | None = None, version: str = ""
    ) -> Attempts:
        """Yield up to *tries* attempts at a transaction, until one succeeds.

        `for attempt in db.attempts(3): with attempt as connection: ...` runs the block again
        after a `ConflictError`. The last attempt's error is raised. `async for` and `async with`
        do the same.
        """
        return Attempts(self, tries, note, version)

    def run(
        self, function: Callable[[Connection], Result], tries: int = 3, note: str | None = None,
        version: str = "",
    ) -> Result:
        """Call `function(connection)` in a transaction, again after a conflict, up to *tries*
        times; return what it returned when its transaction was committed. The last try takes its
        turn: other attempts wait with their commits.

        `UsageError` if what it returns is a coroutine or a generator, which has done nothing yet.
        """
        for attempt in self.attempts(tries, note, version):
            with attempt as connection:
                result = function(connection)
                require_done(result, function)
        return result

    def metadata_of(self, txn: Any) -> TransactionMetaData:
        """Return the metadata of the transaction *txn* for the storage."""
        metadata = TransactionMetaData(txn.user, txn.description, dict(txn.extension))
        _ = metadata.extension_bytes  # which raises if it cannot be stored
        metadata.later = later_of(txn)
        return metadata

    def storage_commit(self, txn: Any) -> StorageCommit:
        """Return the part of *txn* that this database's storage has, the same for all who ask."""
        if len(txn._resources) == 1:  # no other participant will ask
            return StorageCommit(self, self.metadata_of(txn), txn)
        try:
            commit: StorageCommit = txn.data(self)
        except KeyError:
            commit = StorageCommit(self, self.metadata_of(txn), txn)
            txn.set_data(self, commit)
        return commit

    # -- what storages and connections call

    resolve = staticmethod(resolve)

    def is_equal(self, oid: Oid, one: bytes | None, other: bytes | None) -> bool:
        """Whether two records of an object are the same (layers, which encode them, ask)."""
        return one == other

    def references(self, record: bytes, oids: list[Oid] | None = None) -> list[Oid]:
        """Return the oids that *record* refers to, added to *oids* if that is given."""
        found = references(record)
        if oids is None:
            return found
        oids.extend(found)
        return oids

    def transform_record_data(self, record: bytes) -> bytes:
        """Return *record* as the storage keeps it: as it is (storages written for ZODB ask)."""
        return record

    untransform_record_data = transform_record_data

    def invalidateCache(self) -> None:
        """Let every connection drop its cache when its next transaction begins."""
        self.invalidations.forget(self.storage.lastTransaction())

    def current_tid(self) -> Tid:
        """Return the tid that a new view is at."""
        if self._poll is not None:
            self._poll()
        tid: Tid = self.storage.lastTransaction()
        return tid

    def lastTransaction(self) -> Tid:
        """Return the tid of the last transaction, zeros if there is none."""
        self._require_usable()
        tid: Tid = self.storage.lastTransaction()
        return tid

    def oldest_view(self) -> Tid:
        """Return the tid of the oldest view that a connection has, historical ones aside:
        revisions that were replaced up to then are not visible any more."""
        last: Tid = self.storage.lastTransaction()
        with self._connections_lock:
            views = [connection.view_tid(last) for connection in self._all_connections]
        return min([last, *views])

    def invalidate(
        self, tid: Tid, oids: Iterable[Oid], version: str = "", origin: Any = None
    ) -> None:
        """Note that the transaction *tid* changed *oids*, in *version* (called by storages, and by
        the connection that is *origin*)."""
        self.note_commit(tid, oids, (version,) if version else (), origin)

    def note_commit(
        self, tid: Tid, oids: Iterable[Oid], versions: tuple[str, ...] = (), origin: Any = None
    ) -> None:
        """Note that the transaction *tid* changed *oids*, seen in *versions* only if any are
        given, through the connection *origin*."""
        self.invalidations.add(tid, oids, origin, versions)
        self._commits += 1

    def count_conflict(self, error: ConflictError) -> None:
        """Note a conflict, for `conflicts`, and let the error look up more."""
        self.conflicts.add(error)
        error._look_up = LookUp(self.storage)

    # -- the end

    def close(self) -> None:
        """Close the database and its storage; connections still open become unusable, their
        uncommitted changes are dropped. A second call does nothing. It stays in its group's
        `databases`, which may be iterated over to close all; its name there is free again."""
        self._is_closed = True
        if self._pid == os.getpid():
            self._closing.run(self._close)
        else:  # a fork has neither the threads nor the locks' holders
            self.storage.close()

    def _close(self) -> None:
        if self._pack_thread is not None:
            self._pack_thread.close()
        connections = self._pool.close() + self._past.close()
        connections += [c for pool in self._version_pools.all() for c in pool.close()]
        with self._connections_lock:  # and those beside the pools
            connections += self._all_connections
        self.committer.close()
        self.workers.close()
        for connection in connections:
            connection.abandon()
        self._for_transaction.clear()
        self.storage.close()

    def __enter__(self) -> DB:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<DB {self.name}{', closed' if self._is_closed else ''}>"


DB.__doc__ = f"{DB.__doc__}\n    Options:\n\n{described('    ')}\n    "

def _opened(storage: Callable[[], Any], read_only: bool) -> Any:
    return open_storage(storage, read_only=read_only)[0]


def open_database(where: Any = None, **options: Any) -> DB:
    """Open the database at a path or URI; see `DB` for the options and errors."""
    return DB(where, **options)


