"""Power lost after every operation of a random workload on a FileStorage."""

from __future__ import annotations

import random

from objdb.errors import ConflictError
from objdb.ids import NO_TID
from objdb.storage.commit import TransactionMetaData
from objdb.storage.file.storage import FileStorage
from objdb.testing.faults import SURVIVALS, FaultyFiles

PATH = "data.fs"
State = dict[bytes, bytes]


class RandomWorkload:
    """Random commits, aborts, conflicts and reopenings from one *seed*, with a model of what
    should be there: `states` has (number of operations when acknowledged, what was there)."""

    def __init__(self, seed: int, steps: int) -> None:
        self.chance = random.Random(seed)
        self.options = {
            "preallocate_bytes": self.chance.choice([0, 300, 5000]),
            "checkpoint_records": self.chance.choice([2, 7, 1000]),
        }
        self.files = FaultyFiles()
        self.states: list[tuple[int, State]] = []
        self.tids: State = {}
        self.storage = self.open(self.files)
        for _ in range(steps):
            self.step()

    def open(self, files: FaultyFiles) -> FileStorage:
        """Open the storage on *files*."""
        return FileStorage(PATH, files=files, **self.options)

    def step(self) -> None:
        """Do one random thing."""
        kind = self.chance.choices(
            ["commit", "abort", "vote and abort", "conflict", "reopen"], [8, 1, 2, 1, 1]
        )[0]
        if kind == "reopen":
            self.storage.close()
            self.storage = self.open(self.files)
            return
        transaction = TransactionMetaData("somebody", kind)
        self.storage.tpc_begin(transaction)
        changes: State = {}
        for _ in range(self.chance.randrange(1, 5)):
            oid = self.chance.choice([0, 1, 2, 3, 300, 5000, 2**40]).to_bytes(8, "big")
            changes[oid] = self.chance.randbytes(self.chance.choice([0, 5, 100, 700, 3000]) + 1)
            base = self.tids.get(oid, NO_TID) if kind != "conflict" else b"\1" * 8
            self.storage.store(oid, base, changes[oid], "", transaction)
        self._finish(kind, transaction, changes)

    def _finish(self, kind: str, transaction: TransactionMetaData, changes: State) -> None:
        if kind != "abort":
            try:
                self.storage.tpc_vote(transaction)
            except ConflictError:
                assert kind == "conflict"
        if kind != "commit":
            self.storage.tpc_abort(transaction)
            return
        tid = self.storage.tpc_finish(transaction)
        self.tids.update(dict.fromkeys(changes, tid))
        before = self.states[-1][1] if self.states else {}
        self.states.append((len(self.files.operations), {**before, **changes}))


def contents(storage: FileStorage) -> State:
    """Everything in the storage."""
    return {r.oid: r.data for t in storage.iterator() for r in t if r.data is not None}


def sweep(seed: int, steps: int = 15) -> int:
    """Crash a random workload everywhere; raise AssertionError for what is lost, or there by
    half. Return the number of crashes."""
    workload = RandomWorkload(seed, steps)
    crashes = 0
    for count in range(len(workload.files.operations) + 1):
        known = sum(1 for at, _ in workload.states if at <= count)
        possible = [{}, *(state for _, state in workload.states)][known : known + 2]
        for survival in SURVIVALS:
            when = f"seed {seed}, operation {count}, {survival}"
            disk = workload.files.crashed(count, survival, seed)
            storage = workload.open(disk)
            found = contents(storage)
            assert found in possible, when
            assert {oid: storage.load(oid)[0] for oid in found} == found, when
            assert storage.self_check() == [], when
            storage.close()
            crashes += 1
    return crashes
