"""A layer that changes the bytes of records, and the codec that says how.

    record ─► encode(oid, record) ─► base.store          base.load… ─► decode(oid, data) ─► record

The base compares, merges, packs and lists encoded data. Its callbacks pass the layer: `resolve`
and `referencesf` receive decoded records.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from zope.interface import implementer

from objdb.errors import ConflictError, POSKeyError, Unsupported, VersionLockError
from objdb.ids import MAX_TID, Oid, Tid
from objdb.interfaces import IDatabaseForStorage, IStorageIteration, IStorageVersions
from objdb.storage.commit import TransactionMetaData
from objdb.storage.copying import CopyProgress, copy_transactions
from objdb.storage.foreign import database_of
from objdb.storage.iteration import RevisionRecord
from objdb.storage.layers.layer import Layer
from objdb.storage.packing import Elsewhere, PackResult, Progress, References
from objdb.storage.staging import MAX_RECORD_BYTES
from objdb.storage.undo import UndoneObject

_AT_ONCE = 500  # records rewritten per transaction

# (oid, tid of the revision it is based on, data, version)
Change = tuple[Oid, Tid, bytes, str]


class Codec(ABC):
    """Makes the base's data of records, and records of those. `title`: the name of the layer."""

    title: str
    base_load: Callable[..., tuple[bytes, Tid, Tid | None] | None]

    @abstractmethod
    def encode(self, oid: Oid, record: bytes) -> bytes:
        """Return the base's data for a record."""

    @abstractmethod
    def decode(self, oid: Oid | None, data: bytes) -> bytes:
        """Return the record for the base's *data*; *oid* is None if it is not known.
        `CorruptedDataError` for data that are not valid."""

    @abstractmethod
    def load_before(
        self, oid: Oid, tid: Tid, version: str = ""
    ) -> tuple[bytes, Tid, Tid | None] | None:
        """Return what `base_load`, the base's `loadBefore`, returns, decoded. It runs for every
        load."""

    @abstractmethod
    def is_as_written(self, data: bytes) -> bool:
        """Return whether *data* are encoded as they would be if stored now."""

    def is_object(self, data: bytes) -> bool:
        """Return whether *data* are those of an object, not the codec's own."""
        return True

    def references(self, data: bytes, referencesf: References) -> Iterable[Oid]:
        """Return the oids that *data* refer to."""
        return referencesf(self.decode(None, data))


