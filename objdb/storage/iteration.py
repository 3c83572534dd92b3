"""The transactions that a storage's `iterator()` yields, and their revisions."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

from objdb.ids import Oid, Tid, time_from_tid
from objdb.storage.extension import loads_extension


class _Revision(NamedTuple):
    oid: Oid
    tid: Tid
    data: bytes | None
    version: str = ""
    data_txn: Tid | None = None


class RevisionRecord(_Revision):
    """One revision in a transaction. `data` is None for a tombstone; `data_txn` is the back
    pointer: the tid of the revision whose data this one has, or None.

    Fields can be set, as wrappers written for ZODB do; the tuple itself does not change.
    """

    def __setattr__(self, name: str, value: Any) -> None:
        if name not in self._fields:
            raise AttributeError(f"a RevisionRecord has no {name!r}")
        self.__dict__[name] = value
        object.__setattr__(self, "__class__", _ChangedRecord)


class _ChangedRecord(RevisionRecord):
    """A `RevisionRecord` with fields set; others need not check for that."""


def _changed(index: int, name: str) -> property:
    return property(lambda self: self.__dict__.get(name, self[index]))


for _index, _name in enumerate(_Revision._fields):
    setattr(_ChangedRecord, _name, _changed(_index, _name))


@dataclass(slots=True, unsafe_hash=True)
class TransactionRecord:
    """One transaction: iterating over it yields its `RevisionRecord`s.

    `status` is one character: space, or `p` for a packed transaction. `user` and `description`
    are bytes (UTF-8), `extension_bytes` the pickled dict of further facts. `has_checksum` says
    whether the transaction has a checksum, which was then verified; None for a storage in memory.
    """

    tid: Tid
    status: str
    user: bytes
    description: bytes
    extension_bytes: bytes
    records: Iterable[RevisionRecord]
    has_checksum: bool | None = None

    @classmethod
    def of(
        cls, tid: Tid, status: str, metadata: Any, records: Iterable[RevisionRecord]
    ) -> TransactionRecord:
        """Return the record of the transaction that *metadata* describes."""
        return cls(
            tid, status, metadata.user, metadata.description, metadata.extension_bytes, records
        )

    @property
    def extension(self) -> dict[Any, Any]:
        """The further facts of the transaction, see `objdb.storage.extension`."""
        return loads_extension(self.extension_bytes)

    def __iter__(self) -> Iterator[RevisionRecord]:
        return iter(self.records)


def in_range(tid: Tid, start: Tid | None, stop: Tid | None) -> bool:
    """Whether *start* <= *tid* <= *stop*; None leaves that end open."""
    return (start is None or start <= tid) and (stop is None or tid <= stop)


def history_entry(tid: Tid, metadata: Any, size: int, version: str = "") -> dict[str, Any]:
    """Return the dict that `history()` lists for a revision of *size* bytes, in *version*.

    *metadata* has `user`, `description` (bytes) and `extension` (a dict).
    """
    return {
        **metadata.extension,
        "tid": tid,
        "serial": tid,
        "time": time_from_tid(tid),
        "user_name": metadata.user.decode("utf-8", "replace"),
        "description": metadata.description.decode("utf-8", "replace"),
        "size": size,
        "version": version,
    }


def undo_entry(transaction_id: str, tid: Tid, metadata: Any, size: int) -> dict[str, Any]:
    """Return the dict that `undoLog()` lists for a transaction of *size* bytes; *metadata* is
    as for `history_entry`."""
    return {
        **metadata.extension,
        "id": transaction_id,
        "time": time_from_tid(tid),
        "user_name": metadata.user.decode("utf-8", "replace"),
        "description": metadata.description.decode("utf-8", "replace"),
        "size": size,
    }
