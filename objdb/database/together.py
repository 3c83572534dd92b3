"""All that takes part in one transaction for one database commits together: several connections,
and requests to undo.

    each participant   tpc_begin        commit       tpc_vote        tpc_finish
                           │ the first    │ all          │ the last      │ the first
    the storage        tpc_begin        store, …     tpc_vote        tpc_finish

The storage gets one transaction. Were there two, the second would wait at its vote for the first
to finish, which it never would.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from objdb.errors import ConnectionStateError
from objdb.ids import Oid, Tid, format_oid


class StorageCommit:
    """The one transaction of *db*'s storage that the participants of a transaction share.

    Participants, and the thread they are in, are those of one transaction.
    """

    def __init__(self, db: Any, metadata: Any) -> None:
        self.db = db
        self._storage = db.storage
        self.metadata = metadata
        self._begun = 0
        self._voted: list[tuple[Iterable[Oid], Callable[[Tid], object]]] = []
        self.resolved: list[Oid] = []  # when all have voted
        self._tid: Tid | None = None

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
            self.resolved = self._storage.tpc_vote(self.metadata) or []

    def finish(self) -> Tid:
        """Commit, for all; return the tid."""
        if self._tid is None:
            self._tid = self._storage.tpc_finish(self.metadata, self._tell)
        return self._tid

    def _tell(self, tid: Tid) -> None:
        for _, committed in self._voted:
            committed(tid)

    def abort(self) -> None:
        """Take back what the storage has of the transaction."""
        self._storage.tpc_abort(self.metadata)
