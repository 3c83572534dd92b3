"""Going through what a storage has, a call at a time, as ZODB's tools and servers do."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

from objdb.errors import POSKeyError, require_at_least
from objdb.ids import Oid, Tid


class RecordWalk:
    """Answers `record_iternext` for *storage*: each call says which object the next one is about,
    and is given that again. A walk that goes on where the last call was takes a step; another one
    looks from the beginning."""

    def __init__(self, storage: Any) -> None:
        self._storage = storage
        self._ahead: tuple[Oid, Iterator[Oid]] | None = None  # what comes next, and then

    def step(self, oid: Oid | None) -> tuple[Oid, Tid, bytes, Oid | None]:
        """Return (oid, tid, record, following oid or None) of *oid*, None: of the first object;
        `POSKeyError` if there is none."""
        ahead, self._ahead = self._ahead, None
        if ahead is None or ahead[0] != oid:
            oids = self._existing()
            found = next(oids if oid is None else (o for o in oids if o == oid), None)
            if found is None:
                raise POSKeyError(oid or bytes(8), database=self._storage.getName())
            ahead = found, oids
        oid, oids = ahead
        record, tid = self._storage.load(oid)
        following = next(oids, None)
        if following is not None:
            self._ahead = following, oids
        return oid, tid, record, following

    def _existing(self) -> Iterator[Oid]:
        """Yield the oids of the objects that have a record outside of versions."""
        for oid in self._storage._iter_oids():
            try:
                self._storage.load(oid)
            except POSKeyError:
                continue
            yield oid


def last_transactions(storage: Any, count: int) -> list[tuple[Tid, list[Oid]]]:
    """Return (tid, oids that it changed) of the last *count* transactions, the oldest first.
    `UsageError` for what is no number of them."""
    require_at_least(0, count=count)
    newest: Iterable[tuple[Tid, list[Oid]]] = storage._iter_newest()
    return list(islice(newest, count))[::-1]
