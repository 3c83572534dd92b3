"""Packing tables: what stays is marked, then the rest is taken away, a batch at a time.

    mark      everything that is reached: of each object, the row that was current at the pack time
    status    transactions up to then are packed: they can be undone no more
    remove    the other rows up to then; between two batches others commit, and what those reach
              is marked as well
    forget    transactions that have nothing left

Stopped anywhere, a database is left that holds together, with some garbage for the next pack.
"""

from __future__ import annotations

import threading
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

from objdb.errors import PackError, Unsupported
from objdb.ids import NO_TID, ROOT_OID, Oid, Tid, next_tid
from objdb.storage.packing import (
    Elsewhere,
    OidSet,
    Pacer,
    PackResult,
    Progress,
    References,
    no_roots,
    nowhere_else,
    pack_tid,
    require_none_missing,
)
from objdb.storage.tables.rows import Place, Row, TransactionRow
from objdb.storage.tables.view import View

_BATCH = 1000  # rows

Chain = list[tuple[Tid, int]]
Rows = dict[tuple[Oid, Tid], "Row | None"]
Transactions = dict[Tid, "TransactionRow | None"]


class _Marks:
    """What stays of the revisions up to *pack_to*. `reached` has the oids, `beside` what stays of
    an object besides the row that was current then."""

    def __init__(self, storage: TablePack, pack_to: Tid, references: References | None) -> None:
        self._storage = storage
        self._bound = next_tid(pack_to)
        self._references = references
        self._has_versions = storage._has_versions()
        self.reached = OidSet()
        self.count = 0
        self.beside: dict[Oid, set[Tid]] = {}
        self.missing: list[Oid] = []  # what is referred to, and does not exist

    def reach(self, oids: Iterable[Oid], pacer: Pacer | None = None) -> None:
        """Mark these objects, and what can be reached from them."""
        waiting = list(oids)
        while waiting:
            oid = waiting.pop()
            if self.reached.add(oid):
                self.count += 1
                staying = self._staying(oid)
                if not staying and self._storage._row_after(oid, NO_TID) is None:
                    self.missing.append(oid)
                for row in staying:
                    waiting += self.referred(row)
            if pacer is not None:
                pacer.report("mark", self.count, self.count + len(waiting))
                pacer.pace()

    def referred(self, row: Row) -> Iterable[Oid]:
        """Return what a row refers to."""
        if row.data is None or self._references is None:
            return ()
        return self._references(row.data)

    def _staying(self, oid: Oid) -> list[Row]:
        """Return the rows that stay of an object: the one that was current; if that is in a
        version, the one that is seen outside; and orphans."""
        row = self._storage._row_before(oid, self._bound)
        if not self._has_versions:
            return [] if row is None else [row]
        beside = self._orphans(oid, row)
        if row is not None:
            beside |= self._outside(oid, row)
        rows = [self._storage._row(oid, tid) for tid in beside]
        if row is not None:
            rows.append(row)
        if beside:
            self.beside[oid] = beside
        return [found for found in rows if found is not None]

    def _orphans(self, oid: Oid, row: Row | None) -> set[Tid]:
        """Return the rows that later ones bring back to a version, and what was outside."""
        found: set[Tid] = set()
        before, later = row, self._storage._row_after(
            oid, NO_TID if row is None else row.tid
        )
        while later is not None:
            is_back = later.version and before is not None and not before.version
            if is_back and later.repeat is not None and later.repeat < self._bound:
                target = self._storage._row(oid, later.repeat)
                if target is not None and target.version:
                    found |= {target.tid} | self._outside(oid, target)
            before, later = later, self._storage._row_after(oid, later.tid)
        return found

    def _outside(self, oid: Oid, row: Row) -> set[Tid]:
        outside = None if row.outside is None else self._storage._row(oid, row.outside)
        return set() if outside is None or outside.data is None else {outside.tid}

    def stays(self, oid: Oid, chain: list[Tid], exists: bool) -> set[Tid]:
        """Return which of the revisions in *chain*, those up to the pack time, stay; *exists*:
        whether the last of them is data."""
        if oid not in self.reached:
            return set()
        beside = self.beside.get(oid, set())
        return beside | {chain[-1]} if beside or exists else beside


