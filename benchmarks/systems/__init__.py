"""The systems that are measured, by name, in the order of the tables."""

from __future__ import annotations

from benchmarks.systems.bare import BareAppend, BarePreallocated, PlainObject, PlainPersistent
from benchmarks.systems.base import ObjectStore, Store, System
from benchmarks.systems.berkeley_store import Berkeley
from benchmarks.systems.durus_store import Durus
from benchmarks.systems.lmdb_store import Lmdb
from benchmarks.systems.persistent_store import Objdb, Zodb
from benchmarks.systems.served import DurusServer, ObjdbOnZeo, ObjdbServer, ZeoServer
from benchmarks.systems.sqlite_store import Sqlite
from benchmarks.systems.storages import Encrypted, OnBerkeley, OnSqlite, Relstorage, Zlib, Zstd

__all__ = ["SERVED", "STORAGES", "SYSTEMS", "ObjectStore", "Store", "System"]

SYSTEMS: dict[str, System] = {
    system.name: system
    for system in (
        Objdb(),
        Zodb(),
        Durus(),
        Lmdb(),
        Berkeley(),
        Sqlite(),
        BareAppend(),
        BarePreallocated(),
        PlainPersistent(),
        PlainObject(),
        OnSqlite(),
        OnBerkeley(),
        Zlib(),
        Zstd(),
        Encrypted(),
        Relstorage(),
        ObjdbServer(),
        ZeoServer(),
        ObjdbOnZeo(),
        DurusServer(),
    )
}

STORAGES = (
    "objdb", "objdb-sqlite", "objdb-berkeley", "objdb-zlib", "objdb-zstd", "objdb-encrypted",
    "zodb", "relstorage", "berkeley", "sqlite",
)
"""The systems of a run with `--storages`."""

SERVED = ("objdb-zeo", "zeo", "objdb-on-zeo", "durus-server", "lmdb", "append")
"""The systems of a run with `--sharing`."""
