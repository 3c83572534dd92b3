"""Who commits, and which phase each transaction is in; shared by all storages.

           tpc_begin         tpc_vote                tpc_finish
    (none) ────────► BEGUN ───────────► VOTED ───────────────► (gone, committed)
                       │  slot taken      │  decided, slot freed
                       └── tpc_abort ─────┴───────► (gone, nothing happened)

Any number of transactions can be BEGUN: they stage their writes without a lock. One at a time
is VOTED: it holds the *commit slot* from the first conflict check until its outcome is decided.
"""

from __future__ import annotations

import enum
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from threading import get_ident
from typing import Any, NamedTuple

from objdb.errors import StorageTransactionError, UndoError, UsageError
from objdb.ids import Oid, Tid, format_oid
from objdb.storage.extension import dumps_extension, loads_extension

# A transaction that stages more than this keeps it in a temporary file.
SPOOL_BYTES = 32 * 1024 * 1024
# Which older revision of the object a staged one has the data of: its position, on a medium that
# can point there; elsewhere its tid.
Repeat = Any


class TransactionMetaData:
    """What a storage is told about a transaction.

    *user* and *description* are text or UTF-8 bytes, and bytes when they are asked for; *extension*
    is a dict of further facts, or its pickle, which stays as it is as long as the dict does.
    `data(key)` and `set_data(key, value)` keep a storage's or connection's own facts.

    `later` is a list if whoever commits waits by itself: then `tpc_finish` may return when the
    outcome is decided, having added a function that returns when the data is durable, or raises.
    """

    def __init__(
        self, user: str | bytes = b"", description: str | bytes = b"",
        extension: dict[Any, Any] | bytes | None = None,
    ) -> None:
        self.user = user
        self.description = description
        self._pickled = b""
        self._extension: Any = None  # a dict, or None until somebody asks for it
        self._as_pickled: dict[Any, Any] = {}  # the dict that `_pickled` is of
        self.extension = extension
        self.later: list[Callable[[], None]] | None = None
        self._data: dict[Any, Any] = {}

    @property
    def user(self) -> bytes:
        """Who made the transaction."""
        return self._user

    @user.setter
    def user(self, user: str | bytes) -> None:
        """Set it; `UsageError` for text that has no UTF-8."""
        self._user = _as_bytes("user", user)

    @property
    def description(self) -> bytes:
        """What the transaction was for."""
        return self._description

    @description.setter
    def description(self, description: str | bytes) -> None:
        """Set it; `UsageError` for text that has no UTF-8."""
        self._description = _as_bytes("description", description)

    @property
    def extension(self) -> dict[Any, Any]:
        """Further facts, see `objdb.storage.extension`; `CorruptedDataError` where the bytes are
        no pickle of a dict."""
        if self._extension is None:
            self._extension = loads_extension(self._pickled)
            self._as_pickled = dict(self._extension)
        found: dict[Any, Any] = self._extension
        return found

    @extension.setter
    def extension(self, extension: dict[Any, Any] | bytes | None) -> None:
        """Set it, as a dict or its pickle."""
        is_pickled = isinstance(extension, bytes)
        self._pickled = extension if isinstance(extension, bytes) else b""
        self._extension = None if is_pickled else extension or {}
        self._as_pickled = {}

    @property
    def extension_bytes(self) -> bytes:
        """The extension as storages keep it: pickled, empty when there is none."""
        if self._extension is None or self._extension == self._as_pickled:
            return self._pickled
        self._pickled = dumps_extension(self._extension)
        self._as_pickled = dict(self._extension)
        return self._pickled

    def data(self, key: Any) -> Any:
        """Return what `set_data` kept for *key*; KeyError if nothing."""
        return self._data[id(key)]

    def set_data(self, key: Any, value: Any) -> None:
        """Keep *value* for *key* for as long as the transaction lasts."""
        self._data[id(key)] = value


def _as_bytes(what: str, text: str | bytes) -> bytes:
    if isinstance(text, bytes):
        return text
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise UsageError(
            f"the {what} of the transaction cannot be stored: {text[:80]!a} has half a surrogate "
            f"pair at {error.start}, as names of files that are no UTF-8 have. Give it as bytes, "
            "or replace these characters"
        ) from error


class Spooled(NamedTuple):
    """A record in the temporary file of a large transaction."""

    position: int
    size: int


class Phase(enum.Enum):
    """How far a transaction has come."""

    BEGUN = "begun"
    VOTED = "voted"


