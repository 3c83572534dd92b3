"""A storage that is a client of a server: `ClientStorage`.

    begin of a view ─► poll: what has arrived is taken in ─► snapshot: the last of it
    load ─► cache ─► server                 (by the calling thread: see `transport`)
    vote ─► begin, stores, checks, vote in one write ─► conflicts are resolved here ─► vote
    finish ─► tid, taken in like an invalidation

What connects it with the server, the cache and the snapshot are in `link`.
"""

from __future__ import annotations

import base64
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from typing import Any

from zope.interface import directlyProvides

from objdb.errors import (
    ObjdbError,
    POSKeyError,
    ReadOnlyError,
    StorageTransactionError,
    Unsupported,
    UsageError,
)
from objdb.ids import MAX_TID, NO_TID, Oid, Tid, next_tid
from objdb.interfaces import (
    IStorage,
    IStorageCurrentRecordIteration,
    IStorageHistory,
    IStoragePrefetch,
    IStorageReadChecks,
    IStorageRestoreable,
    IStorageShared,
    IStorageSync,
    IStorageUndoable,
)
from objdb.storage.copying import CopyProgress, copy_transactions
from objdb.storage.extension import dumps_extension
from objdb.storage.foreign import database_of
from objdb.storage.packing import PackResult
from objdb.storage.staging import require_size
from objdb.storage.times import span
from objdb.storage.undo import UndoneObject, tid_from_id
from objdb_zeo import listing
from objdb_zeo.addresses import addresses
from objdb_zeo.cache import MemoryCache
from objdb_zeo.link import Link
from objdb_zeo.messages import MAX_FRAME_BYTES, as_bytes, plain
from objdb_zeo.shapes import OFFERED
from objdb_zeo.transport import Channel, DisconnectedError, Pending
from objdb_zeo.wires import SOCKETS, Wires
from objdb_zeo.work import Staged

CACHE_BYTES = 100 * 1024 * 1024
_INTERFACES = {**OFFERED, "IStorageCurrentRecordIteration": IStorageCurrentRecordIteration}


