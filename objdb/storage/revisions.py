"""What every storage that keeps revisions has in common, written once over a few primitives.

A storage supplies the primitives (see `RevisionStorage`); it gets the two-phase commit, conflict
checks, conflict resolution and checks of read objects from here:

    tpc_vote:  take the slot ─► check all writes and reads in one batch ─► resolve conflicts
               ─► assign the tid ─► _prepare (write, undecided)
    tpc_finish: _commit (decide, free the slot, make durable, callback, make visible)
"""

from __future__ import annotations

import os
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from itertools import count
from typing import TYPE_CHECKING, Any

from objdb.errors import (
    ConflictError,
    POSKeyError,
    ReadConflictError,
    ReadOnlyError,
    RecordTooLargeError,
    StorageClosedError,
    StorageError,
    StorageForkedError,
    Unsupported,
    UsageError,
)
from objdb.ids import MAX_TID, NO_TID, Oid, Tid, format_oid, int_from_oid
from objdb.storage.commit import CommitSlot, Phase, Repeat, Staged
from objdb.storage.copying import CopyProgress, copy_transactions
from objdb.storage.foreign import Resolve, resolver_of
from objdb.storage.moments import commit_tid

if TYPE_CHECKING:
    from typing_extensions import Self

# How long closing waits for a transaction that has voted to be finished.
_CLOSE_SECONDS = 5.0
MAX_RECORD_BYTES = 2**31 - 1
_LAST_OID = 2**64 - 1
_count = count()
_STATUSES = (" ", "p", "u")  # committed, packed, undone (old)


def resolve_nothing(
    oid: Oid, old: bytes | None, committed: bytes, new: bytes, serials: tuple[Tid, Tid]
) -> bytes:
    """The resolver of a storage that no database has given one: every conflict is one."""
    raise ConflictError(oid=oid, serials=serials)


def same_bytes(oid: Oid, one: bytes | None, other: bytes | None) -> bool:
    """Whether two records of an object are the same, to a storage that is given no other way."""
    return one == other


