"""What connects a client with the storage on its server: the channel, the cache, the snapshot.

    Link ─► Channel                          connected anew when it was lost
      │ ╰─► cache                            of what was loaded
      ╰───► last                             the last transaction that was taken in

The snapshot is the last transaction that was taken in: an invalidation, or an own finish. It is
never what the server says is its last transaction, which may be ahead of the invalidations.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

from objdb.errors import ConflictError, StorageClosedError, StorageError, StorageForkedError
from objdb.ids import MAX_TID, NO_TID, Oid, Tid
from objdb.storage.foreign import database_of
from objdb_zeo import listing
from objdb_zeo.addresses import Address, format_address
from objdb_zeo.cache import Found, ICache
from objdb_zeo.messages import MAX_FRAME_BYTES
from objdb_zeo.transport import Channel, DisconnectedError, Pending
from objdb_zeo.wires import SOCKETS, Wires

logger = logging.getLogger(__name__)
EXTENSION = 1  # the version that is known here
_FETCHED = 50  # oids in one message
_TRIES = 3  # of a call that only reads, while connections are lost
_READS = frozenset({
    "loadBefore", "loadSerial", "history", "record_iternext", "undoLog", "undoInfo", "get_info",
    "ping", "objdb.iterate", "objdb.packed_tid",
})


class Info(NamedTuple):
    """What the server says of the storage."""

    length: int
    size: int
    name: str
    has_extension: bool
    interfaces: tuple[str, ...]  # by the names in the extension, or ZODB's
    instance: bytes  # of an objdb server: another one since it was started again
    frame_bytes: int  # of the largest message that the server takes, if it says so


class Link:
    """Connects with the storage *storage* on the first of *addresses* where it is served.
    *seconds*: how long a call may take; *wait_seconds*: how long to wait for a server; *limit*: of
    a frame, in bytes; *wires*: the clock and the network.

    `DisconnectedError` if there is no server; ValueError for a storage that is not served there.
    """

    def __init__(
        self, addresses: Sequence[Address], storage: str, cache: ICache, *, read_only: bool,
        seconds: float, wait_seconds: float, limit: int, wires: Wires = SOCKETS,
    ) -> None:
        self.name = f"zeo://{format_address(addresses[0])}?storage={storage}"
        self.db: Any = database_of(None)
        self.last: Tid = NO_TID
        self.cache = cache
        self.is_closed = False
        self._addresses = addresses
        self._storage = storage
        self.wires = wires
        self._pid = os.getpid()
        self._is_read_only = read_only
        self.call_seconds, self._wait_seconds, self._limit = seconds, wait_seconds, limit
        self._lock = threading.RLock()  # held while connecting
        self._held: list[tuple[Tid, tuple[Oid, ...]]] | None = []  # while it is verified
        self._loading: dict[Oid, set[_Loading]] = {}  # loads under way
        self._loading_lock = threading.Lock()
        self._open: Channel | None = None
        self.voting: dict[int, Tid | None] = {}  # the tids that one-phase commits will have
        self._key = wires.random(16)  # this client's, on the server
        self._connect()

    # -- the connection

    def channel(self) -> Channel:
        """Return the open channel; connect again, if it was lost, and wait for that."""
        self.require_open()
        channel = self._open
        if channel is None or channel.failure is not None:
            with self._lock:
                self.require_open()
                channel = self._open
                if channel is None or channel.failure is not None:
                    channel = self._connect()
        return channel

    def transactions(self, start: Tid) -> Iterator[Any]:
        """Yield the transactions from *start* on."""
        if self.info.has_extension:
            return listing.batches(self._ask, start, MAX_TID)
        return listing.one_by_one(self.call, start, None)

    def _ask(self, name: str, *arguments: Any) -> Any:
        return self.call(f"objdb.{name}", *arguments)

    def require_open(self) -> None:
        """Raise `StorageClosedError` if it is closed, `StorageForkedError` in a forked child, which
        would share the socket."""
        if self.is_closed:
            raise StorageClosedError(f"{self.name} is closed. Open it again to use it")
        if os.getpid() != self._pid:
            raise StorageForkedError(
                f"{self.name} was opened by process {self._pid}, and this is a forked child. Open "
                "the storage in the child; a database does so by itself"
            )

    def close(self) -> None:
        """Close the connection; calls under way are told."""
        self.is_closed = True
        if self._open is not None:
            self._open.fail(StorageClosedError("it was closed"))

    def _connect(self) -> Channel:
        """Connect with the first server that answers, register and verify. Waits for one."""
        deadline, pause = self.wires.now() + self._wait_seconds, 0.05
        while True:
            try:
                return self._try_all()
            except DisconnectedError:
                if self.is_closed or self.wires.now() + pause > deadline:
                    raise
            self.wires.sleep(pause)
            pause = min(2 * pause, 1.0)

    def _try_all(self) -> Channel:
        failure: DisconnectedError | None = None
        for address in self._addresses:
            try:
                return self._connect_to(address)
            except DisconnectedError as error:
                failure = failure or error
        assert failure is not None
        raise failure

    def _connect_to(self, address: Address) -> Channel:
        self._held = []
        channel = Channel(
            address, self._told, seconds=self.call_seconds, limit=self._limit, wires=self.wires
        )
        try:
            last = channel.call("register", self._storage, self._is_read_only)
            self.info = _info(channel.call("get_info"))
            if self.info.has_extension:
                channel.most_bytes = self.info.frame_bytes
                channel.send([("objdb.hello", (self._key,), None)])
            self._verify(channel, last)
        except BaseException:
            channel.close()
            raise
        held, self._held = self._held, None
        for tid, oids in held:
            if tid > self.last:
                self._take_in(tid, oids)
        self._open = channel
        logger.info("%s: connected with %s", self.name, channel.name)
        return channel

    def _verify(self, channel: Channel, last: Tid) -> None:
        """Bring what is cached, here and by the database, up to the server's state."""
        if self.last == NO_TID:
            self.last = last
            return
        if self.last == last:
            return
        if self.last > last or self._is_missing(channel):
            raise StorageError(
                f"{channel.name} has less than this client has seen: its last transaction is "
                f"{last.hex()}, and {self.last.hex()} was seen. It may have been restored from a "
                "backup. Open the database anew to go on with what is there"
            )
        found = channel.call("getInvalidations", self.last)
        if found is None:
            self.cache.forget(None)
            self.db.invalidateCache()
        else:
            last, oids = found
            self.cache.forget(oids)
            self.db.invalidate(last, list(oids))
        self.last = last

    def _is_missing(self, channel: Channel) -> bool:
        """Whether the server has no such transaction as `last`, and no pack took it away: it was
        restored from a backup, and something was committed since."""
        needed = {"IStorageIteration", "IStorageHistory", "IStoragePacked"}
        if not needed <= {*self.info.interfaces}:
            return False
        number = channel.call("iterator_start", self.last, self.last)
        is_there = channel.call("iterator_next", number) is not None
        channel.send([("iterator_gc", ([number],), None)])
        return not is_there and bool(channel.call("objdb.packed_tid") < self.last)

    # -- what the server says by itself

    def _told(self, method: str, arguments: Any) -> None:
        if method == "invalidateTransaction":
            tid, oids = arguments
            if self._held is not None:
                self._held.append((tid, tuple(oids)))
            else:
                self._take_in(tid, oids)
        elif method == "info":
            self.told_info(arguments[0])
        elif method == "objdb.packed":
            self.cache.forget(None)
        elif method == "objdb.voted":
            id, tid = arguments
            if id in self.voting:
                self.voting[id] = tid

    def told_info(self, known: dict[str, Any]) -> None:
        """Note length and size."""
        self.info = self.info._replace(length=known["length"], size=known["size"])

    def _take_in(self, tid: Tid, oids: Iterable[Oid]) -> None:
        """Take in another's transaction: the database is told before `last` moves."""
        oids = list(oids)
        self._mark(oids)
        self.cache.invalidate(tid, oids)
        self.db.invalidate(tid, oids)
        self.last = tid

    def take_in_own(self, tid: Tid, changed: Iterable[Oid], records: dict[Oid, bytes]) -> None:
        """Take in an own transaction; *records* are those that are current now."""
        changed = list(changed)
        self._mark(changed)
        self.cache.invalidate(tid, changed)
        for oid, record in records.items():
            self.cache.store(oid, record, tid, None)
        self.last = max(tid, self.last)

    def _mark(self, oids: Iterable[Oid]) -> None:
        """Note that what is being loaded of these objects may not be current any more."""
        with self._loading_lock:
            for oid in oids if self._loading else ():
                for load in self._loading.get(oid, ()):
                    load.is_overtaken = True

    # -- calls

    def call(self, name: str, *arguments: Any, **options: Any) -> Any:
        """Call a method of the server; see `Channel.call`. Where the connection is lost, what only
        reads is called again."""
        deadline = self.wires.now() + self.call_seconds
        channel = self.channel()
        for left in reversed(range(_TRIES if name in _READS else 1)):
            try:
                return channel.call(name, *arguments, **options)
            except DisconnectedError as lost:
                if not left or self.is_closed or self.wires.now() > deadline:
                    raise
                try:
                    channel = self.channel()
                except DisconnectedError as error:
                    raise lost from error
        raise AssertionError("the last try returns or raises")

    def resolve(self, kind: str, *arguments: Any) -> tuple[bytes | None, str | None]:
        """Answer the server, which asks for a conflict to be resolved: (merged record, None), or
        (None, the name of the class)."""
        oid, old, committed, new, serials = arguments
        try:
            return self.db.resolve(oid, old, committed, new, tuple(serials)), None
        except ConflictError as error:
            return None, error.class_name

    def load(self, oid: Oid, bound: Tid) -> Found | None:
        """Return the last revision before *bound*, which is not above `last`, from the cache or the
        server."""
        return self.cache.load(oid, bound) or self._load(oid, bound)

    def _load(self, oid: Oid, bound: Tid) -> Found | None:
        load = _Loading()

        def taken(found: Any) -> Any:
            self._store(oid, load, found)
            return found

        self._begin_load(oid, load)
        try:
            found: Found | None = self.call("loadBefore", oid, bound, taken=taken)
            return found
        finally:
            self._end_load(oid, load)

    def fetch(self, oids: Iterable[Oid], bound: Tid) -> None:
        """Bring what `load` would return into the cache, by an objdb server's bulk loads."""
        loads = {oid: _Loading() for oid in oids if self.cache.load(oid, bound) is None}
        wanted = list(loads)
        calls: list[tuple[str, tuple[Any, ...], Pending | None]] = []
        pendings = []
        for first in range(0, len(wanted), _FETCHED):
            group = wanted[first : first + _FETCHED]
            pendings.append(Pending(partial(self._fetched, group, loads)))
            calls.append(("objdb.load", (group, bound), pendings[-1]))
        for oid, load in loads.items():
            self._begin_load(oid, load)
        try:
            channel = self.channel()
            channel.send(calls)
            for pending in pendings:
                channel.wait(pending)
        finally:
            for oid, load in loads.items():
                self._end_load(oid, load)

    def _fetched(self, oids: list[Oid], loads: dict[Oid, _Loading], found: Any) -> None:
        for oid, revision in zip(oids, found, strict=False):  # what is much comes in part
            self._store(oid, loads[oid], revision)

    def _begin_load(self, oid: Oid, load: _Loading) -> None:
        with self._loading_lock:
            self._loading.setdefault(oid, set()).add(load)

    def _store(self, oid: Oid, load: _Loading, found: Found | None) -> None:
        if found is not None and (found[2] is not None or not load.is_overtaken):
            self.cache.store(oid, *found)

    def _end_load(self, oid: Oid, load: _Loading) -> None:
        with self._loading_lock:
            left = self._loading.get(oid)
            if left is not None:
                left.discard(load)
                if not left:
                    del self._loading[oid]


class _Loading:
    """A load under way. `is_overtaken`: the object was invalidated meanwhile."""

    is_overtaken = False


def _info(found: dict[str, Any]) -> Info:
    offer = found.get("objdb") or {}
    if offer.get("version") != EXTENSION:
        offer = {}  # ZEO's calls are known to both
    interfaces = offer["interfaces"] if offer else [name for _, name in found.get("interfaces", ())]
    if not offer and found.get("supportsUndo"):
        interfaces.append("IStorageUndoable")
    if found.get("supports_record_iternext"):
        interfaces = (*interfaces, "IStorageCurrentRecordIteration")
    return Info(
        found.get("length", 0), found.get("size", 0), str(found.get("name", "")), bool(offer),
        tuple(interfaces), offer.get("instance", b""),
        offer.get("frame_bytes", MAX_FRAME_BYTES),
    )
