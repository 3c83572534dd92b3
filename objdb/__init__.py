"""objdb: a transactional object database. Objects that can be reached from a root object stay.

    import objdb

    class Visitor(objdb.Persistent):
        def __init__(self):
            self.visits = 0

    with objdb.DB("visitors.fs") as db:
        with db.transaction() as connection:
            root = connection.root()
            root.setdefault("Ann", Visitor()).visits += 1

To begin with: `DB`, `DB.transaction`, `DB.run`, `Persistent`, `PersistentMapping`,
`PersistentList`; `objdb.btrees` for what grows; `ConflictError` and `objdb.errors` for what can go
wrong; `FileStorage`, `SQLiteStorage` and others for where it is kept. At a shell: `objdb --help`.
The documentation's first page is docs/quickstart.md.
"""

# The house: its parts, in the order in which a call goes through them.
#
#   objdb/
#     database/     1  hands out connections
#                      db · options · opening, schemes (paths and URIs) · settings (objdb.toml)
#                      pool · historical (connections to the past) · aio (for coroutines)
#                      shared_commit (what commits together) · invalidations (who must forget what)
#                      conflicts · undoing · versions · packing · differences · caches, statistics
#     connection/   2  binds objects to one snapshot in one transaction after another
#                      connection · loadpath, loading · view · work (a transaction's changes)
#                      changes · savepoint · cache, access_epochs · isolation (what was read) · root
#                      retry · transactions · turns · partial_commit · mutations · subtransactions
#                      tasks, workers, loops, prefetch (for asyncio) · jar (what the parts ask for)
#     records/      3  object state to bytes and back; the only place that pickles
#                      format · reader, unpickling · writer, pickling · references · conflicts
#                      careful (records nobody trusts) · broken, globals (classes) · attributes
#                      comparing · differences · btrees · showing
#     storage/      4  bytes to revisions; knows oid, tid and bytes, never a class
#                      engine (the contract) · memory (the plainest one): read these first
#                      storage (the two-phase protocol over any engine) · commit (the slot, phases)
#                      committer, durability (group commit) · staging · oids
#                      holding, owning (interrupts)
#                      conflicts · versions · undo · history · copying · amending: over any engine
#                      row_packing, packing (what a pack keeps, how it gives way)
#                      rows, extension, iteration · bytesmap, pickled (engines over a dict of bytes)
#                      times · clock · foreign (what was written for ZODB)
#       file/          one file in ZODB's format: format · log · index · lookup · generation
#                      recovery, checksums, verify · opening · find_tid · scan · history · versions
#                      engine, storage · follower (of another process) · copying · open_file
#                      mark, rewrite, pack
#       sql/           statements · rows · sqlite_engine, sqlite · connections · opening · wal
#                      space · verify · backup
#       berkeley/      directory · environment, pages, package · reading · change · engine, storage
#                      backup
#       layers/        storages over storages: layer · transforming, compressed, zstd, encrypted
#                      before · readonly · logged · demo, overlay, chains
#       files       5  the seam to the operating system · libraries (files that a library locks)
#     interfaces/      the contracts: storages · databases
#     ids, errors, forks, version      what all of them know
#     check            the invariants of a whole database
#     conflictfree     types whose concurrent changes are merged
#     safe/            module safes: naming, opening · mapping, keys, gate · shelves (read once)
#                      table, and what keeps it: berkeley, sqlite, file
#     tools/           the command: main · terminal, words · looking · undoing · versions · copying
#                      packing · safes · uris · shell · __main__ beside it
#                      serving, with operating and settings
#     typed, btrees, notebook      what type checkers and IPython are told
#     testing/         for authors of storages and applications
#                      conformance, suite, plugin, helpers, script (and scripts/)
#                      versions, undoing, undolog, history
#                      packing, packing_model, copying, threads
#                      faults (a file system that fails), relay (a bad link) · interrupts
#                      events (simulated time, tasks, locks), network (simulated)
#                      schedule · histories, recording, observations, cycles, anomalies (isolation)
#     _accelerator.c, _unpickle.c      C twins of connection/loadpath and isolation,
#                      records/pickling and unpickling, storage/file/lookup and scan
#
# Folder order, reading order and flow order are the same. Imports go one way:
# database → connection → records; database → storage; connection, records and storage → ids,
# errors, interfaces, forks.

import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any

from objdb.errors import (
    BrokenObjectError,
    ConcurrentUseError,
    ConflictError,
    ConnectionStateError,
    CorruptedDataError,
    DeserializationError,
    FileFormatError,
    InvalidObjectReference,
    MissingPackageError,
    MultipleUndoErrors,
    NeedsMigrationError,
    NotEncryptedError,
    ObjdbError,
    PackError,
    PartialCommitError,
    PoolTimeoutError,
    POSError,
    POSKeyError,
    PythonTwoRecordError,
    ReadConflictError,
    ReadOnlyError,
    ReadOnlyHistoryError,
    RecordTooLargeError,
    SafeError,
    SerializationError,
    StorageClosedError,
    StorageError,
    StorageFailedError,
    StorageForkedError,
    StorageLockedError,
    StorageSpaceError,
    StorageTransactionError,
    StorageWriteError,
    TransientError,
    UndoError,
    UnpicklableError,
    UnregisteredMutationError,
    UnresolvableConflictError,
    Unsupported,
    UsageError,
    VersionCommitError,
    VersionError,
    VersionLockError,
    WrongKeyError,
)
from objdb.version import __version__

