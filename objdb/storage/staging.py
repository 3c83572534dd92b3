"""The writes and checks of one transaction in a storage, from `tpc_begin` to its end.

    Writes   oid -> record, with the revision that it is based on
    Plan     the results of requests: to undo a transaction, to commit or abort a version

A request is planned when it is made, from the revisions current then, and again at the vote if
those have changed.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from objdb.errors import RecordTooLargeError, UndoError, UsageError
from objdb.ids import Oid, Tid, format_oid
from objdb.storage.commit import Phase, TransactionMetaData
from objdb.storage.engine import IChained
from objdb.storage.rows import Current, Row, TransactionRow, new_row

# A transaction that stages more than this keeps its records in a temporary file.
SPOOL_BYTES = 32 * 1024 * 1024
MAX_RECORD_BYTES = 2**31 - 1


class Spooled(NamedTuple):
    """The place of a record in the temporary file of a large transaction."""

    position: int
    size: int


class Plan:
    """The requests of a transaction, and their results.

    requests   functions that stage their results, and return the oids
    results    of each object with a result, the revision current when it was planned
    emptied    of each version committed or aborted, the revisions current in it
    planned_at the last committed transaction, and the number of packs, when it was planned
    is_stale   not all results are staged any more
    """

    def __init__(self, planned_at: tuple[Tid, int]) -> None:
        self.requests: list[Callable[[], list[Oid]]] = []
        self.results: dict[Oid, Current] = {}
        self.emptied: dict[str, dict[Oid, Current]] = {}
        self.planned_at = planned_at
        self.is_stale = False


class Writes:
    """One transaction's writes. A record of None stands for a tombstone; or, with a back pointer,
    for the data of that revision."""

    def __init__(self, transaction: Any, tid: Tid | None = None, status: str = " ") -> None:
        self.transaction = transaction
        self.phase = Phase.BEGUN
        self.tid = tid
        self.status = status
        self.reads: dict[str, dict[Oid, Tid]] = {}  # the tids read, by version
        self.unchanged_since: Tid | None = None  # the tid that must be the last one at the vote
        # oid -> the tid of the revision that the staged one is based on (`NO_TID`: of a new
        # object), or None for a restored revision, which is not checked.
        self.bases: dict[Oid, Tid | None] = {}
        # Two dicts of bytes, unlike one of tuples, give the garbage collector nothing to visit.
        self._records: dict[Oid, bytes | Spooled | None] = {}
        self.record_bytes = 0  # of all records; 8 for each tombstone and back pointer
        self.back_pointers: dict[Oid, Tid] = {}
        self.pointers_at = 0  # number of packs before the back pointers of restored records
        self.versions: dict[Oid, str] = {}
        self.plan: Plan | None = None
        # Since the vote: the current revision of every object written, the resolved conflicts,
        # the engine's token.
        self.current: dict[Oid, Current | None] = {}
        self.locked: dict[Oid, str] = {}  # the versions of the current revisions
        self.resolved: list[Oid] = []
        self.token: Any = None
        self.held: list[Any] = []  # the commit slot's lock, while this transaction holds it
        self.ticket: Any = None  # its ticket in the group commit, once it is committed
        self.spool: Any = None

    def __len__(self) -> int:
        return len(self.bases)

    def write(
        self, oid: Oid, base_tid: Tid | None, record: bytes | None, version: str = ""
    ) -> None:
        """Stage a revision of *oid*; a second one for the same oid replaces the first."""
        if oid in self.bases:
            self._drop(oid)
        self.bases[oid] = base_tid
        self.record_bytes += 8 if record is None else len(record)
        if version:
            self.versions[oid] = version
        if self.record_bytes > SPOOL_BYTES and record is not None:
            self._records[oid] = self._to_spool(record)
        else:
            self._records[oid] = record

    def _drop(self, oid: Oid) -> None:
        self.require_not_planned(oid)
        self.back_pointers.pop(oid, None)
        self.versions.pop(oid, None)
        replaced = self.record(oid)
        self.record_bytes -= 8 if replaced is None else len(replaced)

    def point_back(self, oid: Oid, tid: Tid, packs: int) -> None:
        """Note that the staged record is also that of the revision *tid*; *packs* is the number
        of packs that have changed rows."""
        if not self.back_pointers:
            self.pointers_at = packs
        self.back_pointers[oid] = tid

    def drop_record(self, oid: Oid) -> None:
        """Drop the record of *oid*, keeping its back pointer."""
        record = self.record(oid)
        if record is not None:
            self.record_bytes -= len(record) - 8
            self._records[oid] = None

    # -- plans

    def write_result(
        self, oid: Oid, current: Current, record: bytes | None, back_pointer: Tid | None,
        version: str,
    ) -> None:
        """Stage the result of a request for *oid*, whose current revision is *current*; the
        result of a further request replaces it."""
        assert self.plan is not None
        self.plan.results.pop(oid, None)
        self.write(oid, current.tid, record, version)
        self.plan.results[oid] = current
        if back_pointer is not None:
            self.back_pointers[oid] = back_pointer

    def write_results(
        self, current: dict[Oid, Current], back_pointers: Mapping[Oid, Tid | None], version: str
    ) -> None:
        """Stage the results of a request for many objects, none of them staged yet: each gets the
        data of an older revision again, or, without a back pointer, becomes a tombstone."""
        assert self.plan is not None
        self.plan.results.update(current)
        self.bases.update({oid: found[0] for oid, found in current.items()})
        self._records.update(dict.fromkeys(current))
        self.record_bytes += 8 * len(current)
        self.back_pointers.update(
            {oid: tid for oid, tid in back_pointers.items() if tid is not None}
        )
        if version:
            self.versions.update(dict.fromkeys(current, version))

    def drop_results(self) -> None:
        """Drop the results of all requests, so that they can be planned again."""
        assert self.plan is not None
        for oid in self.plan.results:
            record = self.record(oid)
            self.record_bytes -= 8 if record is None else len(record)
            self.back_pointers.pop(oid, None)
            self.versions.pop(oid, None)
            del self.bases[oid], self._records[oid]
        self.plan.results.clear()
        self.plan.emptied.clear()

    def require_not_planned(self, oid: Oid) -> None:
        """Raise `UndoError` if this transaction undoes a change of *oid*, or commits or aborts
        the version it is in."""
        if self.plan is not None and oid in self.plan.results:
            raise UndoError(
                f"object {format_oid(oid)} cannot be changed in the transaction that undoes a "
                "change of it, or commits or aborts its version. Commit that first", oid=oid,
                reason="it is changed here as well",
            )

    # -- records

    def _to_spool(self, record: bytes) -> Spooled:
        if self.spool is None:
            self.spool = tempfile.TemporaryFile(prefix="objdb-commit-")
            for oid, kept in self._records.items():
                if isinstance(kept, bytes):
                    self._records[oid] = self._to_spool(kept)
        position = self.spool.seek(0, 2)
        self.spool.write(record)
        return Spooled(position, len(record))

    def _from_spool(self, place: Spooled) -> bytes:
        self.spool.seek(place.position)
        data: bytes = self.spool.read(place.size)
        return data

    def record(self, oid: Oid) -> bytes | None:
        """Return the staged record of *oid*."""
        record = self._records[oid]
        return self._from_spool(record) if isinstance(record, Spooled) else record

    def with_data(self, oids: Iterable[Oid]) -> list[Oid]:
        """Return those of *oids* whose staged record is not None."""
        staged = self._records
        return [oid for oid in oids if staged[oid] is not None]

    def records(self) -> Iterable[tuple[Oid, bytes | None]]:
        """Return (oid, record) in the order of staging, with one spooled record in memory at a
        time."""
        if self.spool is None:
            return self._records.items()  # type: ignore[return-value]
        return self._spooled_records()

    def _spooled_records(self) -> Iterator[tuple[Oid, bytes | None]]:
        for oid, record in self._records.items():
            yield oid, self._from_spool(record) if isinstance(record, Spooled) else record

    def close(self) -> None:
        """Drop everything."""
        self.bases = {}
        self._records = {}
        self.close_spool()

    def close_spool(self) -> None:
        """Close the temporary file: its records are written, or not wanted any more."""
        spool, self.spool = self.spool, None
        if spool is not None:
            spool.close()


# -- requests


def request(engine: Any, writes: Writes, packs: int, make: Callable[[], list[Oid]]) -> list[Oid]:
    """Plan one more request: call *make*, which stages its results and returns their oids.
    *packs* is the number of packs that have changed rows so far; none does meanwhile."""
    plan = writes.plan
    if plan is None:
        plan = writes.plan = Plan((engine.visibility.committed_tid, packs))
    elif plan.planned_at[1] != packs:
        _plan_again(engine, writes, plan, packs)
    oids = make()
    plan.requests.append(make)
    return oids


def plan_again_if_moved(engine: Any, writes: Writes, packs: int) -> None:
    """Plan all requests again if their plan is based on outdated revisions. The slot is held."""
    plan = writes.plan
    assert plan is not None
    if plan.is_stale or _has_moved(engine, plan, packs):
        _plan_again(engine, writes, plan, packs)
        writes.resolved += plan.results


def _has_moved(engine: Any, plan: Plan, packs: int) -> bool:
    if plan.planned_at == (engine.visibility.committed_tid, packs):
        return False
    if plan.planned_at[1] != packs or engine.current(plan.results) != plan.results:
        return True
    in_versions = [found.version for found in engine.in_versions().values()]
    return any(
        in_versions.count(version) != len(modified) for version, modified in plan.emptied.items()
    )


def _plan_again(engine: Any, writes: Writes, plan: Plan, packs: int) -> None:
    plan.is_stale = True
    writes.drop_results()
    plan.planned_at = engine.visibility.committed_tid, packs
    for make in plan.requests:
        make()
    plan.is_stale = False


def current_of(engine: Any, writes: Writes) -> dict[Oid, Current | None]:
    """Return the current revisions of all objects written. The plan is up to date."""
    assert writes.plan is not None
    others = writes.bases.keys() - writes.plan.results.keys()
    return {**(engine.current(others) if others else {}), **writes.plan.results}


# -- the rows for an engine


def transaction_row(writes: Writes) -> TransactionRow:
    """Return the row of the transaction, which has its tid; let its metadata have that, too."""
    assert writes.tid is not None
    metadata = writes.transaction
    if isinstance(metadata, TransactionMetaData):
        metadata.voted_tid = writes.tid
    return TransactionRow(
        writes.tid, writes.status, metadata.user, metadata.description,
        metadata.extension_bytes, list(writes.bases), writes.record_bytes,
    )


class StagedRows:
    """The rows that a transaction, which has its tid, writes: an iterable of (oid, `Row`).

    `replaced` are the oids that have a row already; `versions` are those of new rows, `locked`
    those of replaced ones, each by oid. For an engine that declares `IChained` rows have no
    `outside`, and rows with a back pointer (`back_pointers` by oid) have no data; `records()`
    then yields (oid, record or None).
    """

    def __init__(self, engine: Any, writes: Writes) -> None:
        self._engine = engine
        self._writes = writes
        self.replaced = [oid for oid, found in writes.current.items() if found is not None]
        self.versions = writes.versions
        self.locked = writes.locked
        self.back_pointers = writes.back_pointers
        self.records = writes.records

    def __iter__(self) -> Iterator[tuple[Oid, Row]]:
        writes, engine = self._writes, self._engine
        tid, versions, pointers = writes.tid, self.versions, self.back_pointers
        assert tid is not None
        if not versions and not pointers:
            for oid, record in writes.records():
                yield oid, new_row(Row, (tid, record, "", None, None, False))
            return
        for oid, record in writes.records():
            version, pointer = versions.get(oid, ""), pointers.get(oid)
            if pointer is not None and record is None:
                record = data_of(engine, oid, pointer)
            outside = _outside_tid(engine, writes, oid) if version else None
            yield oid, Row(tid, record, version, outside, pointer)


def settle_back_pointers(engine: Any, writes: Writes, packs: int) -> None:
    """Drop back pointers whose target a pack may have removed; and, for an engine that follows
    them, the records that have one. *packs* is the number of packs that have changed rows."""
    is_chained, has_packed = IChained.providedBy(engine), writes.pointers_at != packs
    for oid in writes.with_data(writes.back_pointers) if is_chained or has_packed else ():
        if has_packed and data_of(engine, oid, writes.back_pointers[oid]) != writes.record(oid):
            del writes.back_pointers[oid]
        elif is_chained:
            writes.drop_record(oid)


def data_of(engine: Any, oid: Oid, tid: Tid) -> bytes | None:
    """Return the record of the revision *tid* of *oid*; None if that is a tombstone or gone."""
    row = engine.row(oid, tid)
    data: bytes | None = None if row is None else row.data
    return data


def staged_data(engine: Any, writes: Writes, oid: Oid) -> bytes | None:
    """Return the record that the staged revision of *oid* will have."""
    record = writes.record(oid)
    if record is None and oid in writes.back_pointers:
        return data_of(engine, oid, writes.back_pointers[oid])
    return record


def _outside_tid(engine: Any, writes: Writes, oid: Oid) -> Tid | None:
    """Return the tid of the revision visible outside while the staged one, in a version, is
    current: see `versions`."""
    current = writes.current.get(oid)
    if current is None:
        return None
    before = engine.row(oid, current.tid) if current.version else None
    if before is None and oid in writes.back_pointers:
        before = engine.row(oid, writes.back_pointers[oid])
    if before is not None and before.version:
        outside: Tid | None = before.outside
        return outside
    return current.tid


def require_size(oid: Oid, data: bytes) -> None:
    """Raise `RecordTooLargeError`, or `UsageError` for an empty record."""
    if 0 < len(data) <= MAX_RECORD_BYTES:
        return
    if data:
        raise RecordTooLargeError(
            f"object {format_oid(oid)} is {len(data)} bytes; a record can have at most "
            f"{MAX_RECORD_BYTES}. Keep large data in many objects or in a file",
            oid=oid, size=len(data), limit=MAX_RECORD_BYTES,
        )
    raise UsageError(
        f"object {format_oid(oid)}: a record cannot be empty. Use deleteObject (or restore with "
        "None) to delete an object"
    )
