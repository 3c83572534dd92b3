"""Checking the index against the log, and the chains of records in the log."""

from __future__ import annotations

from objdb.ids import NO_TID, Oid, Tid, format_oid
from objdb.storage.file.format import START
from objdb.storage.file.index import Index
from objdb.storage.file.log import POSITION, Log
from objdb.storage.file.lookup import IN_VERSION
from objdb.storage.file.recovery import next_transaction


def check_structure(log: Log, index: Index, end: int, objects: int) -> list[str]:
    """Return a sentence for each inconsistency between the log, up to *end*, and its index.

    *objects* is the expected number of objects. Damage in the log raises `CorruptedDataError`.
    """
    problems: list[str] = []
    last: dict[Oid, tuple[int, Tid]] = {}
    outside: dict[Oid, int] = {}  # the record visible outside any version
    position, tid = START, NO_TID
    while position < end:
        header = next_transaction(log, position, end, tid)
        if header is None:
            problems.append(f"the log ends at {position}, not at {end}")
            break
        here: dict[Oid, tuple[int, Tid]] = {}
        for record in log.records(header):
            # If ZODB wrote an object several times, each record refers to the transaction before.
            before = last.get(record.oid, (0, NO_TID))[0] & POSITION
            # A packed file has lost older records, and their positions.
            if record.previous not in (before, 0):
                problems.append(
                    f"the record of {format_oid(record.oid)} at {record.position} says its "
                    f"previous one is at {record.previous}; it is at {before}"
                )
            if record.version:
                expected = [outside.get(record.oid, 0)]
                target = None if record.size else log.target(record)
                if target is not None and target.version:
                    expected.append(target.outside)
                if record.outside not in expected:
                    problems.append(
                        f"the record of {format_oid(record.oid)} at {record.position}, in the "
                        f"version {record.version!r}, says that outside it is at "
                        f"{record.outside}; it is at {expected[0]}"
                    )
                outside[record.oid] = record.outside
            here[record.oid] = record.place, record.tid
        last.update(here)
        outside.update(
            (oid, place) for oid, (place, _) in here.items() if place < IN_VERSION
        )
        position, tid = header.end, header.tid
    for oid, entry in last.items():
        if index.get(oid) != entry:
            problems.append(
                f"the index has {index.get(oid)} for {format_oid(oid)}; the log has {entry}"
            )
    extra = [oid for oid in index.oids() if oid not in last]
    problems += [f"the index has {format_oid(oid)}, which is not in the log" for oid in extra]
    if len(last) != objects:
        problems.append(f"there are {len(last)} objects, but {objects} were counted")
    return problems