class TransformingStorage(Layer):
    """Keeps the records of *base* as *codec* encodes them."""

    def __init__(self, base: Any, codec: Codec) -> None:
        super().__init__(base)
        self.codec = codec
        codec.base_load = base.loadBefore
        self.loadBefore = codec.load_before
        self._db: Any = database_of(None)
        if not base.isReadOnly():  # so that it can compare records before it has a database
            base.registerDB(_Decoding(codec, self._db))

    def registerDB(self, db: Any) -> None:
        """Register *db*, and register with the base a database whose `resolve` decodes its data."""
        self._db = database_of(db)
        self.base.registerDB(_Decoding(self.codec, self._db))

    # -- reading

    def load(self, oid: Oid, version: str = "") -> tuple[bytes, Tid]:
        """See `IStorage`."""
        data, tid = self.base.load(oid, version)
        return self.codec.decode(oid, data), tid

    def loadSerial(self, oid: Oid, serial: Tid) -> bytes:
        """See `IStorage`."""
        return self.codec.decode(oid, self.base.loadSerial(oid, serial))

    def history(self, oid: Oid, size: int = 1) -> list[dict[str, Any]]:
        """See `IStorageHistory`. The sizes are those of the records, decoded."""
        entries: list[dict[str, Any]] = self.base.history(oid, size)
        for entry in entries:
            if entry["size"]:
                try:
                    entry["size"] = len(self.loadSerial(oid, entry["tid"]))
                except POSKeyError:  # packed away just now
                    continue
        return entries

    def iterator(self, start: Tid | None = None, stop: Tid | None = None) -> Iterator[Any]:
        """See `IStorageIteration`."""
        return self._decoded(self.base.iterator(start, stop))

    def record_iternext(self, next: Oid | None = None) -> tuple[Oid, Tid, bytes, Oid | None]:
        """See `IStorageCurrentRecordIteration`."""
        oid, tid, data, following = self.base.record_iternext(next)
        return oid, tid, self.codec.decode(oid, data), following

    def _decoded(self, transactions: Iterable[Any]) -> Iterator[Any]:
        for transaction in transactions:
            yield _Transaction(self.codec, transaction)

    # -- writing

    def _encoded(self, oid: Oid, record: bytes) -> bytes:
        # The base refuses values that are not records.
        return self.codec.encode(oid, record) if 0 < len(record) <= MAX_RECORD_BYTES else record

    def store(
        self, oid: Oid, serial: Tid | None, data: bytes, version: str, transaction: Any
    ) -> None:
        """See `IStorage`."""
        self.base.store(oid, serial, self._encoded(oid, data), version, transaction)

    def restore(
        self, oid: Oid, serial: Tid, data: bytes | None, version: str, prev_txn: Tid | None,
        transaction: Any,
    ) -> None:
        """See `IStorage`. A revision with a back pointer gets the same bytes as its target."""
        if data is not None:
            again = None
            if prev_txn is not None:
                again = self._data_of(oid, prev_txn, transaction)
            if again is not None and self.codec.decode(oid, again) == data:
                data = again
            else:
                data = self._encoded(oid, data)
        self.base.restore(oid, serial, data, version, prev_txn, transaction)

    def _data_of(self, oid: Oid, tid: Tid, transaction: Any) -> bytes | None:
        """Return the base's data of a revision, None if it does not exist."""
        try:
            data: bytes = self.base.loadSerial(oid, tid)
            return data
        except POSKeyError:
            later = getattr(transaction, "later", None)
            if not later:
                return None
        while later:  # it may be committed, but not visible until it is durable
            later.pop(0)()
        return self._data_of(oid, tid, None)

    def tpc_vote(self, transaction: Any) -> Any:
        """See `IStorage`."""
        try:
            return self.base.tpc_vote(transaction)
        except ConflictError as error:
            if error.record is not None:
                error.record = self.codec.decode(error.oid, error.record)
            raise

    def copyTransactionsFrom(
        self, other: Any, progress: Callable[[CopyProgress], object] | None = None
    ) -> int:
        """See `IStorageRestoreable`."""
        return copy_transactions(other, self, progress)

    def preview_undo(self, transaction_ids: Iterable[Any]) -> list[UndoneObject]:
        """See `IStorageUndoable`."""
        return [
            found._replace(
                now=found.now and self.codec.decode(found.oid, found.now),
                then=found.then and self.codec.decode(found.oid, found.then),
            )
            for found in self.base.preview_undo(transaction_ids)
        ]

    def pack(
        self, time: Any, referencesf: References, gc: bool = True, *,
        progress: Progress | None = None, keep_old: bool = False, dry_run: bool = False,
        roots: Callable[[], Iterable[Oid]] | None = None,
        elsewhere: Elsewhere | None = None,
    ) -> PackResult:
        """See `IStoragePackable`."""
        result: PackResult = self.base.pack(
            time, lambda data: self.codec.references(data, referencesf) if data else (), gc,
            progress=progress, keep_old=keep_old, dry_run=dry_run, roots=roots,
            elsewhere=elsewhere,
        )
        return result

    # -- rewriting

    def rewrite(self, progress: Callable[[int, int], object] | None = None) -> int:
        """Store again every current record whose encoding is out of date; return their number.

        Others can read and write meanwhile; the tids of those objects change. Older revisions do
        not change, nor do those outside a version. *progress* is called with (objects examined,
        all objects). `Unsupported` if the base does not list its transactions.
        """
        if not IStorageIteration.providedBy(self.base):
            raise Unsupported(f"{self.base.getName()} does not list its objects")
        listed = (
            revision.oid for transaction in self.base.iterator() for revision in transaction
            if revision.data is None or self.codec.is_object(revision.data)
        )
        oids = list(dict.fromkeys(listed))
        count = 0
        for begin in range(0, len(oids), _AT_ONCE):
            some = oids[begin : begin + _AT_ONCE]
            count += self.commit_data(lambda some=some: self._as_now(some))  # type: ignore[misc]
            if progress is not None:
                progress(begin + len(some), len(oids))
        return count

    def _as_now(self, oids: Iterable[Oid]) -> Iterator[Change]:
        codec = self.codec
        for oid in oids:
            found = self.current_data(oid)
            if found is None:
                continue
            data, tid, version = found
            if codec.is_object(data) and not codec.is_as_written(data):
                anew = codec.encode(oid, codec.decode(oid, data))
                if anew != data:
                    yield oid, tid, anew, version

    def current_data(self, oid: Oid) -> tuple[bytes, Tid, str] | None:
        """Return (the base's data, tid, version) of an object's current revision."""
        try:
            has_versions = IStorageVersions.providedBy(self.base)
            version = self.base.modifiedInVersion(oid) if has_versions else ""
            found = self.base.loadBefore(oid, MAX_TID, *([version] if version else []))
        except POSKeyError:
            return None
        return None if found is None else (found[0], found[1], version)

    def commit_data(self, make: Callable[[], Iterable[Change]]) -> int:
        """Commit changes of the base's data; return their number. They are computed again after a
        conflict."""
        while True:
            changes = list(make())
            if not changes:
                return 0
            oids = [change[0] for change in changes]
            transaction = TransactionMetaData(description=f"rewritten: {self.codec.title}")
            try:
                self.base.tpc_begin(transaction)
                for oid, tid, data, version in changes:
                    self.base.store(oid, tid, data, version, transaction)
                self.base.tpc_vote(transaction)
                self.base.tpc_finish(transaction, lambda tid, oids=oids: self._tell(tid, oids))
            except (ConflictError, VersionLockError):
                self.base.tpc_abort(transaction)
                continue
            except BaseException:
                self.base.tpc_abort(transaction)
                raise
            return len(changes)

    def _tell(self, tid: Tid, oids: list[Oid]) -> None:
        self._db.invalidate(tid, oids)


