"""Random histories of a storage, and what has to stay of them when it is packed, calculated from
what the storage lists. See `packing`."""

from __future__ import annotations

import random
from collections.abc import Iterable
from typing import Any

from objdb.errors import ObjdbError, POSKeyError
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


Revision = tuple[Oid, "bytes | None", str]


def transactions(storage: Any) -> list[tuple[Tid, list[Revision]]]:
    """Return (tid, [(oid, data, version), …]) of all transactions."""
    return [
        (transaction.tid, [(r.oid, r.data, r.version) for r in transaction])
        for transaction in storage.iterator()
    ]


def expected_after(
    before: Iterable[tuple[Tid, list[Revision]]], moment: Tid, collects: bool
) -> dict[tuple[Oid, Tid], bytes | None]:
    """Return what has to stay of the transactions *before* a pack: data by (oid, tid)."""
    history: dict[Oid, list[tuple[Tid, bytes | None, str]]] = {}
    for tid, revisions in before:
        for oid, data, version in revisions:
            history.setdefault(oid, []).append((tid, data, version))
    expected: dict[tuple[Oid, Tid], bytes | None] = {}
    reached, todo = set(), [ROOT_OID] if collects else list(history)
    for oid, entries in history.items():
        for tid, data, _ in entries:
            if tid > moment:
                expected[oid, tid] = data
                todo += [oid, *refer(data or b"")]
    while todo:
        oid = todo.pop()
        if oid in reached:
            continue
        reached.add(oid)
        early = [entry for entry in history.get(oid, ()) if entry[0] <= moment]
        stays = early[-1:]
        if stays and stays[0][2]:
            outside = [entry for entry in early if not entry[2]][-1:]
            stays = [entry for entry in outside if entry[1] is not None] + stays
        if len(stays) == 1 and stays[0][1] is None:
            continue
        for tid, data, _ in stays:
            expected[oid, tid] = data
            todo += refer(data or b"")
    return expected


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
        """Try *count* transactions; those that are refused are none."""
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


def current_tid(storage: Any, oid: Oid) -> Tid:
    """Return the tid of an object's current revision, in a version or not; zeros if none."""
    try:
        version = storage.modifiedInVersion(oid) if IStorageVersions.providedBy(storage) else ""
        tid: Tid = storage.load(oid, version)[1] if version else storage.getTid(oid)
    except POSKeyError:
        return NO_TID
    return tid