class Staged:
    """One transaction's writes, until it commits or aborts."""

    def __init__(self, transaction: Any, tid: Tid | None, status: str) -> None:
        self.transaction = transaction
        self.phase = Phase.BEGUN
        self.tid = tid
        self.status = status
        self.reads: dict[Oid, Tid] = {}
        self.version_reads: dict[str, dict[Oid, Tid]] = {}  # what was read in versions
        self.unchanged_since: Tid | None = None  # the tid that has to be the last one at the vote
        self.resolved: list[Oid] = []
        # Since the vote: (where the current revision is, its tid) of every oid written; and of
        # those that are in a version, which.
        self.current: dict[Oid, tuple[Any, Tid] | None] = {}
        self.locked: dict[Oid, str] = {}
        self.medium: Any = None  # what the storage needs between vote and finish
        # oid -> the revision the staged one was made from (`NO_TID`: a new object), or None for
        # a restored revision, which is not checked.
        self.bases: dict[Oid, Tid | None] = {}
        # oid -> record, or where in the spool it is; None to un-create the object. Two dicts of
        # bytes, unlike one of tuples, give the garbage collector nothing to visit.
        self._records: dict[Oid, bytes | Spooled | None] = {}
        self.record_bytes = 0  # of all records; 8 for each object un-created, or pointed to
        # Of the records, those that repeat an older revision. Where the medium points to that,
        # the record is None.
        self.repeats: dict[Oid, Repeat] = {}
        self.places: Any = None  # what the positions in `repeats` are positions in
        self.versions: dict[Oid, str] = {}  # of the revisions staged, those that are in one
        # Requests (to undo a transaction, to commit or abort a version): functions that stage
        # what has to change, made from what is current; the objects that they change, with what
        # is current, as in `current`; and the versions that they empty, with the same.
        self.requests: list[Callable[[], object]] = []
        self.requested: dict[Oid, tuple[Any, Tid]] = {}
        self.emptied: dict[str, dict[Oid, tuple[Any, Tid]]] = {}
        self.requested_at: Tid | None = None  # the last tid decided, when it was staged
        self.is_stale = False  # not all of what they stage is staged any more
        self._spool: Any = None

    def __len__(self) -> int:
        return len(self.bases)

    def write(
        self, oid: Oid, base_tid: Tid | None, record: bytes | None, version: str = ""
    ) -> None:
        """Stage a revision of *oid*; a second one of the same oid replaces the first."""
        if oid in self.bases:
            self.require_not_requested(oid)
            self.repeats.pop(oid, None)
            self.versions.pop(oid, None)
            replaced = self.record(oid)
            self.record_bytes -= 8 if replaced is None else len(replaced)
        self.bases[oid] = base_tid
        self.record_bytes += 8 if record is None else len(record)
        if version:
            self.versions[oid] = version
        if self.record_bytes > SPOOL_BYTES and record is not None:
            self._records[oid] = self._to_spool(record)
        else:
            self._records[oid] = record

    def write_requested(
        self, oid: Oid, current: tuple[Any, Tid], record: bytes | None, repeat: Repeat | None,
        version: str,
    ) -> None:
        """Stage what a request makes of *oid*; a further request replaces it."""
        self.requested.pop(oid, None)
        self.write(oid, current[1], record, version)
        self.requested[oid] = current
        if repeat is not None:
            self.repeats[oid] = repeat

    def write_all_requested(
        self, current: dict[Oid, tuple[Any, Tid]], records: dict[Oid, bytes | None],
        repeats: dict[Oid, Repeat], version: str,
    ) -> None:
        """Stage what a request makes of many objects, of which nothing is staged yet."""
        self.requested.update(current)
        self.bases.update({oid: tid for oid, (_, tid) in current.items()})
        self._records.update(records)
        sizes = (8 if record is None else len(record) for record in records.values())
        self.record_bytes += sum(sizes)
        self.repeats.update(repeats)
        if version:
            self.versions.update(dict.fromkeys(current, version))

    def drop_requested(self) -> None:
        """Take back what was staged by requests."""
        for oid in self.requested:
            record = self.record(oid)
            self.record_bytes -= 8 if record is None else len(record)
            self.repeats.pop(oid, None)
            self.versions.pop(oid, None)
            del self.bases[oid], self._records[oid]
        self.requested.clear()
        self.emptied.clear()

    def require_not_requested(self, oid: Oid) -> None:
        """Raise `UndoError` if this transaction undoes a change of *oid*, or commits or aborts
        one made in a version."""
        if oid in self.requested:
            raise UndoError(
                f"object {format_oid(oid)} cannot be changed in the transaction that undoes a "
                "change of it, or commits or aborts its version. Commit that first", oid=oid,
                reason="it is changed here as well",
            )

    def _to_spool(self, record: bytes) -> Spooled:
        if self._spool is None:
            self._spool = tempfile.TemporaryFile(prefix="objdb-commit-")
            for oid, kept in self._records.items():
                if isinstance(kept, bytes):
                    self._records[oid] = self._to_spool(kept)
        position = self._spool.seek(0, 2)
        self._spool.write(record)
        return Spooled(position, len(record))

    def _from_spool(self, place: Spooled) -> bytes:
        self._spool.seek(place.position)
        data: bytes = self._spool.read(place.size)
        return data

    def record(self, oid: Oid) -> bytes | None:
        """Return the staged record of *oid*."""
        record = self._records[oid]
        return self._from_spool(record) if isinstance(record, Spooled) else record

    def records(self) -> Iterable[tuple[Oid, bytes | None]]:
        """Return (oid, record) in the order they were staged, with one spooled record in memory
        at a time."""
        if self._spool is None:
            return self._records.items()  # type: ignore[return-value]
        return self._spooled_records()

    def _spooled_records(self) -> Iterator[tuple[Oid, bytes | None]]:
        for oid, record in self._records.items():
            yield oid, self._from_spool(record) if isinstance(record, Spooled) else record

    def close(self) -> None:
        """Drop everything."""
        self.bases = {}
        self._records = {}
        if self._spool is not None:
            self._spool.close()


