"""Storages that undo, against a plain model."""

from __future__ import annotations

import base64
import os
import random
import shutil
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from objdb.errors import ConflictError, MultipleUndoErrors, UndoError
from objdb.ids import NO_TID, next_tid
from objdb.storage.commit import TransactionMetaData
from objdb.storage.file.storage import FileStorage
from objdb.testing.helpers import current
from tests.storage.undo_model import Adding, Changes, Impossible, Model, record_of, value_of
from tests.storages import FORGETFUL, OTHERS, STORAGES

NAMES = [f"object {i}" for i in range(5)]
OIDS = {name: number.to_bytes(8, "big") for number, name in enumerate(NAMES, 1)}

values = st.integers(0, 3) | st.sampled_from(["a", "b"]) | st.none()
some_changes = st.dictionaries(st.sampled_from(NAMES), values, max_size=3)
# Of transactions, counted from the newest.
ages = st.lists(st.integers(0, 5) | st.integers(0, 99), min_size=1, max_size=4)


class Checked:
    """A storage and its model, which do the same and are compared."""

    def __init__(self, storage: Any) -> None:
        self.model = Model()
        self.tids: list[bytes] = []
        self.use(storage)

    def use(self, storage: Any) -> None:
        """Go on with this storage."""
        self.storage = storage
        storage.registerDB(Adding())

    def tid_of(self, number: int | None) -> bytes:
        """The tid of a transaction of the model."""
        return NO_TID if number is None else self.tids[number]

    def begin(self) -> TransactionMetaData:
        """Begin a transaction."""
        transaction = TransactionMetaData()
        self.storage.tpc_begin(transaction)
        return transaction

    def stage(self, transaction: TransactionMetaData, changes: Changes) -> None:
        """Stage changes, made from what is current."""
        for name, value in changes.items():
            self.stage_one(transaction, name, value, self.model.last_change(name))

    def stage_one(
        self, transaction: TransactionMetaData, name: str, value: Any, base: int | None
    ) -> None:
        """Stage a change, made from the revision of transaction *base*."""
        if value is None:
            self.storage.deleteObject(OIDS[name], self.tid_of(base), transaction)
        else:
            self.storage.store(OIDS[name], self.tid_of(base), record_of(value), "", transaction)

    def finish(self, transaction: TransactionMetaData, changes: Changes) -> None:
        """Commit a transaction that has voted; the model has these changes for it."""
        self.tids.append(self.storage.tpc_finish(transaction))
        self.model.commit(changes)

    def commit(self, changes: Changes) -> None:
        """Commit changes."""
        transaction = self.begin()
        self.stage(transaction, changes)
        self.storage.tpc_vote(transaction)
        self.finish(transaction, changes)

    def numbers(self, ages: list[int]) -> list[int]:
        """The numbers of transactions of these ages, newest first, each once."""
        return [len(self.tids) - 1 - age for age in sorted(set(ages)) if age < len(self.tids)]

    def expected(self, numbers: list[int]) -> Changes | set[str]:
        """What the model says of undoing these: changes, or names in the way."""
        try:
            return self.model.undo(numbers)
        except Impossible as error:
            return set(error.args)

    def require_named(self, error: UndoError, names: set[str]) -> None:
        """The error names exactly these objects."""
        if isinstance(error, MultipleUndoErrors):
            assert {oid for oid, _ in error.reasons} == {OIDS[name] for name in names}
        else:
            assert [error.oid] == [OIDS[name] for name in names]

    def undo(self, ages: list[int], besides: Changes, meanwhile: Changes, end: str) -> None:
        """Undo, and change something besides, while others commit before the vote."""
        numbers = self.numbers(ages)
        expected = self.expected(numbers)
        undone = {name for number in numbers for name in self.model.transactions[number]}
        besides = {name: value for name, value in besides.items() if name not in undone}
        transaction = self.begin()
        try:
            for number in numbers:
                self.storage.undo(self.tids[number], transaction)
        except UndoError as error:
            assert isinstance(expected, set)
            self.require_named(error, expected)
            self.storage.tpc_abort(transaction)
            return
        assert isinstance(expected, dict)
        self.stage(transaction, besides)
        meanwhile = {name: value for name, value in meanwhile.items() if name not in besides}
        if meanwhile:
            self.commit(meanwhile)
            expected = self.expected(numbers)
        if end == "abort":
            self.storage.tpc_abort(transaction)
            return
        try:
            self.storage.tpc_vote(transaction)
        except UndoError as error:
            assert isinstance(expected, set)
            self.require_named(error, expected)
            self.storage.tpc_abort(transaction)
            return
        assert isinstance(expected, dict)
        if end == "vote and abort":
            self.storage.tpc_abort(transaction)
        else:
            self.finish(transaction, {**expected, **besides})

    def preview(self, ages: list[int]) -> None:
        """What the preview says is what the model says."""
        numbers = self.numbers(ages)
        expected = self.expected(numbers)
        found = self.storage.preview_undo([self.tids[number] for number in numbers])
        obstacles = {entry.oid for entry in found if entry.obstacle is not None}
        if isinstance(expected, set):
            assert obstacles >= {OIDS[name] for name in expected}
            return
        assert not obstacles
        assert {entry.oid: value_of(entry.then) for entry in found} == {
            OIDS[name]: value for name, value in expected.items()
        }

    def stale(self, name: str, age: int, value: Any) -> None:
        """Commit a change made from an older revision of an object."""
        revisions = [
            number for number, changes in enumerate(self.model.transactions) if name in changes
        ]
        base = revisions[-1 - age] if age < len(revisions) else None
        transaction = self.begin()
        self.stage_one(transaction, name, value, base)
        try:
            result = self.model.store(name, base, value)
        except Impossible:
            with pytest.raises(ConflictError):
                self.storage.tpc_vote(transaction)
            self.storage.tpc_abort(transaction)
            return
        self.storage.tpc_vote(transaction)
        self.finish(transaction, {name: result})

    def compare(self) -> None:
        """The storage shows what the model says: now, and in the log."""
        state = self.model.state()
        for name, oid in OIDS.items():
            assert value_of(current(self.storage, oid)) == state.get(name), name
        entries = self.storage.undoLog(0, -5)
        found = [base64.urlsafe_b64decode(entry["id"]) for entry in entries]
        assert found == self.tids[: -6 : -1]

    def compare_all(self) -> None:
        """The storage shows what the model says, at any time of the past."""
        by_oid = {oid: name for name, oid in OIDS.items()}
        found = [
            (transaction.tid, {by_oid[r.oid]: value_of(r.data) for r in transaction})
            for transaction in self.storage.iterator()
        ]
        assert found == list(zip(self.tids, self.model.transactions, strict=True))
        for number, tid in enumerate(self.tids):
            for name, value in self.model.transactions[number].items():
                try:
                    loaded = self.storage.loadBefore(OIDS[name], next_tid(tid))
                except KeyError:
                    assert value is None
                else:
                    assert (value_of(loaded[0]), loaded[1]) == (value, tid)
        if isinstance(self.storage, FileStorage):
            assert self.storage.self_check() == []


