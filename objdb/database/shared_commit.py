"""Everything in a transaction that touches one database shares one storage transaction: several
connections, and requests (to undo, to commit or abort a version), one of each kind.

    each participant   tpc_begin        commit       tpc_vote        tpc_finish
                           │ the first    │ all          │ the last      │ the first
    the storage        tpc_begin        store, …     tpc_vote        tpc_finish

The storage gets one transaction. Were there two, the second would wait at its vote for the first
to finish, which it never would.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, TypeVar

import transaction
from transaction.interfaces import IDataManager, ISavepointDataManager
from zope.interface import implementer

from objdb.errors import ConnectionStateError
from objdb.ids import Oid, Tid, format_oid


class StorageCommit:
    """The one transaction of *db*'s storage that the participants of a transaction share.

    Participants, and the thread they are in, are those of one transaction, *txn*.
    """

    def __init__(self, db: Any, metadata: Any, txn: Any) -> None:
        self.db = db
        self._storage = db.storage
        self._txn = txn
        self.metadata = metadata
        self._begun = 0
        self._voted: list[tuple[Iterable[Oid], Callable[[Tid], object]]] = []
        self.resolved: list[Oid] = []  # when all have voted
        self._tid: Tid | None = None
        self.committed_tid: Tid | None = None  # as soon as it is known to be committed

    def begin(self) -> Any:
        """Take part; return what the storage calls the transaction."""
        if not self._begun:
            self._storage.tpc_begin(self.metadata)
        self._begun += 1
        return self.metadata

    def vote(self, oids: Iterable[Oid], committed: Callable[[Tid], object]) -> None:
        """Vote, having stored *oids*; `committed(tid)` is called before anyone can see them.
        Raises what the storage does; `ConnectionStateError` where two stored the same object."""
        for others, _ in self._voted:
            both = set(others).intersection(oids)
            if both:
                oid = min(both)
                raise ConnectionStateError(
                    f"object {format_oid(oid)} was changed through two connections in one "
                    "transaction. Change it through one of them"
                )
        self._voted.append((oids, committed))
        if len(self._voted) == self._begun:
            metadata = self.metadata
            if self._begun == len(self._txn._resources):  # nobody's vote is behind this one
                metadata.committed = self._committed_at_vote
            try:
                self.resolved = self._storage.tpc_vote(metadata) or []
            finally:
                metadata.committed = None  # nothing waits for the garbage collector

    def _committed_at_vote(self, tid: Tid, resolved: list[Oid]) -> None:
        self.resolved = resolved
        self._tell(tid)

    def finish(self) -> Tid:
        """Commit, for all; return the tid."""
        if self._tid is None:
            self._tid = self._storage.tpc_finish(self.metadata, self._tell)
        return self._tid

    def _tell(self, tid: Tid) -> None:
        self.committed_tid = tid
        for _, committed in self._voted:
            committed(tid)

    def abort(self) -> None:
        """Take back what the storage has of the transaction."""
        self._storage.tpc_abort(self.metadata)


@implementer(IDataManager, ISavepointDataManager)
class StorageRequest:
    """Has the storage of *db* do what was `asked`, when the transaction it is in commits."""

    transaction_manager = None

    def __init__(self, db: Any, txn: Any) -> None:
        self._db = db
        self.asked: list[Any] = []
        self._commit: StorageCommit | None = None
        self._oids: list[Oid] = []
        txn.join(self)

    if TYPE_CHECKING:  # what a kind of request is about

        def _stage(self, metadata: Any) -> Iterable[Oid]: ...
        def _tell(self, tid: Tid, oids: list[Oid]) -> None: ...

    def db(self) -> Any:
        """Return the database."""
        return self._db

    def sortKey(self) -> str:
        """Return the order in a two-phase commit: behind the database's connections."""
        return f"{self._db.storage.sortKey()}:~{id(self)}"

    def tpc_begin(self, txn: Any) -> None:
        """Begin, with others of the database."""
        self._commit = self._db.storage_commit(txn)
        self._commit.begin()

    def commit(self, txn: Any) -> None:
        """Let the storage stage what was asked for. `UndoError`, `VersionError`."""
        assert self._commit is not None
        self._oids = list(dict.fromkeys(self._stage(self._commit.metadata)))

    def tpc_vote(self, txn: Any) -> None:
        """Vote. Raises what `commit` does, when others changed the objects meanwhile."""
        assert self._commit is not None
        self._commit.vote(self._oids, self._committed)

    def _committed(self, tid: Tid) -> None:
        assert self._commit is not None
        # `resolved` has the objects that the storage found at the vote.
        self._tell(tid, [*self._oids, *self._commit.resolved])

    def tpc_finish(self, txn: Any) -> None:
        """Commit."""
        assert self._commit is not None
        self._commit.finish()

    def abort(self, txn: Any) -> None:
        """Forget what was asked for, and take back what the storage has of it."""
        self.asked = []
        if self._commit is not None:
            self._commit.abort()

    tpc_abort = abort

    def savepoint(self) -> _RequestSavepoint:
        """Return the way back to what is asked for now."""
        return _RequestSavepoint(self)


class _RequestSavepoint:
    def __init__(self, request: StorageRequest) -> None:
        self._request = request
        self._asked = list(request.asked)

    def rollback(self) -> None:
        self._request.asked = list(self._asked)


Request = TypeVar("Request", bound=StorageRequest)


def request_for(db: Any, txn: Any, kind: type[Request]) -> Request:
    """Return the request of a kind that is in *txn* (default: the thread's current transaction)
    for *db*; a new one if there is none."""
    txn = transaction.get() if txn is None else txn
    for participant in txn._resources:
        if type(participant) is kind and participant.db() is db:
            found: Request = participant
            return found
    return kind(db, txn)