@implementer(IDatabaseForStorage)
class _Decoding:
    """The database as the base sees it."""

    def __init__(self, codec: Codec, db: Any) -> None:
        self._codec = codec
        self._db = db

    def resolve(
        self, oid: Oid, old: bytes | None, committed: bytes, new: bytes, serials: tuple[Tid, Tid]
    ) -> bytes:
        """Merge decoded records; return data."""
        codec = self._codec
        before = None if old is None else codec.decode(oid, old)
        now, ours = codec.decode(oid, committed), codec.decode(oid, new)
        return codec.encode(oid, self._db.resolve(oid, before, now, ours, serials))

    def is_equal(self, oid: Oid, one: bytes | None, other: bytes | None) -> bool:
        """Whether two records are equal, also in different encodings."""
        if one is None or other is None or one == other:
            return one == other
        decoded = (self._codec.decode(oid, data) for data in (one, other))
        return bool(self._db.is_equal(oid, *decoded))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._db, name)


class _Transaction:
    """A transaction of the base, with decoded records."""

    def __init__(self, codec: Codec, transaction: Any) -> None:
        self._codec = codec
        self._transaction = transaction

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transaction, name)

    def __iter__(self) -> Iterator[RevisionRecord]:
        codec = self._codec
        for revision in self._transaction:
            oid, data = revision.oid, revision.data
            if data is None or codec.is_object(data):
                yield RevisionRecord(
                    oid, revision.tid, None if data is None else codec.decode(oid, data),
                    getattr(revision, "version", ""), revision.data_txn,
                )
