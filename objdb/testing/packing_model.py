"""Random histories of a storage, and what has to stay of them when it is packed, calculated from
what the storage lists. See `packing`."""

from __future__ import annotations

import random
from collections.abc import Iterable
from typing import Any, NamedTuple

from objdb.errors import ObjdbError, PackError, POSKeyError
from objdb.ids import NO_TID, ROOT_OID, Oid, Tid, next_tid, oid_from_int
from objdb.interfaces import IStorageVersions
from objdb.storage.commit import TransactionMetaData
from objdb.testing.helpers import contents


def record(name: str, *oids: Oid) -> bytes:
    """Return a record that refers to *oids*."""
    return name.encode() + b"->" + b"".join(oids)


def refer(data: bytes, oids: list[Oid] | None = None) -> list[Oid]:
    """Return what a record refers to."""
    _, _, rest = data.partition(b"->")
    found = [rest[i : i + 8] for i in range(0, len(rest), 8)]
    if oids is None:
        return found
    oids += found
    return oids


Revision = tuple[Oid, "bytes | None", str, "Tid | None"]


def transactions(storage: Any) -> list[tuple[Tid, list[Revision]]]:
    """Return (tid, [(oid, data, version, data_txn), …]) of all transactions."""
    return [
        (transaction.tid, [(r.oid, r.data, r.version, r.data_txn) for r in transaction])
        for transaction in storage.iterator()
    ]


class Past(NamedTuple):
    """A revision of an object; `outside` is the tid of what is outside while it is current,
    `brings_back` that of an older one which it puts into a version again."""

    tid: Tid
    data: bytes | None
    version: str
    outside: Tid | None
    brings_back: Tid | None


def expected_after(
    before: Iterable[tuple[Tid, list[Revision]]], moment: Tid, collects: bool
) -> dict[tuple[Oid, Tid], bytes | None]:
    """Return what has to stay of the transactions *before* a pack: data by (oid, tid)."""
    history = past_of(before)
    expected: dict[tuple[Oid, Tid], bytes | None] = {}
    reached, todo = set(), [ROOT_OID] if collects else list(history)
    for oid, entries in history.items():
        for entry in entries:
            if entry.tid > moment:
                expected[oid, entry.tid] = entry.data
                todo += [oid, *refer(entry.data or b"")]
    while todo:
        oid = todo.pop()
        if oid not in reached:
            reached.add(oid)
            for entry in staying(history.get(oid, []), moment):
                expected[oid, entry.tid] = entry.data
                todo += refer(entry.data or b"")
    return expected


def may_lose(
    before: Iterable[tuple[Tid, list[Revision]]], expected: dict[tuple[Oid, Tid], bytes | None]
) -> bool | None:
    """Return whether a pack that leaves what is *expected* drops an object while another one is
    missing, which may have led to it; None if it drops only deleted objects."""
    history, stay = past_of(before), {oid for oid, _ in expected}
    referred = {ROOT_OID, *(oid for data in expected.values() for oid in refer(data or b""))}
    going = {oid for oid in history if oid not in stay}
    if referred <= history.keys() or not going:
        return False
    return True if any(history[oid][-1].data is not None for oid in going) else None


def past_of(transactions: Iterable[tuple[Tid, list[Revision]]]) -> dict[Oid, list[Past]]:
    """Return the revisions of each object, oldest first."""
    history: dict[Oid, list[Past]] = {}
    for tid, revisions in transactions:
        for oid, data, version, data_txn in revisions:
            entries = history.setdefault(oid, [])
            last = entries[-1] if entries else None
            repeated = [entry for entry in entries if entry.tid == data_txn and entry.version]
            outside: Tid | None = tid
            brings_back: Tid | None = None
            if version:
                outside = last.tid if last else None
                if last and last.version:
                    outside = last.outside
                elif repeated:
                    outside, brings_back = repeated[0].outside, data_txn
            entries.append(Past(tid, data, version, outside, brings_back))
    return history


def staying(entries: list[Past], moment: Tid) -> list[Past]:
    """Return the revisions up to *moment* that stay of an object that is reached."""
    by_tid = {entry.tid: entry for entry in entries}

    def and_outside(entry: Past) -> set[Tid]:
        outside = by_tid.get(entry.outside or b"")
        return {entry.tid} | ({outside.tid} if outside and outside.data is not None else set())

    wanted: set[Tid] = set()
    for entry in entries:
        if entry.tid > moment and entry.brings_back and entry.brings_back <= moment:
            wanted |= and_outside(by_tid[entry.brings_back])
    early = [entry for entry in entries if entry.tid <= moment]
    if early:
        last = early[-1]
        kept = and_outside(last) if last.version else {last.tid}
        if wanted or last.data is not None or len(kept) > 1:
            wanted |= kept
    return [entry for entry in early if entry.tid in wanted]


