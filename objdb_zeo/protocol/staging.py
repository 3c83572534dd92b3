"""A transaction of a client, before its vote.

    tpc_begin ─► STAGED ─► vote ─► VOTING ─► VOTED ─► tpc_finish ─► FINISHING ─► gone
                   ▲                  │ │       ╰───── tpc_abort ──────────────► gone
                   ╰── conflicts ─────╯ ╰──── objdb.commit ─────► FINISHING ─► gone

What a client stages is kept here. At the vote all of it goes to the storage at once, so a storage
that locks when a transaction begins is locked for no longer than the vote takes. After conflicts,
which the client resolves, the storage's transaction is aborted, and what is staged is kept.
"""

from __future__ import annotations

import enum
from typing import Any

from objdb.errors import StorageTransactionError
from objdb.ids import Oid, Tid
from objdb.storage.commit import TransactionMetaData

_OVERHEAD_BYTES = 250  # of an entry, besides its record


class Phase(enum.Enum):
    """The phase of a client's transaction."""

    STAGED = "staged"
    VOTING = "voting"
    VOTED = "voted"
    FINISHING = "finishing"


class ClientTransaction:
    """What a client staged in the transaction that it calls *id*."""

    def __init__(
        self, id: Any, user: bytes, description: bytes, extension: dict[Any, Any], tid: Tid | None,
        status: str,
    ) -> None:
        self.id = id
        self.phase = Phase.STAGED
        self.is_dropped = False  # the client is gone; what is under way is aborted when it ends
        self.changed: set[Oid] = set()  # by the vote
        self.staged_bytes = 4 * _OVERHEAD_BYTES + len(user) + len(description)
        self.excess = ""  # why what was staged is dropped, and the vote is refused
        self.user, self.description = user, description
        self.extension: dict[Any, Any] | bytes = extension  # as a pickle, where the client has one
        self._tid, self._status = tid, status
        self._stores: dict[Oid, tuple[Tid, bytes]] = {}
        self._restores: list[tuple[Oid, Tid, bytes | None, Tid | None]] = []
        self._deletes: dict[Oid, Tid] = {}
        self._checks: dict[Oid, Tid] = {}
        self._undos: list[Any] = []
        self.unchanged_since: Tid | None = None
        self.metadata: TransactionMetaData | None = None  # of the storage's transaction
        self.announced: Tid | None = None  # its tid, once others were told
        self.committed: Tid | None = None  # its tid, once it is durable
        self.stop_timer: Any = None

    def store(self, oid: Oid, serial: Tid, record: bytes) -> None:
        """Stage a record; the last of several for one oid counts."""
        self._stores[oid] = serial, record
        self._add(len(record))

    def restore(self, oid: Oid, tid: Tid, record: bytes | None, prev_txn: Tid | None) -> None:
        """Stage a copied revision."""
        self._restores.append((oid, tid, record, prev_txn))
        self._add(len(record or b""))

    def delete(self, oid: Oid, serial: Tid) -> None:
        """Stage a deletion."""
        self._deletes[oid] = serial
        self._add(0)

    def check(self, serials: dict[Oid, Tid]) -> None:
        """Stage checks of what was read."""
        self._checks.update(serials)
        self._add(len(serials) * _OVERHEAD_BYTES)

    def undo(self, transaction_id: Any) -> None:
        """Stage an undo."""
        self._undos.append(transaction_id)
        self._add(0)

    def _add(self, size: int) -> None:
        self.staged_bytes += _OVERHEAD_BYTES + size
        if self.excess:
            self._drop_entries()

    def drop(self, limit: int) -> None:
        """Drop what is staged, and all that will be: it is more than *limit*, in bytes."""
        self.excess = (
            f"the transaction, with others of this client that are under way, stages more than "
            f"{limit:,} bytes. Commit less at once, or serve with a larger --staged-bytes"
        )
        self._drop_entries()

    def _drop_entries(self) -> None:
        for entries in (self._stores, self._restores, self._deletes, self._checks, self._undos):
            entries.clear()
        self.extension = {}
        self.staged_bytes = 0

    @property
    def size(self) -> int:
        """Return about how much memory it takes, in bytes."""
        return self.staged_bytes + len(self.extension)

    @property
    def has_undos(self) -> bool:
        """Whether it undoes anything."""
        return bool(self._undos)

    def require(self, phase: Phase) -> None:
        """Raise `StorageTransactionError` unless the transaction is in *phase*."""
        if self.phase is not phase:
            raise StorageTransactionError(
                f"the transaction is {self.phase.value}, but the call requires one that is "
                f"{phase.value}"
            )

    def vote(self, storage: Any) -> list[Oid]:
        """Do all of it in a transaction of *storage*, and vote; return the oids that the storage
        changed by itself. Whatever is raised, the storage's transaction is aborted."""
        metadata = TransactionMetaData(self.user, self.description, self.extension)
        self.metadata = metadata
        self.changed = {*self._stores, *self._deletes, *(oid for oid, *_ in self._restores)}
        made: set[Oid] = set()
        try:
            storage.tpc_begin(metadata, self._tid, self._status)
            for oid, (serial, record) in self._stores.items():
                storage.store(oid, serial, record, "", metadata)
            for oid, tid, data, prev_txn in self._restores:
                storage.restore(oid, tid, data, "", prev_txn, metadata)
            for oid, serial in self._deletes.items():
                storage.deleteObject(oid, serial, metadata)
            self._check(storage, metadata)
            for transaction_id in self._undos:
                made.update(storage.undo(transaction_id, metadata)[1])
            made.update(storage.tpc_vote(metadata) or ())
        except BaseException:
            self.abort(storage)
            raise
        self.changed |= made
        return sorted(made)

    def _check(self, storage: Any, metadata: TransactionMetaData) -> None:
        if self.unchanged_since is not None:
            storage.checkReads(self._checks, self.unchanged_since, metadata)
            return
        for oid, serial in self._checks.items():
            storage.checkCurrentSerialInTransaction(oid, serial, metadata)

    def abort(self, storage: Any) -> None:
        """Abort the storage's transaction, if it has begun."""
        metadata, self.metadata = self.metadata, None
        if metadata is not None:
            storage.tpc_abort(metadata)