class TablePack:
    """The part of a storage of tables that packs it. See `TableStorage` for the primitives."""

    if TYPE_CHECKING:
        _name: str
        _last_tid: Tid
        _places_lock: threading.RLock
        _pack_lock: threading.Lock
        _views: WeakSet[View]

        def _alone(self) -> AbstractContextManager[None]: ...
        def _require_writable(self) -> None: ...
        def _require_open(self) -> None: ...
        def getSize(self) -> int: ...
        def __len__(self) -> int: ...
        def _row(self, oid: Oid, tid: Tid) -> Row | None: ...
        def _row_before(self, oid: Oid, tid: Tid) -> Row | None: ...
        def _row_after(self, oid: Oid, tid: Tid) -> Row | None: ...
        def _transaction(self, tid: Tid) -> TransactionRow | None: ...
        def _places_in_versions(self) -> list[Place]: ...
        def _iter_transactions(
            self, start: Tid, stop: Tid, newest_first: bool = False
        ) -> Iterator[TransactionRow]: ...

    _packed_tid: Tid = NO_TID  # since it was opened
    _packed_earlier: Tid | None = None  # before that; looked for when somebody asks
    _packs = 0

    @abstractmethod
    def _iter_chains(self) -> Iterator[tuple[Oid, Chain]]:
        """Yield each object's revisions."""

    def _has_versions(self) -> bool:
        """Return whether any revision, old or new, may be in a version. A pack is faster where it
        knows that none is."""
        return True

    @abstractmethod
    def _amend(self, rows: Rows, transactions: Transactions) -> None:
        """Change or remove rows and transactions, all or none."""

    @property
    def packed_tid(self) -> Tid:
        """See `IStoragePacked`."""
        if self._packed_earlier is None:
            self._packed_earlier = self._last_packed()
        return max(self._packed_tid, self._packed_earlier)

    def _last_packed(self) -> Tid:
        """Return the tid of the last transaction that is packed, zeros if none is; they are the
        first ones."""
        first = next(self._iter_transactions(NO_TID, self._last_tid), None)
        if first is None or first.status != "p":
            return NO_TID
        found = self._iter_transactions(NO_TID, self._last_tid, newest_first=True)
        return next((row.tid for row in found if row.status == "p"), NO_TID)

    def _note_packed(self, tid: Tid) -> None:
        """Say that revisions up to *tid* may be gone, before they are. Alone."""
        self._packed_tid = max(self._packed_tid, tid)

    @property
    def _places(self) -> Any:
        return self._packs

    def pack(
        self, time: Any, referencesf: References, gc: bool = True, *,
        progress: Progress | None = None, keep_old: bool = False, dry_run: bool = False,
        roots: Callable[[], Iterable[Oid]] | None = None,
        elsewhere: Elsewhere | None = None,
    ) -> PackResult:
        """See `IStoragePackable`. There is no place to keep the old revisions in."""
        if dry_run:
            self._require_open()
        else:
            self._require_writable()
        if keep_old:
            raise Unsupported(
                f"{self._name} is packed in place: there is no old file to keep. Copy or back it "
                "up first"
            )
        if not self._pack_lock.acquire(blocking=False):
            raise PackError(f"{self._name} is being packed already. Wait until that has ended")
        try:
            pack_to = min(pack_tid(time, self._last_tid), self._last_tid)
            pacer = Pacer(progress, self._require_open)
            references = referencesf if gc else None
            run = _Pack(self, pack_to, references, pacer, elsewhere or nowhere_else)
            return run.estimate(roots or no_roots) if dry_run else run.run(roots or no_roots)
        finally:
            self._pack_lock.release()