class RandomHistory:
    """Commits, undoing and versions at random, of up to ten objects, in *storage*."""

    def __init__(self, storage: Any, chance: random.Random) -> None:
        self._storage = storage
        self._chance = chance
        self._oids = [ROOT_OID, *(oid_from_int(number) for number in range(1, 10))]
        for _ in self._oids:
            storage.new_oid()
        self._versions = ["plan"] if IStorageVersions.providedBy(storage) else []

    def go_on(self, count: int) -> None:
        """Try *count* transactions; some are refused."""
        storage = self._storage
        for number in range(count):
            transaction = TransactionMetaData(description=str(number))
            storage.tpc_begin(transaction)
            try:
                self._step(transaction, number)
                storage.tpc_vote(transaction)
                storage.tpc_finish(transaction)
            except ObjdbError:
                storage.tpc_abort(transaction)

    def _step(self, transaction: Any, number: int) -> None:
        storage, chance = self._storage, self._chance
        kind = chance.random()
        if kind < 0.2:
            for entry in chance.sample(storage.undoLog(0, 6), 1) if storage.undoLog() else ():
                storage.undo(entry["id"], transaction)
        elif kind < 0.3 and self._versions:
            if chance.random() < 0.5:
                storage.commitVersion("plan", "", transaction)
            else:
                storage.abortVersion("plan", transaction)
        else:
            version = chance.choice(["", "", *self._versions])
            for oid in chance.sample(self._oids, chance.randrange(1, 4)):
                serial = current_tid(storage, oid)
                if chance.random() < 0.1 and oid != ROOT_OID and not version:
                    storage.deleteObject(oid, serial, transaction)
                    continue
                oids = chance.sample(self._oids[1:], chance.randrange(3))
                storage.store(oid, serial, record(str(number), *oids), version, transaction)

    def views(self, moment: Tid, oids: set[Oid]) -> dict[tuple[Any, ...], Any]:
        """Return what is seen of *oids* from *moment* on, by what is asked."""
        tids = [entry[0] for entry in contents(self._storage) if entry[0] >= moment]
        asked: list[tuple[Any, ...]] = [
            ("load", oid, tid, version)
            for oid in oids for tid in tids for version in ("", *self._versions)
        ]
        asked += [("undo", tid) for tid in tids if tid > moment]
        return {arguments: self.view(*arguments) for arguments in asked}

    def view(self, what: str, *arguments: Any) -> Any:
        """Return what is seen, or the kind of error; the same for no object and none yet."""
        try:
            if what == "undo":
                return self._storage.preview_undo(list(arguments))
            oid, tid, version = arguments
            in_version = (version,) if version else ()
            return self._storage.loadBefore(oid, next_tid(tid), *in_version) or POSKeyError
        except ObjdbError as error:
            return type(error)


def pack_at_random(storage: Any, chance: random.Random, times: int = 3) -> None:
    """Let a random history happen to an empty *storage*, and pack it to a random moment, several
    *times*; AssertionError unless what has to stay has stayed, and nothing else, and what is seen
    from the moment on is what was seen."""
    history = RandomHistory(storage, chance)
    for _ in range(times):
        history.go_on(25)
        moment = chance.choice([entry[0] for entry in contents(storage)])
        collects = chance.random() < 0.8
        expected = expected_after(transactions(storage), moment, collects)
        views = history.views(moment, {oid for oid, _ in expected})
        loses = collects and may_lose(transactions(storage), expected)
        try:
            storage.pack(moment, refer, gc=collects)
            assert not loses, "an object is gone that a missing one may have led to"
        except PackError:
            assert loses is not False
            expected = expected_after(transactions(storage), moment, False)
            views = history.views(moment, {oid for oid, _ in expected})
            storage.pack(moment, refer, gc=False)
        left = {(r[0], tid): r[1] for tid, rs in transactions(storage) for r in rs}
        assert left == expected
        for arguments, seen in views.items():
            assert history.view(*arguments) == seen, arguments


def current_tid(storage: Any, oid: Oid) -> Tid:
    """Return the tid of an object's current revision, in a version or not; zeros if none."""
    try:
        version = storage.modifiedInVersion(oid) if IStorageVersions.providedBy(storage) else ""
        tid: Tid = storage.load(oid, version)[1] if version else storage.getTid(oid)
    except POSKeyError:
        return NO_TID
    return tid
