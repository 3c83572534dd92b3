"""The contracts between storages, databases and connections: see `storages` and `databases`."""

from objdb.interfaces.databases import (
    IConnection,
    IDatabase,
    IDatabaseCaches,
    IDatabaseForConnection,
    IDatabaseForStorage,
)
from objdb.interfaces.storages import (
    IBroken,
    IStorage,
    IStorageCurrentRecordIteration,
    IStorageHistory,
    IStorageIteration,
    IStoragePackable,
    IStoragePacked,
    IStoragePolling,
    IStorageReadChecks,
    IStorageRestoreable,
    IStorageSelfCheck,
    IStorageShared,
    IStorageSync,
    IStorageUndoable,
    IStorageVersions,
)

__all__ = [
    "IBroken",
    "IConnection",
    "IDatabase",
    "IDatabaseCaches",
    "IDatabaseForConnection",
    "IDatabaseForStorage",
    "IStorage",
    "IStorageCurrentRecordIteration",
    "IStorageHistory",
    "IStorageIteration",
    "IStoragePackable",
    "IStoragePacked",
    "IStoragePolling",
    "IStorageReadChecks",
    "IStorageRestoreable",
    "IStorageSelfCheck",
    "IStorageShared",
    "IStorageSync",
    "IStorageUndoable",
    "IStorageVersions",
]
