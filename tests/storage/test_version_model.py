"""Storages with versions, against a plain model."""

from __future__ import annotations

import contextlib
import os
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

from objdb.errors import UndoError, VersionLockError
from objdb.ids import NO_TID, next_tid
from objdb.storage.commit import TransactionMetaData
from objdb.storage.file.storage import FileStorage
from objdb.storage.memory import MappingStorage
from objdb.testing.helpers import contents
from tests.storage.undo_model import Adding, record_of, value_of
from tests.storage.version_model import NOTHING, Blocked, State, Value, VersionModel
from tests.storages import FORGETFUL, OTHERS, STORAGES

NAMES = [f"object {i}" for i in range(4)]
OIDS = {name: number.to_bytes(8, "big") for number, name in enumerate(NAMES, 1)}
VERSIONS = ["", "plan", "Plän B"]

names = st.sampled_from(NAMES)
versions = st.sampled_from(VERSIONS)
some_values = st.dictionaries(names, st.integers(0, 3) | st.sampled_from(["a", "b"]), min_size=1)
ages = st.lists(st.integers(0, 4) | st.integers(0, 99), min_size=1, max_size=3)


def loaded(storage: Any, oid: bytes, before: bytes, version: str) -> Value:
    """What is seen, None if there is no object."""
    try:
        found = storage.loadBefore(oid, before, version)
    except KeyError:
        return None
    return None if found is None else value_of(found[0])