class CommitSlot:
    """Knows every transaction that has begun, and lets one at a time decide its outcome.

    `_lock` is held from `take` to `release` by the transaction `_holder`; `_staged` maps a
    transaction's identity to its staged writes (each entry is touched by its own thread only).
    `resolving` is the thread that is in an application's code with the lock held, or 0.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._lock = threading.Lock()
        self._holder: Staged | None = None
        self._staged: dict[int, Staged] = {}
        self.resolving = 0

    def begin(self, transaction: Any, tid: Tid | None, status: str) -> None:
        """Register *transaction*; `StorageTransactionError` if it has begun already."""
        if id(transaction) in self._staged:
            raise StorageTransactionError(
                f"{self._name}: this transaction has begun already. Finish or abort it first"
            )
        self._staged[id(transaction)] = Staged(transaction, tid, status)

    def staged(self, transaction: Any, phase: Phase = Phase.BEGUN) -> Staged:
        """Return the staged writes of *transaction*, which must be in *phase*."""
        staged = self._staged.get(id(transaction))
        if staged is None:
            raise StorageTransactionError(
                f"{self._name}: this transaction has not begun here (or has ended). Call "
                "tpc_begin first, and pass the same transaction to every call"
            )
        if staged.phase is not phase:
            raise StorageTransactionError(
                f"{self._name}: this transaction is {staged.phase.value}, which the call does "
                f"not fit: it takes one that is {phase.value}"
            )
        return staged

    def take(self, staged: Staged) -> None:
        """Wait for the slot, and hold it. `StorageTransactionError` inside `_p_resolveConflict`,
        where that would be for ever."""
        self._require_outside()
        self._lock.acquire()
        self._holder = staged

    def _require_outside(self) -> None:
        if self.resolving == get_ident():
            raise StorageTransactionError(
                f"{self._name}: a transaction cannot be committed, nor the storage packed, from "
                "inside _p_resolveConflict, which is called in the middle of another one's commit"
            )

    def release(self, staged: Staged) -> None:
        """Let the next transaction have the slot, if *staged* holds it."""
        if self._holder is staged:
            self._holder = None
            self._lock.release()

    @contextmanager
    def resolving_in(self, staged: Staged) -> Iterator[None]:
        """Note, if *staged* holds the slot, that this thread is in an application's code."""
        if self._holder is not staged:
            yield
            return
        self.resolving = get_ident()
        try:
            yield
        finally:
            self.resolving = 0

    @contextmanager
    def held(self) -> Iterator[None]:
        """Hold the slot, without a transaction: nothing is committed meanwhile."""
        self._require_outside()
        with self._lock:
            yield

    @contextmanager
    def quiet(self, seconds: float) -> Iterator[bool]:
        """Hold the slot, without a transaction, to close the storage; after *seconds*, go on
        without it (a transaction that voted may never be finished). Gives whether it is held."""
        is_held = self._lock.acquire(timeout=seconds)
        try:
            yield is_held
        finally:
            if is_held:
                self._lock.release()

    def end(self, transaction: Any) -> Staged | None:
        """Forget *transaction* and return what it had staged, or None if it never began."""
        return self._staged.pop(id(transaction), None)