class RevisionStorage(ABC):
    """Base of storages. The primitives a subclass supplies:

    * `loadBefore(oid, tid)`: the revision before a tid
    * `_find_current(oids)`: for each oid (where its current revision is, its tid), whatever
      "where" means to the storage; None where there is no object
    * `_prepare(staged)`: write what is staged, undecided; everything that can fail happens here
    * `_commit(staged, finished)`: decide, call `self._slot.release(staged)`, make durable, call
      `finished(tid)`, then let others see it
    * `_discard(staged)`: take back what `_prepare` wrote
    * `_close()`

    `_oid_lock` covers `_max_oid`. `_places_lock` is held where places of revisions are used
    outside the commit slot; a pack, which changes them all, takes it first and then the slot.
    *path*: of the file or directory, where there is one.
    """

    def __init__(
        self, name: str, *, read_only: bool = False, path: str | None = None
    ) -> None:
        self._name = name
        # Where everybody spells it alike; else no two of this process are alike.
        self._sort_key = os.path.realpath(path) if path else f"{name}:{next(_count)}"
        self._is_read_only = read_only
        self._slot = CommitSlot(name)
        self._resolve: Resolve = resolve_nothing
        self._is_equal: Callable[[Oid, bytes | None, bytes | None], bool] = same_bytes
        self._last_tid: Tid = NO_TID
        self._oid_lock = threading.Lock()
        self._places_lock = threading.RLock()
        self._max_oid = 0  # the last oid handed out, or known from elsewhere
        self._pid = os.getpid()
        self._closed = False

    # -- facts

    def getName(self) -> str:
        """Return the storage's name (a path, where there is one)."""
        return self._name

    def __repr__(self) -> str:
        state = ", closed" if self._closed else ", read only" if self._is_read_only else ""
        return f"<{type(self).__name__} {self._name}{state}>"

    def sortKey(self) -> str:
        """Return the text that orders storages in a two-phase commit over several: in all
        processes alike for those that have a path, however that was spelt."""
        return self._sort_key

    def isReadOnly(self) -> bool:
        """Whether the storage was opened for reading only."""
        return self._is_read_only

    def lastTransaction(self) -> Tid:
        """Return the tid of the last transaction that others can see."""
        return self._last_tid

    def registerDB(self, db: Any) -> None:
        """Take from *db* the functions that resolve conflicts and, if it has one, that compares
        records."""
        self._resolve = resolver_of(db, resolve_nothing)
        self._is_equal = getattr(db, "is_equal", same_bytes)

    def new_oid(self) -> Oid:
        """Return an oid that was never returned before and belongs to no object."""
        if self._is_read_only or self._closed:
            self._require_writable()
        with self._oid_lock:
            if self._max_oid >= _LAST_OID:
                raise StorageError(
                    f"{self._name} has no oids left: there is an object with the last one, "
                    "0xffffffffffffffff. Copy what is reachable to a new storage"
                )
            self._max_oid = number = self._max_oid + 1
        return number.to_bytes(8, "big")

    def _note_oid(self, oid: Oid) -> None:
        """Never hand out *oid*, which came from elsewhere."""
        number = int_from_oid(oid)
        if number > self._max_oid:
            with self._oid_lock:
                self._max_oid = max(self._max_oid, number)

    @property
    def _places(self) -> Any:
        """What places are places in: another one after a pack."""
        return None

    # -- reading

    @abstractmethod
    def loadBefore(
        self, oid: Oid, tid: Tid, version: str = ""
    ) -> tuple[bytes, Tid, Tid | None] | None:
        """Return (record, its tid, tid of the next revision or None) of the last revision of
        *oid* before *tid*, or None if there was none; `POSKeyError` if there is no object."""

    def load(self, oid: Oid, version: str = "") -> tuple[bytes, Tid]:
        """Return (record, tid) of the current revision of *oid*; `POSKeyError` if none."""
        if version:
            self._require_version(version)
            found = self.loadBefore(oid, MAX_TID, version)
        else:
            found = self.loadBefore(oid, MAX_TID)
        if found is None:
            raise POSKeyError(oid, database=self._name)
        return found[0], found[1]

    def loadSerial(self, oid: Oid, serial: Tid) -> bytes:
        """Return the record of *oid* that the transaction *serial* wrote; `POSKeyError` if it
        wrote none, or it has been packed away."""
        found = self.loadBefore(oid, (int_from_oid(serial) + 1).to_bytes(8, "big"))
        if found is None or found[1] != serial:
            raise POSKeyError(oid, database=self._name)
        return found[0]

    def getTid(self, oid: Oid) -> Tid:
        """Return the tid of the current revision of *oid*; `POSKeyError` if none."""
        return self.load(oid)[1]

    @abstractmethod
    def _find_current(self, oids: Iterable[Oid]) -> dict[Oid, tuple[Any, Tid] | None]:
        """Return for each oid where its current revision is, and its tid; None if none."""

    def _find_changed(self, serials: dict[Oid, Tid]) -> list[tuple[Oid, Tid]]:
        """Return (oid, current tid) where the current tid is not the one in *serials*."""
        found = self._find_current(serials).items()
        current = [(oid, NO_TID if entry is None else entry[1]) for oid, entry in found]
        return [(oid, tid) for oid, tid in current if tid != serials[oid]]

    # -- committing

    def tpc_begin(self, transaction: Any, tid: Tid | None = None, status: str = " ") -> None:
        """Begin to stage writes for *transaction*.

        *tid* and *status* are given when transactions are copied from elsewhere.
        `StorageTransactionError` if it has begun already.
        """
        self._require_writable()
        if status not in _STATUSES:
            raise UsageError(f"{status!r} is no status of a transaction: space, p (packed) or u")
        self._slot.begin(transaction, tid, status)

    def store(
        self, oid: Oid, serial: Tid | None, data: bytes, version: str, transaction: Any
    ) -> None:
        """Stage the record *data* as a revision of *oid*, made from the revision *serial*."""
        staged = self._slot.staged(transaction)
        if version:
            self._require_version(version)
        if not 0 < len(data) <= MAX_RECORD_BYTES:
            raise _no_record(oid, data)
        staged.write(oid, serial or NO_TID, data, version)

    def restore(
        self, oid: Oid, serial: Tid, data: bytes | None, version: str, prev_txn: Tid | None,
        transaction: Any,
    ) -> None:
        """Stage a revision copied from elsewhere: not checked for conflicts. *data* None
        un-creates the object; *prev_txn* is the tid of a revision that has the same data."""
        staged = self._slot.staged(transaction)
        if version:
            self._require_version(version)
        if data is not None and not 0 < len(data) <= MAX_RECORD_BYTES:
            raise _no_record(oid, data)
        if data is None or prev_txn is None:
            staged.write(oid, None, data, version)
            return
        with self._places_lock:
            self._renew_repeats(staged)
            record, repeat = self._repeat(oid, prev_txn, data)
            staged.write(oid, None, record, version)
            if repeat is not None:
                staged.repeats[oid] = repeat

    def supportsVersions(self) -> bool:
        """See `IStorageVersions`."""
        return False

    def _require_version(self, version: str) -> None:
        """Raise what is wrong with working in *version*: here, that there are none."""
        raise Unsupported(f"{self._name}: versions are not supported")

    def _repeat(self, oid: Oid, tid: Tid, data: bytes) -> tuple[bytes | None, Repeat | None]:
        """Return what to stage for *data*, which the revision *tid* of *oid* may have already:
        (record, repeat)."""
        return data, None

    def _renew_repeats(self, staged: Staged) -> None:
        """Stage the data of revisions that repeat others, where a pack has moved those."""
        if staged.places is not self._places:
            for oid, repeat in list(staged.repeats.items()):
                if staged.record(oid) is None:
                    data = self._data_in(staged.places, repeat)
                    staged.write(oid, staged.bases[oid], data, staged.versions.get(oid, ""))
                staged.repeats.pop(oid, None)
            staged.places = self._places

    def _data_in(self, places: Any, repeat: Repeat) -> bytes | None:
        """Return the data at the position of a repeat in *places*, those of before a pack."""
        return None

    def copyTransactionsFrom(
        self, other: Any, progress: Callable[[CopyProgress], object] | None = None
    ) -> int:
        """See `IStorageRestoreable`."""
        return copy_transactions(other, self, progress)

    def deleteObject(self, oid: Oid, serial: Tid, transaction: Any) -> None:
        """Stage that *oid*, at revision *serial*, exists no more."""
        self._slot.staged(transaction).write(oid, serial, None)

    def checkCurrentSerialInTransaction(
        self, oid: Oid, serial: Tid, transaction: Any, version: str = ""
    ) -> None:
        """Let the vote fail with `ReadConflictError` unless *serial* is the tid of what is
        current in *version*."""
        self.checkReads({oid: serial}, None, transaction, version)

    def checkReads(
        self, serials: dict[Oid, Tid], unchanged_since: Tid | None, transaction: Any,
        version: str = "",
    ) -> None:
        """See `IStorageReadChecks`."""
        staged = self._slot.staged(transaction)
        reads = staged.version_reads.setdefault(version, {}) if version else staged.reads
        reads.update(serials)
        if unchanged_since is not None:
            staged.unchanged_since = unchanged_since

    def tpc_vote(self, transaction: Any) -> list[Oid]:
        """Do everything that can fail; return the oids whose conflicts were resolved.

        Raises `ConflictError` and its kind, after which nothing is held: abort.
        """
        staged = self._slot.staged(transaction)
        self._slot.take(staged)
        try:
            self._require_writable()
            self._begin_vote()
            self._check(staged)
            staged.tid = commit_tid(self._name, staged.tid, self._decided_tid())
            self._prepare(staged)
        except ConflictError as error:
            if error.oid in staged.bases:
                error.record = staged.record(error.oid)
            self._settle(staged)
            raise
        except BaseException:
            self._give_up(staged)
            raise
        staged.phase = Phase.VOTED
        return staged.resolved

    def _begin_vote(self) -> None:  # noqa: B027  most need nothing
        """Get ready to check and to write. The slot is held."""

    def _give_up(self, staged: Staged) -> None:
        """Free the slot after a vote that failed."""
        self._slot.release(staged)

    def _check(self, staged: Staged) -> None:
        """Check that every write was made from, and every checked read saw, the current
        revision; resolve what conflicts."""
        if staged.repeats:
            self._renew_repeats(staged)
        bases = staged.bases
        staged.current = self._current_of(staged)
        if self.supportsVersions():
            self._check_locks(staged)
        if staged.reads:
            self._check_reads(staged, staged.reads)
        for version, reads in staged.version_reads.items():
            self._check_reads(staged, reads, version)
        if staged.unchanged_since is not None and self._decided_tid() != staged.unchanged_since:
            raise ReadConflictError(
                "something was committed meanwhile, and the program deactivated objects that it "
                "may have read, so it is not known whether they were changed. Try the "
                "transaction again, and leave deactivating to the connection"
            )
        for oid, entry in staged.current.items():
            base, current = bases[oid], NO_TID if entry is None else entry[1]
            if current != base and base is not None:
                self._resolve_conflict(staged, oid, base, current)

    def _current_of(self, staged: Staged) -> dict[Oid, tuple[Any, Tid] | None]:
        """Return what is current of all that is staged. The slot is held."""
        return self._find_current(staged.bases)

    if TYPE_CHECKING:  # of storages that support versions

        def _check_locks(self, staged: Staged) -> None: ...

    def _check_reads(self, staged: Staged, reads: dict[Oid, Tid], version: str = "") -> None:
        for oid, current in self._find_stale(reads, version):
            error = ConflictError if oid in staged.bases else ReadConflictError
            raise error(oid=oid, serials=(current, reads[oid]))

    def _find_stale(self, serials: dict[Oid, Tid], version: str) -> Iterable[tuple[Oid, Tid]]:
        """Return (oid, current tid) where *serials* has not the tid that is seen in *version*."""
        return self._find_changed(serials)

    def _resolve_conflict(self, staged: Staged, oid: Oid, base: Tid, current: Tid) -> None:
        ours = staged.record(oid)
        if current == NO_TID or ours is None:  # deleted on either side
            raise ConflictError(oid=oid, serials=(current, base))
        try:
            committed = self._load_decided(oid, current)
        except POSKeyError:  # un-created
            raise ConflictError(oid=oid, serials=(current, base)) from None
        try:
            old = self.loadSerial(oid, base)
        except POSKeyError:
            old = None
        merged = self._merge(staged, oid, old, committed, ours, (current, base))
        staged.write(oid, current, merged, staged.versions.get(oid, ""))
        staged.resolved.append(oid)

    def _merge(
        self, staged: Staged, oid: Oid, old: bytes | None, committed: bytes, new: bytes,
        serials: tuple[Tid, Tid],
    ) -> bytes:
        """Let the application merge two changes; the transaction may hold the slot, or not."""
        with self._slot.resolving_in(staged):
            return self._resolve(oid, old, committed, new, serials)

    def _load_decided(self, oid: Oid, tid: Tid) -> bytes:
        """Return the record of the current revision, which may not be visible yet."""
        return self.loadSerial(oid, tid)

    def _settle(self, staged: Staged) -> None:
        """Free the slot after a conflict, and return when what was conflicted with can be seen:
        the next try would meet it again otherwise."""
        self._give_up(staged)

    def _decided_tid(self) -> Tid:
        """Return the last tid whose outcome is decided, visible or not."""
        return self._last_tid

    def tpc_finish(
        self, transaction: Any, callback: Callable[[Tid], object] | None = None
    ) -> Tid:
        """Commit. *callback* is called with the tid before anybody can see the data.

        Returns the tid when the data is durable.
        """
        staged = self._slot.staged(transaction, Phase.VOTED)
        try:
            self._commit(staged, callback or _no_callback)
            assert staged.tid is not None
            return staged.tid
        finally:
            self._slot.release(staged)
            self._slot.end(transaction)
            staged.close()

    def tpc_abort(self, transaction: Any) -> None:
        """Drop everything staged. Ignored for a transaction that has not begun."""
        staged = self._slot.end(transaction)
        if staged is None:
            return
        try:
            if staged.phase is Phase.VOTED:
                self._discard(staged)
        finally:
            self._slot.release(staged)
            staged.close()

    @abstractmethod
    def _prepare(self, staged: Staged) -> None:
        """Write what is staged, undecided."""

    @abstractmethod
    def _commit(self, staged: Staged, finished: Callable[[Tid], object]) -> None:
        """Decide, free the slot, make durable, call *finished*, let others see."""

    @abstractmethod
    def _discard(self, staged: Staged) -> None:
        """Take back what `_prepare` wrote."""

    # -- the end

    def close(self) -> None:
        """Close the storage. A second call does nothing."""
        if self._closed:
            return
        self._closed = True
        if self._pid != os.getpid():
            self._close()  # a fork's copy: who held the slot is not in this process
            return
        self._end_work(_CLOSE_SECONDS)
        with self._slot.quiet(_CLOSE_SECONDS):
            self._close()

    def _end_work(self, seconds: float) -> None:  # noqa: B027  most have none
        """Wait, at most *seconds*, for work that ends by itself when the storage is closed."""

    @abstractmethod
    def _close(self) -> None:
        """Let go of the medium."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _require_open(self) -> None:
        if self._closed:
            raise StorageClosedError(f"{self._name} is closed. Open it again to use it")

    def _require_writable(self) -> None:
        self._require_open()
        if self._is_read_only:
            raise ReadOnlyError(f"{self._name} is open for reading only. Open it for writing")
        if self._pid != os.getpid():
            raise StorageForkedError(
                f"{self._name} was opened by process {self._pid}, of which this one is a fork. "
                "Open the storage in the child"
            )


def _no_record(oid: Oid, data: bytes) -> Exception:
    if data:
        return RecordTooLargeError(
            f"object {format_oid(oid)} is {len(data)} bytes; a record holds at most "
            f"{MAX_RECORD_BYTES}. Keep large data in many objects or in a file",
            oid=oid, size=len(data), limit=MAX_RECORD_BYTES,
        )
    return UsageError(
        f"object {format_oid(oid)}: an empty record is none. Use deleteObject (or restore with "
        "None) to un-create an object"
    )


def _no_callback(tid: Tid) -> None:
    pass