class ClientStorage:
    """The storage called *storage* on the server at *address* (or one of several).

    *address*: (host, port), the path of a Unix socket, or text as `parse_address` takes it; a list
    of them is tried in order. *cache_bytes*: the size of the cache in memory. *call_seconds*: how
    long a call may take. *wait_seconds*: how long to wait for a server that is not there, or not
    any more. *read_only*: register for reading only. *server_sync*: each transaction begins by
    asking the server, and sees all that was acknowledged to anybody before; else, what has arrived.
    *wires*: the clock and the network.

    `DisconnectedError` if there is no server; `UsageError` for an address or size that is none;
    ValueError for a storage that is not served there.
    """

    def __init__(
        self, address: Any, storage: str = "1", *, cache_bytes: int = CACHE_BYTES,
        call_seconds: float = 60.0, wait_seconds: float = 5.0, read_only: bool = False,
        frame_bytes: int = MAX_FRAME_BYTES, server_sync: bool = False, wires: Wires = SOCKETS,
    ) -> None:
        self._options: dict[str, Any] = {
            "cache_bytes": cache_bytes, "call_seconds": call_seconds,
            "wait_seconds": wait_seconds, "read_only": read_only, "frame_bytes": frame_bytes,
            "server_sync": server_sync, "wires": wires,
        }
        self._addresses = addresses(address)
        if not isinstance(cache_bytes, int) or cache_bytes < 0:
            raise UsageError(f"cache_bytes is {cache_bytes!r}; it is a number of bytes, 0 or more")
        self._storage = storage
        self._is_read_only, self._server_sync = read_only, server_sync
        self._lock = threading.Lock()  # covers the attributes below
        self._transactions: dict[int, Staged] = {}
        self._last_id = 0
        self._oids: list[Oid] = []
        self._oids_of: Channel | None = None  # from which they came
        self._link = Link(
            self._addresses, storage, MemoryCache(cache_bytes), read_only=read_only,
            seconds=call_seconds, wait_seconds=wait_seconds, limit=frame_bytes, wires=wires,
        )
        info = self._link.info
        declared = [IStorage, IStorageShared, IStorageSync, IStorageRestoreable]
        declared += [_INTERFACES[name] for name in info.interfaces if name in _INTERFACES]
        declared += [IStorageReadChecks] if info.has_extension else [IStorageHistory]
        declared += [IStoragePrefetch] if info.has_extension and cache_bytes else []
        directlyProvides(self, *declared)

    def _call(self, name: str, *arguments: Any, **options: Any) -> Any:
        return self._link.call(name, *arguments, **options)

    def _ask(self, name: str, *arguments: Any, **options: Any) -> Any:
        """Call a method of the extension; `Unsupported` by a server without."""
        if not self._has_extension:
            raise Unsupported(f"{self.getName()} is not an objdb server, and cannot do that")
        return self._call(f"objdb.{name}", *arguments, **options)

    @property
    def _has_extension(self) -> bool:
        return self._link.info.has_extension

    def poll(self) -> None:
        """See `IStoragePolling`: take in what has arrived; with `server_sync`, see `sync`."""
        if self._server_sync:
            self.sync()
            return
        self._link.require_open()
        self._link.channel().take_in()

    def sync(self) -> None:
        """See `IStorageSync`: ask the server, which sends the invalidations before the answer."""
        self._call("ping")

    def again(self) -> ClientStorage:
        """See `IStorageShared`: a client of its own, for a forked child."""
        return ClientStorage(self._addresses, self._storage, **self._options)

    # -- facts

    def registerDB(self, db: Any) -> None:
        """See `IStorage`."""
        self._link.db = database_of(db)

    def close(self) -> None:
        """See `IStorage`."""
        self._link.close()

    def __enter__(self) -> ClientStorage:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def __repr__(self) -> str:
        state = ", closed" if self._link.is_closed else ""
        return f"<ClientStorage {self.getName()}{state}>"

    def getName(self) -> str:
        """See `IStorage`: the URI."""
        return self._link.name

    def sortKey(self) -> str:
        """See `IStorage`."""
        return self.getName()

    def __len__(self) -> int:
        """The number of objects; the last one known, if the server cannot be asked."""
        self._ask_info()
        return self._link.info.length

    def getSize(self) -> int:
        """See `IStorage`; the last one known, if the server cannot be asked."""
        self._ask_info()
        return self._link.info.size

    def _ask_info(self) -> None:
        with suppress(DisconnectedError):
            self._link.told_info(self._call("get_info"))

    def isReadOnly(self) -> bool:
        """See `IStorage`."""
        return self._is_read_only

    def lastTransaction(self) -> Tid:
        """See `IStorage`: the last one taken in."""
        return self._link.last

    def supportsUndo(self) -> bool:
        """See `IStorageUndoable`."""
        return bool(IStorageUndoable.providedBy(self))

    def supportsVersions(self) -> bool:
        """Return false."""
        return False

    # -- reading

    def load(self, oid: Oid, version: str = "") -> tuple[bytes, Tid]:
        """See `IStorage`."""
        found = self.loadBefore(oid, MAX_TID, version)
        if found is None:
            raise POSKeyError(oid, database=self.getName())
        return found[0], found[1]

    def loadBefore(
        self, oid: Oid, tid: Tid, version: str = ""
    ) -> tuple[bytes, Tid, Tid | None] | None:
        """See `IStorage`."""
        self._link.require_open()
        last = self._link.last
        found = self._link.load(oid, min(tid, next_tid(last)))
        if found is None:
            if tid > last:
                raise POSKeyError(oid, database=self.getName())
            return None
        record, serial, end = found
        return record, serial, None if end is None or end > last else end

    def prefetch(self, oids: Iterable[Oid], before: Tid) -> None:
        """See `IStoragePrefetch`: bring records into the cache, fifty by one message."""
        self._link.require_open()
        self._link.fetch(oids, min(before, next_tid(self._link.last)))

    def loadSerial(self, oid: Oid, serial: Tid) -> bytes:
        """See `IStorage`."""
        record: bytes = self._call("loadSerial", oid, serial)
        return record

    def getTid(self, oid: Oid) -> Tid:
        """See `IStorage`."""
        return self.load(oid)[1]

    def history(self, oid: Oid, size: int = 1) -> list[dict[str, Any]]:
        """See `IStorageHistory`."""
        entries = list(map(listing.entry, self._call("history", oid, size)))
        for entry in entries:
            entry.setdefault("serial", entry["tid"])
            entry.setdefault("version", "")
        return entries

    def record_iternext(self, next: Oid | None = None) -> tuple[Oid, Tid, bytes, Oid | None]:
        """See `IStorageCurrentRecordIteration`."""
        found: tuple[Oid, Tid, bytes, Oid | None] = self._call("record_iternext", next)
        return found

    def lastInvalidations(self, count: int) -> list[tuple[Tid, list[Oid]]]:
        """See `IStorageCurrentRecordIteration`."""
        found = [(each.tid, [r.oid for r in each]) for each in self.iterator()]
        return found[-count:] if count else []

    def iterator(self, start: Tid | None = None, stop: Tid | None = None) -> Iterator[Any]:
        """See `IStorageIteration`."""
        self._link.require_open()
        if self._has_extension:
            last = self._link.last
            return listing.batches(self._ask, start, last if stop is None else min(stop, last))
        return listing.one_by_one(self._call, start, stop)

    # -- transactions

    def new_oid(self) -> Oid:
        """See `IStorage`. A server that was started again may give others the oids that it gave
        before: those of a connection that is lost are dropped."""
        self._require_writable()
        channel = self._link.channel()
        with self._lock:
            if self._oids_of is not channel:
                self._oids, self._oids_of = [], channel
            if not self._oids:
                self._oids.extend(reversed(channel.call("new_oids", 100)))
            return self._oids.pop()

    def _require_writable(self) -> None:
        self._link.require_open()
        if self._is_read_only:
            raise ReadOnlyError(f"{self.getName()} is open for reading only. Open it for writing")

    def tpc_begin(self, transaction: Any, tid: Tid | None = None, status: str = " ") -> None:
        """See `IStorage`."""
        self._require_writable()
        with self._lock:
            if id(transaction) in self._transactions:
                raise StorageTransactionError(
                    f"{self.getName()}: this transaction has begun already. Finish or abort it "
                    "first"
                )
            self._last_id += 1
            name = self._last_id
        extension = dict(getattr(transaction, "extension", None) or {})
        for key, value in () if self._has_extension else extension.items():
            if plain({key: value}) != {key: value}:
                raise UsageError(
                    f"{self.getName()}: a ZEO server takes numbers, text, bytes, lists and dicts "
                    f"in a transaction's extension; {key!r} is {value!r}"
                )
        texts = as_bytes(transaction.user), as_bytes(transaction.description)
        if extension and self._has_extension:
            data = getattr(transaction, "extension_bytes", None) or dumps_extension(extension)
            staged = Staged(name, *texts, {}, data, tid, status)
        else:
            staged = Staged(name, *texts, extension, b"", tid, status)
        self._transactions[id(transaction)] = staged

    def _staged(self, transaction: Any, *, voted: bool = False) -> Staged:
        staged = self._transactions.get(id(transaction))
        if staged is None:
            raise StorageTransactionError(
                f"{self.getName()}: this transaction has not begun here, or has ended. Call "
                "tpc_begin first, and pass the same transaction to every call"
            )
        if staged.has_voted != voted:
            now, wanted = ("has", "has not") if staged.has_voted else ("has not", "has")
            raise StorageTransactionError(
                f"{self.getName()}: this transaction {now} voted, but the call requires one that "
                f"{wanted}"
            )
        return staged

    def store(
        self, oid: Oid, serial: Tid | None, data: bytes, version: str, transaction: Any
    ) -> None:
        """See `IStorage`."""
        staged = self._staged(transaction)
        if version:
            raise Unsupported(f"{self.getName()} has no versions")
        require_size(oid, data)
        staged.records[oid] = serial or NO_TID, data

    def restore(
        self, oid: Oid, serial: Tid, data: bytes | None, version: str, prev_txn: Tid | None,
        transaction: Any,
    ) -> None:
        """See `IStorage`."""
        staged = self._staged(transaction)
        if version:
            raise Unsupported(f"{self.getName()} has no versions")
        if data is not None:
            require_size(oid, data)
        staged.change(oid, "restorea", oid, serial, data, prev_txn, staged.id)

    def deleteObject(self, oid: Oid, serial: Tid, transaction: Any) -> None:
        """See `IStorage`."""
        staged = self._staged(transaction)
        staged.records.pop(oid, None)
        staged.change(oid, "deleteObject", oid, serial, staged.id)

    def checkCurrentSerialInTransaction(
        self, oid: Oid, serial: Tid, transaction: Any, version: str = ""
    ) -> None:
        """See `IStorage`."""
        staged = self._staged(transaction)
        staged.add("checkCurrentSerialInTransaction", oid, serial, staged.id)

    def checkReads(
        self, serials: dict[Oid, Tid], unchanged_since: Tid | None, transaction: Any,
        version: str = "",
    ) -> None:
        """See `IStorageReadChecks`."""
        staged = self._staged(transaction)
        staged.add("objdb.checkReads", tuple(serials.items()), unchanged_since, staged.id)

    def tpc_vote(self, transaction: Any) -> list[Oid]:
        """See `IStorage`. Conflicts are resolved here. Where `committed` is set (see
        `TransactionMetaData`), it commits, and raises what `tpc_finish` does."""
        committed = getattr(transaction, "committed", None)
        return self._staged(transaction).vote(self._link, committed)

    def tpc_finish(
        self, transaction: Any, callback: Callable[[Tid], object] | None = None
    ) -> Tid:
        """See `IStorage`. Raises `CommitInDoubtError` if the connection is lost before the server
        has answered."""
        staged = self._staged(transaction, voted=True)
        try:
            return staged.finish(self._link, callback)
        finally:
            if staged.is_over:
                self._transactions.pop(id(transaction), None)
                self._drop_oids(max(staged.changed, default=NO_TID))

    def _drop_oids(self, largest: Oid) -> None:
        """Never hand out oids up to one that was stored: a program may have made it itself."""
        with self._lock:
            if self._oids and largest >= self._oids[-1]:
                self._oids = [oid for oid in self._oids if oid > largest]

    def tpc_abort(self, transaction: Any) -> None:
        """See `IStorage`."""
        staged = self._transactions.pop(id(transaction), None)
        if staged is not None:
            staged.abort()

    # -- undo

    def undo(self, transaction_id: Any, transaction: Any) -> tuple[Tid | None, list[Oid]]:
        """See `IStorageUndoable`. Of a ZEO server the oids are not known, and what stands in the
        way is told by the vote."""
        staged = self._staged(transaction)
        id = base64.b64encode(tid_from_id(transaction_id))
        oids: list[Oid] = []
        if self._has_extension:
            arguments = (*staged.undone, id), tuple(staged.records)
            oids = list(self._ask("try_undo", *arguments, asked=self._link.resolve))
        staged.undone.append(id)
        staged.others.update(oids)
        staged.add("undoa", id, staged.id)
        return None, oids

    def preview_undo(self, transaction_ids: Iterable[Any]) -> list[Any]:
        """See `IStorageUndoable`."""
        found = self._ask("preview_undo", tuple(transaction_ids), asked=self._link.resolve)
        return [UndoneObject(*each) for each in found]

    def undoLog(
        self, first: Any = 0, last: Any = -20, filter: Any = None
    ) -> list[dict[str, Any]]:
        """See `IStorageUndoable`."""
        wanted = span(first, last)
        if filter is None:
            bounds = listing.moment(first), listing.moment(last)
            return list(map(listing.entry, self._call("undoLog", *bounds)))
        return list(listing.filtered(self.undoLog, wanted, filter))

    def undoInfo(
        self, first: Any = 0, last: Any = -20, specification: dict[str, Any] | None = None
    ) -> list[dict[str, Any]]:
        """See `IStorageUndoable`."""
        arguments = listing.moment(first), listing.moment(last), specification
        return list(map(listing.entry, self._call("undoInfo", *arguments)))

    # -- packing and copying

    def pack(
        self, time: Any, referencesf: Any, gc: bool = True, *, progress: Any = None,
        keep_old: bool = False, dry_run: bool = False, roots: Any = None, elsewhere: Any = None,
    ) -> PackResult:
        """See `IStoragePackable`. The server finds the references."""
        raised: list[BaseException] = []

        def asked(kind: str, *arguments: Any) -> Any:
            try:
                if kind == "progress":
                    if progress is not None:
                        progress(*arguments)
                    return None
                return tuple(roots()) if kind == "roots" else bool(elsewhere(*arguments))
            except BaseException as error:
                raised.append(error)
                raise

        arguments = time, gc, keep_old, dry_run, roots is not None, elsewhere is not None
        pending = Pending(asked=asked)
        channel = self._link.channel()
        channel.send([("objdb.pack", arguments, pending)])
        try:
            return PackResult(*channel.wait(pending))
        except BaseException:
            if raised:
                with suppress(ObjdbError):
                    channel.wait(pending)  # until the pack has ended there
                raise raised[0] from None
            raise

    @property
    def packed_tid(self) -> Tid:
        """See `IStoragePacked`."""
        tid: Tid = self._ask("packed_tid")
        return tid

    def self_check(self) -> list[str]:
        """See `IStorageSelfCheck`."""
        return list(self._ask("self_check"))

    def copyTransactionsFrom(
        self, other: Any, progress: Callable[[CopyProgress], object] | None = None
    ) -> int:
        """See `IStorageRestoreable`."""
        return copy_transactions(other, self, progress)
