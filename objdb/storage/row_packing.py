"""Packing rows: mark the rows that stay, then remove the others, a batch at a time.

    mark      everything reachable: of each object, the row that was current at the pack time
    status    transactions up to then become packed: they cannot be undone any more
    remove    the other rows up to then; between two batches others commit, and objects reachable
              from those transactions are marked too
    forget    transactions without rows

Stopped anywhere, a pack leaves a consistent database, with some garbage for the next one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from objdb.errors import Unsupported
from objdb.ids import NO_TID, ROOT_OID, Oid, Tid, next_tid
from objdb.storage.amending import Amender, Rows, Transactions
from objdb.storage.packing import (
    Elsewhere,
    OidSet,
    Pacer,
    PackOptions,
    PackResult,
    References,
    pack_tid,
    require_none_missing,
)
from objdb.storage.rows import Row

_BATCH = 1000  # rows

Chain = list[tuple[Tid, int]]


def pack_rows(amender: Amender, options: PackOptions) -> PackResult:
    """Pack the engine of *amender*."""
    engine = amender.engine
    if options.keep_old:
        raise Unsupported(
            f"{engine.name} is packed in place: there is no old file to keep. Copy or back it "
            "up first"
        )
    last = engine.visibility.tid
    pack_to = min(pack_tid(options.moment, last), last)
    pacer = Pacer(options.progress, options.require_wanted)
    references = options.references if options.gc else None
    run = RowPack(amender, pack_to, references, pacer, options.elsewhere)
    return run.estimate(options.roots) if options.dry_run else run.run(options.roots)


class _Marks:
    """The revisions up to *pack_to* that stay. `reached` has the oids, `beside` the rows that stay
    of an object besides the one that was current then."""

    def __init__(self, engine: Any, pack_to: Tid, references: References | None) -> None:
        self._engine = engine
        self._bound = next_tid(pack_to)
        self._references = references
        self._has_versions = engine.had_versions()
        self.reached = OidSet()
        self.count = 0
        self.beside: dict[Oid, set[Tid]] = {}
        self.missing: list[Oid] = []  # referenced objects that do not exist

    def reach(self, oids: Iterable[Oid], pacer: Pacer | None = None) -> None:
        """Mark these objects, and all objects reachable from them."""
        waiting = list(oids)
        while waiting:
            oid = waiting.pop()
            if self.reached.add(oid):
                self.count += 1
                staying = self._staying(oid)
                if not staying and self._engine.after(oid, NO_TID) is None:
                    self.missing.append(oid)
                for row in staying:
                    waiting += self.referred(row)
            if pacer is not None:
                pacer.report("mark", self.count, self.count + len(waiting))
                pacer.pace()

    def referred(self, row: Row) -> Iterable[Oid]:
        """Return the oids that a row refers to."""
        data = row.data
        if data is None or self._references is None:
            return ()
        return self._references(data)

    def _staying(self, oid: Oid) -> list[Row]:
        """Return the rows that stay of an object: the current one; if that is in a version, the
        one seen outside; and orphans."""
        row = self._engine.before(oid, self._bound)
        if not self._has_versions:
            return [] if row is None else [row]
        beside = self._orphans(oid, row)
        if row is not None:
            beside |= self._outside(oid, row)
        rows = [self._engine.row(oid, tid) for tid in beside]
        if row is not None:
            rows.append(row)
        if beside:
            self.beside[oid] = beside
        return [found for found in rows if found is not None]

    def _orphans(self, oid: Oid, row: Row | None) -> set[Tid]:
        """Return the rows that later ones restore to a version, and those outside then."""
        found: set[Tid] = set()
        before, later = row, self._engine.after(
            oid, NO_TID if row is None else row.tid
        )
        while later is not None:
            is_back = later.version and before is not None and not before.version
            if is_back and later.back_pointer is not None and later.back_pointer < self._bound:
                target = self._engine.row(oid, later.back_pointer)
                if target is not None and target.version:
                    found |= {target.tid} | self._outside(oid, target)
            before, later = later, self._engine.after(oid, later.tid)
        return found

    def _outside(self, oid: Oid, row: Row) -> set[Tid]:
        outside = None if row.outside is None else self._engine.row(oid, row.outside)
        return set() if outside is None or not outside.exists else {outside.tid}

    def stays(self, oid: Oid, chain: list[Tid], exists: bool) -> set[Tid]:
        """Return the revisions in *chain*, those up to the pack time, that stay; *exists*: whether
        the last of them has data."""
        if oid not in self.reached:
            return set()
        beside = self.beside.get(oid, set())
        return beside | {chain[-1]} if beside or exists else beside


class RowPack:
    """One pack through *amender*, up to *pack_to*; without *references* it keeps all existing
    objects."""

    def __init__(
        self, amender: Amender, pack_to: Tid, references: References | None, pacer: Pacer,
        elsewhere: Elsewhere,
    ) -> None:
        from BTrees.QQBTree import QQTreeSet  # imported only for a pack

        self._amender = amender
        self._engine = amender.engine
        self._pack_to = pack_to
        self._collects = references is not None
        self._marks = _Marks(amender.engine, pack_to, references)
        self._pacer = pacer
        self._elsewhere = elsewhere
        self._seen = pack_to  # the last transaction whose objects are marked
        self._had_some = QQTreeSet()  # transactions that had revisions at the start of the pack
        self._lost_some: set[Tid] = set()  # transactions that have lost revisions

    def run(self, roots: Callable[[], Iterable[Oid]]) -> PackResult:
        """Pack; *roots* gives further oids that stay."""
        engine = self._engine
        before = engine.size(), engine.count()
        self._mark(roots)
        going: list[Oid] = []
        for done, (oid, chain) in enumerate(engine.chains()):
            goes = self._going(oid, chain)
            if goes:
                self._drops(chain, goes)
                going.append(oid)
            self._had_some.update([int.from_bytes(tid, "big") for tid, _ in chain])
            self._pacer.report("copy", done, before[1])
            self._pacer.pace()
        self._pacer.report("copy", before[1], before[1])
        # From here on the pack is not cancelled.
        with self._amender.alone():
            self._amender.note_packed(self._pack_to)
        self._mark_packed()
        for i in range(0, len(going), _BATCH):
            self._remove(going[i : i + _BATCH])
        self._forget_transactions()
        return PackResult(before[0], engine.size(), before[1], engine.count())

    def estimate(self, roots: Callable[[], Iterable[Oid]]) -> PackResult:
        """Return an estimate of the result of `run`."""
        engine = self._engine
        size, count = engine.size(), engine.count()
        self._mark(roots)
        freed = gone = 0
        for oid, chain in engine.chains():
            going = self._going(oid, chain)
            freed += sum(bytes_ for _, bytes_ in going)
            gone += self._drops(chain, going)
        return PackResult(size, max(size - freed, 0), count, count - gone)

    def _mark(self, roots: Callable[[], Iterable[Oid]]) -> None:
        engine, marks = self._engine, self._marks
        if self._collects:
            marks.reach([ROOT_OID, *roots()], self._pacer)
        else:
            marks.reach((oid for oid, _ in engine.chains()), self._pacer)
        self._mark_later()
        self._pacer.report("mark", marks.count, marks.count)

    def _drops(self, chain: Chain, going: Chain) -> bool:
        """Return whether all of an object is removed; `PackError` if it exists and another object
        is missing, from which it may have been reachable."""
        goes = len(going) == len(chain)
        if goes and chain[-1][1] > 0 and self._collects:
            missing = [oid for oid in self._marks.missing if not self._elsewhere(oid)]
            require_none_missing(self._engine.name, missing)
        return goes

    def _mark_later(self) -> None:
        """Mark the objects that transactions after the pack time changed or refer to."""
        engine, marks = self._engine, self._marks
        for transaction in engine.transactions(next_tid(self._seen), b"\xff" * 8):
            for oid in transaction.oids:
                row = engine.row(oid, transaction.tid)
                marks.reach([oid, *(() if row is None else marks.referred(row))])
            self._seen = transaction.tid

    def _mark_packed(self) -> None:
        """Set the transactions up to the pack time to packed, so that they cannot be undone."""
        packed: Transactions = {}
        # The oldest first: wherever this stops, all transactions before a packed one are packed.
        for transaction in self._engine.transactions(NO_TID, self._pack_to):
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
        """Remove the rows of these objects that do not stay, by their current state."""
        with self._amender.alone():
            self._mark_later()
            edits: Rows = {}
            for oid in oids:
                edits |= self._edits(oid)
            self._amender.count += 1
            self._amender.amend(edits, {})
        self._lost_some.update(tid for (_, tid), row in edits.items() if row is None)

    def _edits(self, oid: Oid) -> Rows:
        """Return the changes that remove an object's rows: of those rows, and of the first row
        after each gap between rows that stay."""
        engine = self._engine
        rows: list[Row] = []
        row = engine.after(oid, NO_TID)
        while row is not None and row.tid <= self._pack_to:
            rows.append(row)
            row = engine.after(oid, row.tid)
        if not rows:
            return {}
        stays = self._marks.stays(oid, [row.tid for row in rows], rows[-1].exists)
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
        """Remove the transactions without rows; the last one up to the pack time stays."""
        engine = self._engine
        newest = engine.transactions(NO_TID, self._pack_to, newest_first=True)
        last = next(newest, None)
        changed: Transactions = {}
        for row in engine.transactions(NO_TID, self._pack_to):
            # An interrupted pack may have left transactions without revisions.
            had_some = row.oids and int.from_bytes(row.tid, "big") in self._had_some
            if had_some and row.tid not in self._lost_some:
                continue
            left = [oid for oid in row.oids if engine.row(oid, row.tid) is not None]
            if left or (last is not None and row.tid == last.tid):
                changed[row.tid] = row._replace(oids=left)
            else:
                changed[row.tid] = None
            if len(changed) >= _BATCH:
                self._amend({}, changed)
                changed = {}
        self._amend({}, changed)

    def _amend(self, rows: Rows, transactions: Transactions) -> None:
        with self._amender.alone():
            self._amender.amend(rows, transactions)
