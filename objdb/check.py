"""Checking the consistency of a whole database.

    log       transactions in order, checksums right, every record in its transaction
    index     every object's entry is its last record, and no entry without a record
    history   each revision refers to the one before it, or loads
    objects   every reference from a current revision refers to an existing object
    reach     objects reachable from the root; the rest is garbage, which is not damage

Tests run it after every test; programs call `check(storage)`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from objdb.errors import CorruptedDataError, ObjdbError, POSKeyError
from objdb.ids import MAX_TID, NO_TID, ROOT_OID, Oid, Tid, format_oid, format_tid
from objdb.interfaces import IStorageIteration, IStorageSelfCheck, IStorageVersions
from objdb.records.references import record_class_name, references
from objdb.storage.foreign import provides
from objdb.storage.times import ahead_of_clock

Progress = Callable[[str, int, int], object]
_BETWEEN_REPORTS = 1000


@dataclass
class CheckReport:
    """The result of a check. `problems` is empty for an undamaged database; each is a sentence.

    `unverified` transactions have no checksum, so damage that leaves them readable is not found:
    another program, or an earlier release, wrote them.
    """

    name: str
    transactions: int = 0
    revisions: int = 0
    objects: int = 0
    reachable: int = 0
    unverified: int = 0  # transactions without a checksum
    note: str = ""  # a finding that is not damage: a last transaction ahead of the clock
    problems: list[str] = field(default_factory=list)

    @property
    def garbage(self) -> int:
        """The number of objects unreachable from the root."""
        return self.objects - self.reachable

    def raise_if_damaged(self) -> CheckReport:
        """Return the report; `CorruptedDataError` listing the problems if there are any."""
        if self.problems:
            shown = "\n  ".join(self.problems[:20])
            raise CorruptedDataError(
                f"{self.name} has {len(self.problems)} problems:\n  {shown}", path=self.name
            )
        return self


def check(storage: Any, progress: Progress | None = None) -> CheckReport:
    """Read everything in *storage* (one that can be iterated) and report on it.

    Nothing is changed, and damage raises nothing: see `CheckReport.raise_if_damaged`.
    `progress(phase, done, total)` is called periodically, for the phases "transactions", whose
    total is not known (0), and "objects". Uses about 300 bytes of memory for each object, and
    100 for each reference.
    """
    tell = progress or (lambda phase, done, total: None)
    report = CheckReport(storage.getName(), note=ahead_of_clock(storage.lastTransaction()))
    current: dict[Oid, Tid | None] = {}  # None: deleted
    try:
        if provides(storage, IStorageIteration):
            _check_history(storage, report, current, tell)
    except ObjdbError as error:
        report.problems.append(str(error))
    try:
        if IStorageSelfCheck.providedBy(storage):
            further = storage.self_check()
            report.problems += [problem for problem in further if problem not in report.problems]
    except ObjdbError as error:
        if str(error) not in report.problems:
            report.problems.append(str(error))
    living = [oid for oid, tid in current.items() if tid is not None]
    report.objects = len(living)
    in_version = _versions_of(storage)
    referred = dict(_check_objects(storage, report, living, in_version, tell))
    if ROOT_OID in referred:
        report.reachable = len(_reachable(referred))
    elif living:
        report.problems.append("there is no root object (oid 0)")
    return report


def _check_history(
    storage: Any, report: CheckReport, current: dict[Oid, Tid | None], tell: Progress
) -> None:
    last = NO_TID
    # A storage that checks its own chains need not load every revision again, which would take
    # time quadratic in their number.
    loads_all = not IStorageSelfCheck.providedBy(storage)
    for transaction in storage.iterator():
        report.transactions += 1
        if report.transactions % _BETWEEN_REPORTS == 0:
            tell("transactions", report.transactions, 0)
        if transaction.tid <= last:
            report.problems.append(f"transaction {format_tid(transaction.tid)} is out of order")
        last = transaction.tid
        report.unverified += getattr(transaction, "has_checksum", False) is False
        for revision in transaction:
            report.revisions += 1
            current[revision.oid] = None if revision.data is None else revision.tid
            if loads_all and revision.data is not None:
                _check_revision(storage, report, revision)
    if last != storage.lastTransaction():
        report.problems.append(
            f"the last transaction is {format_tid(last)}, but lastTransaction() says "
            f"{format_tid(storage.lastTransaction())}"
        )


def _check_revision(storage: Any, report: CheckReport, revision: Any) -> None:
    try:
        if storage.loadSerial(revision.oid, revision.tid) == revision.data:
            return
        what = "loads with different data than the iterator yields"
    except POSKeyError:
        what = "is listed, but does not load"
    report.problems.append(
        f"revision {format_tid(revision.tid)} of object {format_oid(revision.oid)} {what}"
    )


def _versions_of(storage: Any) -> dict[Oid, str]:
    """Return, by oid, the version of each object that is in one."""
    if not IStorageVersions.providedBy(storage):
        return {}
    return {
        oid: version
        for version in storage.versions() for oid in storage.objects_in_version(version)
    }


def _check_objects(
    storage: Any, report: CheckReport, living: list[Oid], in_version: dict[Oid, str],
    tell: Progress,
) -> Iterator[tuple[Oid, list[Oid]]]:
    """Yield (oid, the oids it refers to, in its version or outside), reporting references to
    missing objects."""
    exists = set(living)
    for number, oid in enumerate(living, 1):
        if number % _BETWEEN_REPORTS == 0 or number == len(living):
            tell("objects", number, len(living))
        targets: list[Oid] = []
        try:
            for record in _records(storage, oid, in_version.get(oid, "")):
                here = references(record)
                targets += here
                for target in here:
                    if target not in exists:
                        report.problems.append(
                            f"object {format_oid(oid)} ({record_class_name(record)}) refers to "
                            f"{format_oid(target)}, which does not exist"
                        )
        except ObjdbError as error:
            report.problems.append(f"object {format_oid(oid)}: {error}")
            continue
        yield oid, targets


def _records(storage: Any, oid: Oid, version: str) -> Iterator[bytes]:
    """Yield the current record of an object and, if it is in a version, the one outside it."""
    if not version:
        found = storage.loadBefore(oid, MAX_TID)
        yield found[0] if found else b""
        return
    yield storage.loadBefore(oid, MAX_TID, version)[0]
    try:
        yield storage.loadBefore(oid, MAX_TID)[0]
    except POSKeyError:  # it was created in the version
        return


def _reachable(referred: dict[Oid, list[Oid]]) -> set[Oid]:
    reached, todo = {ROOT_OID}, [ROOT_OID]
    while todo:
        for target in referred.get(todo.pop(), ()):
            if target in referred and target not in reached:
                reached.add(target)
                todo.append(target)
    return reached
