"""Storages and wrappers written for ZODB: their features, and how to call them.

They declare ZODB's interfaces, or none, and have methods with ZODB's signatures. A wrapper may
declare the interfaces of the storage under it, including objdb's, and registers itself there in
place of the database (`untransform_record_data`).
"""

from __future__ import annotations

import base64
import inspect
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from zope.interface import implementer, providedBy

from objdb.errors import ConflictError, Unsupported, UsageError
from objdb.ids import MAX_TID, Oid, Tid, time_from_tid
from objdb.interfaces import (
    IDatabaseForStorage,
    IStorage,
    IStorageHistory,
    IStorageIteration,
    IStoragePackable,
    IStoragePolling,
    IStorageShared,
    IStorageUndoable,
)
from objdb.storage.packing import PackResult

# The method by which a ZODB storage supports an interface of objdb.
_METHODS = {
    IStorageHistory: "history", IStorageIteration: "iterator", IStoragePackable: "pack",
    IStorageUndoable: "undo",
}
_TICK_SECONDS = 0.00001  # times are cut to microseconds
_TEXTS = ("user_name", "description")

Hook = Callable[[], object]
Resolve = Callable[[Oid, "bytes | None", bytes, bytes, tuple[Tid, Tid]], bytes]


def is_foreign(storage: Any) -> bool:
    """Whether a storage was written for ZODB, not for objdb."""
    return not IStorage.providedBy(storage)


def provides(storage: Any, interface: Any) -> bool:
    """Whether a storage supports *interface*, one of objdb's."""
    if interface.providedBy(storage):
        return True
    method = _METHODS.get(interface)
    return method is not None and is_foreign(storage) and callable(getattr(storage, method, None))


def require_servable(storage: Any) -> Any:
    """Return *storage*; `UsageError` for one that needs an instance for each connection: through
    a single instance, connections would never see the commits of other processes."""
    names = {each.__name__ for each in providedBy(storage).flattened()}
    if is_foreign(storage) and (
        "IMVCCStorage" in names or callable(getattr(storage, "poll_invalidations", None))
    ):
        raise UsageError(
            f"{type(storage).__name__} is a storage with multi-version concurrency of its own "
            "(ZODB's IMVCCStorage, as RelStorage is), which objdb cannot serve. Copy it to one of "
            "objdb's: objdb.SQLiteStorage(PATH).copyTransactionsFrom(storage)"
        )
    return storage


# -- calls


def pack_storage(
    storage: Any, moment: Tid, references: Any, gc: bool, **options: Any
) -> PackResult:
    """Pack a storage up to the tid *moment*, also one whose `pack` takes fewer arguments.
    `Unsupported` if omitting an argument would change the result."""
    known, takes_all = _arguments_of(storage.pack)
    unknown = {name: value for name, value in options.items() if name not in known}
    if not takes_all and unknown:
        for name in ("dry_run", "keep_old"):
            if unknown.get(name):
                raise Unsupported(f"{storage.getName()}: its pack takes no argument {name}")
        if gc and any(unknown.get("roots", tuple)()):
            raise Unsupported(
                f"{storage.getName()} would drop objects that other databases of its group refer "
                "to, since its pack takes no further roots. Pack it with gc=False"
            )
        options = {name: value for name, value in options.items() if name in known}
    if "gc" in known or takes_all:
        options["gc"] = gc
    elif not gc:
        raise Unsupported(f"{storage.getName()}: its pack takes no argument gc")
    before = storage.getSize(), len(storage)
    until: Any = time_from_tid(moment) + _TICK_SECONDS if is_foreign(storage) else moment
    result = storage.pack(until, references, **options)
    if isinstance(result, PackResult):
        return result
    return PackResult(before[0], storage.getSize(), before[1], len(storage))


def _arguments_of(function: Any) -> tuple[set[str], bool]:
    """Return the names of a function's arguments, and whether it takes any others."""
    try:
        found = inspect.signature(function).parameters
    except (TypeError, ValueError):  # a wrapper hides them
        return {"gc"}, False
    return set(found), any(each.kind is each.VAR_KEYWORD for each in found.values())


def hooks_of(storage: Any) -> tuple[Hook | None, Hook | None]:
    """Return the function to call before a connection looks up the last transaction, if others
    may commit; and the one to call after a transaction of a connection has ended."""
    if is_foreign(storage):
        return getattr(storage, "sync", None), getattr(storage, "afterCompletion", None)
    if IStorageShared.providedBy(storage) or (
        IStoragePolling.providedBy(storage) and storage.isReadOnly()
    ):
        return storage.poll, None
    return None, None