class UndoMachine(RuleBasedStateMachine):
    """Random steps on a storage."""

    kind = "memory"

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="objdb-undo-"))
        self.checked = Checked(self.open())

    def open(self) -> Any:
        return STORAGES[self.kind](self.folder)

    @rule(changes=some_changes)
    def commit(self, changes: Changes) -> None:
        self.checked.commit(changes)

    @rule(name=st.sampled_from(NAMES), age=st.integers(0, 3), value=values)
    def stale(self, name: str, age: int, value: Any) -> None:
        self.checked.stale(name, age, value)

    @rule(ages=ages)
    def undo(self, ages: list[int]) -> None:
        self.checked.undo(ages, {}, {}, "commit")

    @rule(
        ages=ages, besides=some_changes, meanwhile=some_changes,
        end=st.sampled_from(["commit", "commit", "abort", "vote and abort"]),
    )
    def undo_slowly(
        self, ages: list[int], besides: Changes, meanwhile: Changes, end: str
    ) -> None:
        self.checked.undo(ages, besides, meanwhile, end)

    @rule()
    def redo(self) -> None:
        self.checked.undo([0], {}, {}, "commit")

    @rule(ages=ages)
    def preview(self, ages: list[int]) -> None:
        self.checked.preview(ages)

    @precondition(lambda self: self.kind not in FORGETFUL)
    @rule(without_index=st.booleans())
    def reopen(self, without_index: bool) -> None:
        self.checked.storage.close()
        if without_index and self.kind == "file":
            os.remove(self.folder / "data.fs.oidx")
        self.checked.use(self.open())

    @invariant()
    def compare(self) -> None:
        self.checked.compare()

    def teardown(self) -> None:
        self.checked.compare_all()
        self.checked.storage.close()
        shutil.rmtree(self.folder)


_settings = settings(
    max_examples=60, stateful_step_count=30, deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
    phases=[Phase.explicit, Phase.reuse, Phase.generate, Phase.shrink],  # explaining is slow
)


@pytest.mark.parametrize("kind", STORAGES)
def test_undo(kind: str) -> None:
    """What undoing makes of each kind of storage is what the model says."""
    machine = type("UndoMachine", (UndoMachine,), {"kind": kind})
    examples = 12 if kind in OTHERS else 60
    run_state_machine_as_test(machine, settings=settings(_settings, max_examples=examples))


@pytest.mark.parametrize("kind", STORAGES)
def test_any_of_the_last_hundred(tmp_path: Path, kind: str) -> None:
    """Undoing a random subset of the last 100 transactions does exactly what the model says, or
    raises an error that names what is in the way and changes nothing."""
    seed = random.randrange(10**9)
    print(f"seed {seed}")
    chance = random.Random(seed)
    storage = STORAGES[kind](tmp_path)
    checked, undone = Checked(storage), 0

    def change() -> None:
        # Mostly numbers, so that much can be undone.
        kinds = [chance.randrange(9), chance.randrange(99), "a", None]
        weights = [8, 8, 1, 1]
        names = chance.sample(NAMES, chance.randrange(1, 4))
        checked.commit({name: chance.choices(kinds, weights)[0] for name in names})

    for _ in range(100):
        change()
    for _ in range(150):
        count = len(checked.tids)
        ages = chance.sample(range(100), chance.choice([1, 2, 3, 10]))
        checked.preview(ages)
        checked.undo(ages, {}, {}, "commit")
        undone += len(checked.tids) - count
        checked.compare()
        if chance.random() < 0.3:
            change()
    checked.compare_all()
    assert undone > 10
    storage.close()