class VersionMachine(RuleBasedStateMachine):
    """Random steps on a storage."""

    kind = "memory"

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="objdb-versions-"))
        self.model = VersionModel()
        self.tids: list[bytes] = []
        self.packed = -1  # the number of the last transaction that was packed
        self.open()

    def open(self) -> None:
        self.storage: Any = STORAGES[self.kind](self.folder)
        self.storage.registerDB(Adding())

    def perform(self, stage: Any, expected: dict[str, State] | None, error: type) -> None:
        """Commit what *stage* stages; the model expects these states, or the error."""
        transaction = TransactionMetaData()
        self.storage.tpc_begin(transaction)
        try:
            stage(transaction)
            self.storage.tpc_vote(transaction)
        except error:
            self.storage.tpc_abort(transaction)
            assert expected is None
            return
        assert expected is not None
        self.tids.append(self.storage.tpc_finish(transaction))
        self.model.transactions.append(expected)

    def base(self, name: str) -> bytes:
        """The tid of the object's last revision."""
        number = self.model.last_change(name)
        return NO_TID if number is None else self.tids[number]

    def is_forgotten(self, name: str) -> bool:
        """Whether a pack may have taken away that the object does not exist."""
        number = self.model.last_change(name)
        is_old = number is not None and number <= self.packed
        return is_old and self.model.state(name) == NOTHING

    @rule(values=some_values, version=versions)
    def store(self, values: dict[str, int | str], version: str) -> None:
        values = {name: value for name, value in values.items() if not self.is_forgotten(name)}

        def stage(transaction: Any) -> None:
            for name, value in values.items():
                record = record_of(value)
                self.storage.store(OIDS[name], self.base(name), record, version, transaction)

        try:
            expected = {n: self.model.stored(n, value, version) for n, value in values.items()}
        except Blocked:
            self.perform(stage, None, VersionLockError)
        else:
            self.perform(stage, expected, VersionLockError)

    @rule(name=names)
    def delete(self, name: str) -> None:
        if self.is_forgotten(name):
            return
        expected = None if self.model.state(name).version else {name: NOTHING}
        self.perform(
            lambda t: self.storage.deleteObject(OIDS[name], self.base(name), t), expected,
            VersionLockError,
        )

    @rule(source=st.sampled_from(VERSIONS[1:]), destination=versions)
    def commit_version(self, source: str, destination: str) -> None:
        if source == destination:
            return
        expected = self.model.committed(source, destination)
        oids: list[bytes] = []
        self.perform(
            lambda t: oids.extend(self.storage.commitVersion(source, destination, t)), expected,
            UndoError,
        )
        assert sorted(oids) == sorted(OIDS[name] for name in expected)

    @rule(version=st.sampled_from(VERSIONS[1:]))
    def abort_version(self, version: str) -> None:
        self.perform(
            lambda t: self.storage.abortVersion(version, t), self.model.aborted(version), UndoError
        )

    @rule(ages=ages)
    def undo(self, ages: list[int]) -> None:
        numbers = [len(self.tids) - 1 - age for age in sorted(set(ages)) if age < len(self.tids)]

        def stage(transaction: Any) -> None:
            for number in numbers:
                self.storage.undo(self.tids[number], transaction)

        expected = None
        if all(number > self.packed for number in numbers):
            with contextlib.suppress(Blocked):
                expected = self.model.undone(numbers)
        self.perform(stage, expected, UndoError)

    @rule(age=st.integers(0, 20))
    def pack(self, age: int) -> None:
        """Pack to a transaction; records here refer to nothing, so everything is kept."""
        if age < len(self.tids):
            number = len(self.tids) - 1 - age
            self.storage.pack(self.tids[number], lambda record: [], False)
            self.packed = max(self.packed, number)

    @rule()
    def redo(self) -> None:
        self.undo([0])

    @precondition(lambda self: self.kind not in FORGETFUL)
    @rule(without_index=st.booleans())
    def reopen(self, without_index: bool) -> None:
        self.storage.close()
        if without_index and self.kind == "file":
            os.remove(self.folder / "data.fs.oidx")
        self.open()

    @invariant()
    def compare(self) -> None:
        """What is seen in each version is what the model says."""
        self.compare_at(self.storage, b"\x7f" + b"\xff" * 7, None)
        in_use = {self.model.state(name).version for name in NAMES}
        assert self.storage.versions() == sorted(in_use - {""})
        for version in VERSIONS[1:]:
            inside = [OIDS[name] for name in self.model.inside(version)]
            assert sorted(self.storage.objects_in_version(version)) == inside

    def compare_at(self, storage: Any, before: bytes, upto: int | None) -> None:
        for name, oid in OIDS.items():
            state = self.model.state(name, upto)
            for version in [*VERSIONS, "unknown"]:
                assert loaded(storage, oid, before, version) == state.seen(version), (name, version)

    def teardown(self) -> None:
        self.compare_past(self.storage)
        for copy in (
            MappingStorage(), FileStorage(self.folder / "copy.fs", durability="os"),
        ):
            copy.copyTransactionsFrom(self.storage)
            assert contents(copy) == contents(self.storage)
            self.compare_past(copy)
            assert copy.versions() == self.storage.versions()
            copy.close()
        self.storage.close()
        shutil.rmtree(self.folder)

    def compare_past(self, storage: Any) -> None:
        """At every time of the past that was not packed away it is what the model says."""
        for number, tid in enumerate(self.tids):
            if number >= self.packed:
                self.compare_at(storage, next_tid(tid), number + 1)
        if isinstance(storage, FileStorage):
            assert storage.self_check() == []


_settings = settings(
    max_examples=60, stateful_step_count=30, deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
    phases=[Phase.explicit, Phase.reuse, Phase.generate, Phase.shrink],  # explaining is slow
)


@pytest.mark.parametrize("kind", STORAGES)
def test_versions(kind: str) -> None:
    """What versions make of each kind of storage is what the model says."""
    machine = type("VersionMachine", (VersionMachine,), {"kind": kind})
    examples = 12 if kind in OTHERS else 60
    run_state_machine_as_test(machine, settings=settings(_settings, max_examples=examples))


def test_the_model_itself() -> None:
    """The model's own idea of a version, on one object, in words."""
    model = VersionModel()
    model.transactions.append({"x": model.stored("x", 1, "")})
    model.transactions.append({"x": model.stored("x", 2, "plan")})
    assert [model.state("x").seen(version) for version in ("", "plan", "other")] == [1, 2, 1]
    with pytest.raises(Blocked):
        model.stored("x", 3, "")
    model.transactions.append(model.committed("plan", ""))
    assert model.state("x") == (2, "", 2)
    model.transactions.append(model.undone([2]))
    assert model.state("x") == (2, "plan", 1)
    assert model.aborted("plan") == {"x": (1, "", 1)}