def preview_undo_in(storage: Any, transaction_ids: Iterable[Any]) -> Iterator[Any]:
    """Yield what undoing transactions would change; `Unsupported` if the storage cannot tell."""
    if not callable(getattr(storage, "preview_undo", None)):
        raise Unsupported(f"{storage.getName()} cannot tell what undoing would change")
    plain = getattr(storage, "untransform_record_data", bytes)  # of a wrapper
    for found in storage.preview_undo(transaction_ids):
        now, then = found.now and plain(found.now), found.then and plain(found.then)
        yield found._replace(now=now, then=then)


def undo_in(storage: Any, transaction_id: Any, transaction: Any) -> Iterable[Oid]:
    """Undo a transaction in a storage; return the oids that this changes."""
    if is_foreign(storage):
        if isinstance(transaction_id, bytes) and len(transaction_id) == 8:
            transaction_id = base64.b64encode(transaction_id)
        elif isinstance(transaction_id, str):
            transaction_id = transaction_id.encode()
    found = storage.undo(transaction_id, transaction)
    oids: Iterable[Oid] = found[1] if found else ()
    return oids


def readable(storage: Any, entries: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the entries of an undo log or a history with texts as str, which ZODB storages list
    as bytes."""
    entries = list(entries)
    if is_foreign(storage):
        for entry in entries:
            for name in _TEXTS:
                if isinstance(entry.get(name), bytes):
                    entry[name] = entry[name].decode("utf-8", "replace")
            entry.setdefault("version", "")
            if isinstance(entry.get("id"), bytes):
                entry["id"] = entry["id"].decode("ascii", "replace")
    return entries


# -- wrappers


@implementer(IDatabaseForStorage)
class ForeignDatabase:
    """Stands for the database if a storage is registered with something else than one of objdb's:
    None, a ZODB database, or a wrapper, which keeps records in its own format. Conflicts in those
    are resolved with the database's function, once that is known (`give_resolver`)."""

    def __init__(self, db: Any = None) -> None:
        self._db = db
        self.resolver: Resolve | None = None

    def resolve(
        self, oid: Oid, old: bytes | None, committed: bytes, new: bytes, serials: tuple[Tid, Tid]
    ) -> bytes:
        """See `IDatabaseForStorage`."""
        resolver: Resolve | None = getattr(self._db, "resolve", None)
        if resolver is not None:
            return resolver(oid, old, committed, new, serials)
        if self.resolver is None or not hasattr(self._db, "untransform_record_data"):
            raise ConflictError(oid=oid, serials=serials)
        plain = self._db.untransform_record_data
        merged = self.resolver(
            oid, None if old is None else plain(old), plain(committed), plain(new), serials
        )
        record: bytes = self._db.transform_record_data(merged)
        return record

    def is_equal(self, oid: Oid, one: bytes | None, other: bytes | None) -> bool:
        """See `IDatabaseForStorage`."""
        if hasattr(self._db, "is_equal"):
            return bool(self._db.is_equal(oid, one, other))
        return one == other

    def invalidate(self, tid: Tid, oids: Iterable[Oid], version: str = "") -> None:
        """See `IDatabaseForStorage`."""
        if hasattr(self._db, "invalidate"):
            self._db.invalidate(tid, oids, version)

    def invalidateCache(self) -> None:
        """See `IDatabaseForStorage`."""
        if hasattr(self._db, "invalidateCache"):
            self._db.invalidateCache()

    def oldest_view(self) -> Tid:
        """See `IDatabaseForStorage`; the end of time if no view is known."""
        view: Tid = self._db.oldest_view() if hasattr(self._db, "oldest_view") else MAX_TID
        return view


def database_of(db: Any) -> Any:
    """Return *db*, an `IDatabaseForStorage`, or its stand-in."""
    return db if IDatabaseForStorage.providedBy(db) else ForeignDatabase(db)


def give_resolver(storage: Any, resolve: Resolve) -> None:
    """Let the storages under the wrappers in *storage* resolve conflicts with *resolve*."""
    seen: list[Any] = []
    waiting = [storage]
    while waiting:
        each = waiting.pop()
        if any(each is other for other in seen):
            continue
        seen.append(each)
        for value in list(getattr(each, "__dict__", {}).values()):
            if isinstance(value, ForeignDatabase):
                value.resolver = resolve
            elif hasattr(value, "registerDB") and hasattr(value, "loadBefore"):
                waiting.append(value)