class _Pack:
    """One pack of *storage*, up to *pack_to*; of all objects that exist, without *references*."""

    def __init__(
        self, storage: TablePack, pack_to: Tid, references: References | None, pacer: Pacer,
        elsewhere: Elsewhere,
    ) -> None:
        from BTrees.QQBTree import QQTreeSet  # not before somebody packs

        self._storage = storage
        self._pack_to = pack_to
        self._collects = references is not None
        self._marks = _Marks(storage, pack_to, references)
        self._pacer = pacer
        self._elsewhere = elsewhere
        self._seen = pack_to  # the last transaction whose objects are marked
        self._had_some = QQTreeSet()  # transactions that had revisions when this began
        self._lost_some: set[Tid] = set()  # those that have lost some

    def run(self, roots: Callable[[], Iterable[Oid]]) -> PackResult:
        storage = self._storage
        before = storage.getSize(), len(storage)
        self._mark(roots)
        going: list[Oid] = []
        for done, (oid, chain) in enumerate(storage._iter_chains()):
            goes = self._going(oid, chain)
            if goes:
                self._drops(chain, goes)
                going.append(oid)
            self._had_some.update(int.from_bytes(tid, "big") for tid, _ in chain)
            self._pacer.report("copy", done, before[1])
            self._pacer.pace()
        self._pacer.report("copy", before[1], before[1])
        # From here on it goes through to its end.
        with storage._places_lock, storage._alone():
            storage._note_packed(self._pack_to)
        self._mark_packed()
        for i in range(0, len(going), _BATCH):
            self._remove(going[i : i + _BATCH])
        self._forget_transactions()
        return PackResult(before[0], storage.getSize(), before[1], len(storage))

    def estimate(self, roots: Callable[[], Iterable[Oid]]) -> PackResult:
        """Return about what `run` would."""
        storage = self._storage
        size, count = storage.getSize(), len(storage)
        self._mark(roots)
        freed = gone = 0
        for oid, chain in storage._iter_chains():
            going = self._going(oid, chain)
            freed += sum(bytes_ for _, bytes_ in going)
            gone += self._drops(chain, going)
        return PackResult(size, max(size - freed, 0), count, count - gone)

    def _mark(self, roots: Callable[[], Iterable[Oid]]) -> None:
        storage, marks = self._storage, self._marks
        if self._collects:
            marks.reach([ROOT_OID, *roots()], self._pacer)
        else:
            marks.reach((oid for oid, _ in storage._iter_chains()), self._pacer)
        self._mark_later()
        self._pacer.report("mark", marks.count, marks.count)

    def _drops(self, chain: Chain, going: Chain) -> bool:
        """Return whether an object goes wholly; `PackError` if it exists and something else is
        missing, which may have led to it."""
        goes = len(going) == len(chain)
        if goes and chain[-1][1] > 0 and self._collects:
            missing = [oid for oid in self._marks.missing if not self._elsewhere(oid)]
            require_none_missing(self._storage._name, missing)
        return goes

    def _mark_later(self) -> None:
        """Mark what transactions after the pack time changed, and what they refer to."""
        storage, marks = self._storage, self._marks
        for transaction in storage._iter_transactions(next_tid(self._seen), b"\xff" * 8):
            for oid in transaction.oids:
                row = storage._row(oid, transaction.tid)
                marks.reach([oid, *(() if row is None else marks.referred(row))])
            self._seen = transaction.tid

    def _mark_packed(self) -> None:
        """Let no transaction up to the pack time be undone any more."""
        packed: Transactions = {}
        # The oldest first: wherever this is stopped, those before a packed one are packed.
        for transaction in self._storage._iter_transactions(NO_TID, self._pack_to):
            if transaction.status == "p":
                continue
            packed[transaction.tid] = transaction._replace(status="p")
            if len(packed) >= _BATCH:
                self._amend({}, packed)
                packed = {}
        self._amend({}, packed)

    def _going(self, oid: Oid, chain: Chain) -> Chain:
        upto = [entry for entry in chain if entry[0] <= self._pack_to]
        if not upto:
            return []
        stays = self._marks.stays(oid, [tid for tid, _ in upto], upto[-1][1] > 0)
        return [entry for entry in upto if entry[0] not in stays]

    def _remove(self, oids: Iterable[Oid]) -> None:
        """Remove of these objects what does not stay, as things are now."""
        storage = self._storage
        with storage._places_lock, storage._alone():
            self._mark_later()
            edits: Rows = {}
            for oid in oids:
                edits |= self._edits(oid)
            storage._packs += 1
            self._amend_held(edits, {})
        self._lost_some.update(tid for (_, tid), row in edits.items() if row is None)

    def _edits(self, oid: Oid) -> Rows:
        """Return what removing an object's rows that go changes: those, and the first after a
        gap between rows that stay."""
        storage = self._storage
        rows: list[Row] = []
        row = storage._row_after(oid, NO_TID)
        while row is not None and row.tid <= self._pack_to:
            rows.append(row)
            row = storage._row_after(oid, row.tid)
        if not rows:
            return {}
        stays = self._marks.stays(oid, [row.tid for row in rows], rows[-1].data is not None)
        edits: Rows = {}
        is_gap = False
        last: Row | None = None
        for each in rows if row is None else [*rows, row]:
            if each.tid <= self._pack_to and each.tid not in stays:
                edits[oid, each.tid] = None
                is_gap = True
            else:
                if is_gap and last is not None and not each.follows_gap:
                    edits[oid, each.tid] = each._replace(follows_gap=True)
                last, is_gap = each, False
        return edits

    def _forget_transactions(self) -> None:
        """Remove the transactions that have nothing left; the last one up to the pack time
        stays."""
        storage = self._storage
        newest = storage._iter_transactions(NO_TID, self._pack_to, newest_first=True)
        last = next(newest, None)
        changed: Transactions = {}
        for row in storage._iter_transactions(NO_TID, self._pack_to):
            # An earlier pack that was stopped may have left transactions without revisions.
            had_some = row.oids and int.from_bytes(row.tid, "big") in self._had_some
            if had_some and row.tid not in self._lost_some:
                continue
            left = [oid for oid in row.oids if storage._row(oid, row.tid) is not None]
            if left or (last is not None and row.tid == last.tid):
                changed[row.tid] = row._replace(oids=left)
            else:
                changed[row.tid] = None
            if len(changed) >= _BATCH:
                self._amend({}, changed)
                changed = {}
        self._amend({}, changed)

    def _amend(self, rows: Rows, transactions: Transactions) -> None:
        with self._storage._places_lock, self._storage._alone():
            self._amend_held(rows, transactions)

    def _amend_held(self, rows: Rows, transactions: Transactions) -> None:
        """Change rows, with the slot held; iterators go on showing what was there."""
        storage = self._storage
        if not rows and not transactions:
            return
        views = list(storage._views)
        if views:
            old_rows = {key: row for key in rows if (row := storage._row(*key)) is not None}
            found = ((tid, storage._transaction(tid)) for tid in transactions)
            old_transactions = {tid: row for tid, row in found if row is not None}
            for view in views:
                view.keep(old_rows, old_transactions)
        storage._amend(rows, transactions)