# All else is imported when it is asked for: whoever only wants the errors, or one storage, waits
# for no other.
if TYPE_CHECKING:
    from persistent.wref import WeakRef

    from objdb.connection.changes import ObjectState, object_state
    from objdb.connection.connection import Connection
    from objdb.connection.subtransactions import get_transaction
    from objdb.connection.tasks import TaskTransactionManager, task_manager
    from objdb.connection.work import LargeRecordWarning
    from objdb.database.db import DB
    from objdb.database.db import open_database as open
    from objdb.database.differences import diff
    from objdb.database.packing import AutoPack
    from objdb.database.pool import LeakedConnectionWarning
    from objdb.database.settings import open_databases
    from objdb.storage.berkeley.storage import BerkeleyStorage
    from objdb.storage.file.storage import FileStorage
    from objdb.storage.layers.before import BeforeStorage
    from objdb.storage.layers.compressed import CompressedStorage
    from objdb.storage.layers.demo import DemoStorage
    from objdb.storage.layers.encrypted import EncryptedStorage
    from objdb.storage.layers.logged import LoggedStorage
    from objdb.storage.layers.readonly import ReadOnlyStorage
    from objdb.storage.memory import MappingStorage
    from objdb.storage.packing import PackResult
    from objdb.storage.pickled import PickledMappingStorage
    from objdb.storage.sql.sqlite import SQLiteStorage
    from objdb.typed import Persistent, PersistentList, PersistentMapping

_ON_DEMAND = {
    "AutoPack": "objdb.database.packing",
    "BeforeStorage": "objdb.storage.layers.before",
    "BerkeleyStorage": "objdb.storage.berkeley.storage",
    "CompressedStorage": "objdb.storage.layers.compressed",
    "Connection": "objdb.connection.connection",
    "DB": "objdb.database.db",
    "DemoStorage": "objdb.storage.layers.demo",
    "EncryptedStorage": "objdb.storage.layers.encrypted",
    "FileStorage": "objdb.storage.file.storage",
    "LargeRecordWarning": "objdb.connection.work",
    "LeakedConnectionWarning": "objdb.database.pool",
    "LoggedStorage": "objdb.storage.layers.logged",
    "MappingStorage": "objdb.storage.memory",
    "ObjectState": "objdb.connection.changes",
    "PackResult": "objdb.storage.packing",
    "Persistent": "persistent",
    "PersistentList": "persistent.list",
    "PersistentMapping": "persistent.mapping",
    "PickledMappingStorage": "objdb.storage.pickled",
    "ReadOnlyStorage": "objdb.storage.layers.readonly",
    "SQLiteStorage": "objdb.storage.sql.sqlite",
    "TaskTransactionManager": "objdb.connection.tasks",
    "WeakRef": "persistent.wref",
    "diff": "objdb.database.differences",
    "get_transaction": "objdb.connection.subtransactions",
    "object_state": "objdb.connection.changes",
    "open": "objdb.database.db:open_database",
    "open_databases": "objdb.database.settings",
    "task_manager": "objdb.connection.tasks",
}
_PARTS = {
    "btrees", "check", "conflictfree", "connection", "database", "errors", "ids", "interfaces",
    "records", "safe", "storage", "typed",
}

if not TYPE_CHECKING:  # which would take every name for one of the package

    def __getattr__(name: str) -> Any:
        if name in _PARTS:
            return import_module(f"objdb.{name}")
        if name not in _ON_DEMAND:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        module, _, attribute = _ON_DEMAND[name].partition(":")
        found = globals()[name] = getattr(import_module(module), attribute or name)
        return found

    if "IPython" in sys.modules:
        import_module("objdb.notebook").install()


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


__all__ = [
    "DB",
    "AutoPack",
    "BeforeStorage",
    "BerkeleyStorage",
    "BrokenObjectError",
    "CompressedStorage",
    "ConcurrentUseError",
    "ConflictError",
    "Connection",
    "ConnectionStateError",
    "CorruptedDataError",
    "DemoStorage",
    "DeserializationError",
    "EncryptedStorage",
    "FileFormatError",
    "FileStorage",
    "InvalidObjectReference",
    "LargeRecordWarning",
    "LeakedConnectionWarning",
    "LoggedStorage",
    "MappingStorage",
    "MissingPackageError",
    "MultipleUndoErrors",
    "NeedsMigrationError",
    "NotEncryptedError",
    "POSError",
    "POSKeyError",
    "ObjdbError",
    "ObjectState",
    "PackError",
    "PackResult",
    "PartialCommitError",
    "Persistent",
    "PersistentList",
    "PersistentMapping",
    "PickledMappingStorage",
    "PoolTimeoutError",
    "PythonTwoRecordError",
    "ReadConflictError",
    "ReadOnlyError",
    "ReadOnlyHistoryError",
    "ReadOnlyStorage",
    "RecordTooLargeError",
    "SQLiteStorage",
    "SafeError",
    "SerializationError",
    "StorageClosedError",
    "StorageError",
    "StorageFailedError",
    "StorageForkedError",
    "StorageLockedError",
    "StorageSpaceError",
    "StorageTransactionError",
    "StorageWriteError",
    "TaskTransactionManager",
    "TransientError",
    "UndoError",
    "UnpicklableError",
    "UnregisteredMutationError",
    "UnresolvableConflictError",
    "Unsupported",
    "UsageError",
    "VersionCommitError",
    "VersionError",
    "VersionLockError",
    "WeakRef",
    "WrongKeyError",
    "__version__",
    "diff",
    "get_transaction",
    "object_state",
    "open",
    "open_databases",
    "task_manager",
]
