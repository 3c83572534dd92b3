"""Connections against a plain model: dicts of what was committed, and of what each connection has
changed in its snapshot."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import pytest
import transaction
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

import objdb
from objdb.check import check
from tests.models import Counter, Person
from tests.storages import FORGETFUL, STORAGES

PEOPLE, COUNTERS, BAGS = 2, 1, 1
# What an object is in the model: "p0" … people, "n0" … counters, "b0" … bags (frozensets of the
# names of the items in them), "i7" … items.
State = dict[str, Any]

people = st.sampled_from([f"p{i}" for i in range(PEOPLE)])
counters = st.sampled_from([f"n{i}" for i in range(COUNTERS)])
bags = st.sampled_from([f"b{i}" for i in range(BAGS)])
numbers = st.integers(0, 99)
which_one = st.integers(0, 9)
# Mostly the first connection, so that something comes of what it does.
connections = st.sampled_from([0, 0, 0, 1, 2])
endings = st.sampled_from([None, None, "savepoint", "commit"])


class Model:
    """One connection in the model: the number of the commit its snapshot is at, and what it has
    changed since."""

    def __init__(self, base: int, start: State) -> None:
        self.begin(base, start)

    def begin(self, base: int, start: State) -> None:
        """A new view; changes are gone."""
        self.base = base
        self.start = start
        self.state = dict(start)
        self.written: set[str] = set()
        self.read_current: set[str] = set()
        self.has_joined = False
        self.savepoints: list[tuple[State, set[str], bool]] = []

    def write(self, name: str, value: Any) -> None:
        """Change an object."""
        self.state[name] = value
        self.written.add(name)
        self.has_joined = True

    def savepoint(self) -> None:
        """Note where we are."""
        self.savepoints.append((dict(self.state), set(self.written), self.has_joined))

    def roll_back(self, number: int) -> None:
        """Go back to a savepoint; later ones are gone."""
        state, written, joined = self.savepoints[number]
        self.state, self.written, self.has_joined = dict(state), set(written), joined
        del self.savepoints[number + 1 :]


# Transaction manager, connection, its model, savepoints.
Entry = tuple[Any, objdb.Connection, Model, list[Any]]


class Snapshots(RuleBasedStateMachine):
    """Opens, changes, commits; every view must be the model's."""

    kind = "memory"

    @initialize(cache_size=st.sampled_from([0, 2, 1000]))
    def start(self, cache_size: int) -> None:
        self.directory = tempfile.TemporaryDirectory(prefix="objdb-model-")
        self.options = {"cache_size": cache_size}
        self.db = self.open_database()
        self.items = 0
        self.open: list[Entry] = []
        self.committed: list[State] = [{}]
        self.changed_at: dict[str, int] = {}
        first: State = {f"p{i}": 0 for i in range(PEOPLE)} | {f"n{i}": 0 for i in range(COUNTERS)}
        first |= {f"b{i}": frozenset() for i in range(BAGS)}
        with self.db.transaction() as connection:
            for name in first:
                kinds = {"p": Person, "n": Counter, "b": objdb.PersistentMapping}
                connection.root()[name] = made = kinds[name[0]]()
                if name[0] == "p":
                    made.value = 0
        self.note_commit(first)
        for _ in range(2):
            self.open_connection(False)

    def open_database(self) -> objdb.DB:
        return objdb.DB(STORAGES[self.kind](Path(self.directory.name)), **self.options)

    def note_commit(self, changes: State) -> None:
        self.committed.append({**self.committed[-1], **changes})
        self.changed_at.update(dict.fromkeys(changes, len(self.committed) - 1))

    def new_view(self, model: Model) -> None:
        model.begin(len(self.committed) - 1, self.committed[-1])

    # -- rules: there are always two connections or three, in changing places

    @precondition(lambda self: len(self.open) < 3)
    @rule(temporary=st.booleans())
    def open_connection(self, temporary: bool) -> None:
        manager = transaction.TransactionManager()
        connection = self.db.open(transaction_manager=manager, temporary=temporary)
        self.open.append((manager, connection, Model(0, {}), []))
        self.new_view(self.open[-1][2])

    def get(self, number: int) -> Entry:
        return self.open[number % len(self.open)]

    @precondition(lambda self: len(self.open) > 2)
    @rule(number=connections)
    def close(self, number: int) -> None:
        manager, connection, _, _ = self.open.pop(number % len(self.open))
        manager.abort()
        connection.close()

    @rule(number=connections, how=st.sampled_from(["begin", "abort"]))
    def begin(self, number: int, how: str) -> None:
        manager, _, model, savepoints = self.get(number)
        getattr(manager, how)()
        savepoints.clear()
        self.new_view(model)

    @rule(number=connections, name=people | counters, value=numbers, ending=endings)
    def change(self, number: int, name: str, value: int, ending: str | None) -> None:
        entry = self.get(number)
        _, connection, model, _ = entry
        if name[0] == "n":
            connection.root()[name].add(value)
            model.write(name, model.state[name] + value)
        else:
            connection.root()[name].value = value
            model.write(name, value)
        if ending == "savepoint":
            self.make_savepoint(entry)
        elif ending == "commit":
            self.end(entry)

    @rule(name=people | counters, value=numbers)
    def interfere(self, name: str, value: int) -> None:
        """Commit a change by a connection that nobody looks through."""
        with self.db.transaction() as connection:
            changed = connection.root()[name]
            changed.value = value + (changed.value if name[0] == "n" else 0)
            self.note_commit({name: changed.value})

    @rule(number=connections, bag=bags, value=numbers, early=st.booleans())
    def create(self, number: int, bag: str, value: int, early: bool) -> None:
        _, connection, model, _ = self.get(number)
        self.items += 1
        name = f"i{self.items}"
        item = Person(name, value=value)
        if early:
            connection.add(item)
        connection.root()[bag][name] = item
        model.write(name, value)
        model.write(bag, model.state[bag] | {name})

    @rule(number=connections, bag=bags, which=which_one, value=st.none() | numbers)
    def change_or_delete_item(self, number: int, bag: str, which: int, value: int | None) -> None:
        _, connection, model, _ = self.get(number)
        names = sorted(model.state[bag])
        if not names:
            return
        name = names[which % len(names)]
        if value is None:
            del connection.root()[bag][name]
            model.write(bag, model.state[bag] - {name})
        else:
            connection.root()[bag][name].value = value
            model.write(name, value)

    @rule(number=connections, name=people)
    def require_current(self, number: int, name: str) -> None:
        _, connection, model, _ = self.get(number)
        person = connection.root()[name]
        person._p_activate()
        connection.readCurrent(person)
        model.read_current.add(name)

    @rule(number=connections)
    def savepoint(self, number: int) -> None:
        self.make_savepoint(self.get(number))

    def make_savepoint(self, entry: Entry) -> None:
        manager, _, model, savepoints = entry
        savepoints.append(manager.savepoint())
        model.savepoint()

    @precondition(lambda self: any(entry[3] for entry in self.open))
    @rule(number=connections, which=which_one)
    def roll_back(self, number: int, which: int) -> None:
        having = [entry for entry in self.open if entry[3]]
        _, _, model, savepoints = having[number % len(having)]
        which %= len(savepoints)
        savepoints[which].rollback()
        del savepoints[which + 1 :]
        model.roll_back(which)

    @rule(
        number=connections, which=which_one,
        changes=st.lists(st.tuples(people | counters, numbers), min_size=2, max_size=5),
    )
    def go_there_and_back(
        self, number: int, which: int, changes: list[tuple[str, int]]
    ) -> None:
        """Many savepoints, a change before each, and back to one of them."""
        first = len(self.get(number)[3])
        for name, value in changes:
            self.change(number, name, value, "savepoint")
        _, _, model, savepoints = self.get(number)
        which = first + which % (len(savepoints) - first)
        savepoints[which].rollback()
        del savepoints[which + 1 :]
        model.roll_back(which)

    @rule(number=st.none() | connections)
    def shrink(self, number: int | None) -> None:
        (self.db if number is None else self.get(number)[1]).cacheMinimize()

    @precondition(lambda self: any(entry[2].has_joined for entry in self.open))
    @rule(number=connections)
    def commit(self, number: int) -> None:
        having = [entry for entry in self.open if entry[2].has_joined]
        self.end(having[number % len(having)])

    def end(self, entry: Entry) -> None:
        """Commit, which fails if the model says so."""
        manager, _, model, savepoints = entry
        savepoints.clear()
        expected = self.conflict(model)
        if expected is None:
            manager.commit()
            self.note_commit(self.merged(model))
        else:
            with pytest.raises(expected):
                manager.commit()
            manager.abort()
        self.new_view(model)

    def conflict(self, model: Model) -> type[Exception] | None:
        """What a commit must raise."""
        moved = {name for name, at in self.changed_at.items() if at > model.base}
        if model.read_current & moved - model.written:
            return objdb.ReadConflictError
        lost = {name for name in model.written & moved if name[0] != "n"}
        return objdb.ConflictError if lost or model.read_current & moved else None

    def merged(self, model: Model) -> State:
        """What a commit changes: counters add up."""
        current = self.committed[-1]
        changes = {name: model.state[name] for name in model.written}
        for name in changes:
            if name[0] == "n":
                changes[name] = current[name] + model.state[name] - model.start[name]
        return changes

    @precondition(lambda self: self.kind not in FORGETFUL)
    @rule()
    def reopen(self) -> None:
        for manager, connection, _, _ in self.open:
            manager.abort()
            connection.close()
        self.db.close()
        self.db = self.open_database()
        self.open.clear()
        for _ in range(2):
            self.open_connection(False)

    @rule()
    def look_afresh(self) -> None:
        """A connection that has nothing in its cache shows the last commit."""
        manager = transaction.TransactionManager()
        connection = self.db.open(transaction_manager=manager, temporary=True)
        self.compare(connection, self.committed[-1])
        connection.close()

    @invariant()
    def every_view_is_right(self) -> None:
        for _, connection, model, _ in getattr(self, "open", []):
            self.compare(connection, model.state)

    def compare(self, connection: objdb.Connection, state: State) -> None:
        root = connection.root()
        found: State = {f"p{i}": root[f"p{i}"].value for i in range(PEOPLE)}
        found |= {f"n{i}": root[f"n{i}"].value for i in range(COUNTERS)}
        found |= {f"b{i}": frozenset(root[f"b{i}"]) for i in range(BAGS)}
        expected = {name: value for name, value in state.items() if name[0] != "i"}
        for i in range(BAGS):
            for name, item in root[f"b{i}"].items():
                found[name] = item.value
                expected[name] = state[name]
        assert found == expected

    def teardown(self) -> None:
        if not hasattr(self, "db"):
            return
        for manager, connection, _, _ in self.open:
            manager.abort()
            connection.close()
        check(self.db.storage).raise_if_damaged()
        self.db.close()
        self.directory.cleanup()


LIMITS = settings(
    max_examples=120, stateful_step_count=30, deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    phases=[Phase.explicit, Phase.reuse, Phase.generate, Phase.shrink],  # explaining is slow
)


@pytest.mark.parametrize("kind", STORAGES)
def test_snapshots(kind: str) -> None:
    """Views of connections over each kind of storage, which is also reopened, are the model's."""
    machine = type("Snapshots", (Snapshots,), {"kind": kind})
    examples = {"file": 120, "memory": 60}.get(kind, 15)
    run_state_machine_as_test(machine, settings=settings(LIMITS, max_examples=examples))


def test_read_current_survives_a_rollback(db: objdb.DB) -> None:
    """What readCurrent was asked for is still checked after a rollback to a savepoint from before
    the first change."""
    with db.transaction() as connection:
        connection.root()["p"], connection.root()["q"] = Person("p"), Person("q")
    manager = transaction.TransactionManager()
    with db.open(transaction_manager=manager) as connection:
        root = connection.root()
        connection.readCurrent(root["p"])
        savepoint = manager.savepoint()
        root["q"].name = "taken back"
        savepoint.rollback()
        with db.transaction() as other:
            other.root()["p"].name = "moved"
        root["q"].name = "changed"
        with pytest.raises(objdb.ReadConflictError):
            manager.commit()
        manager.abort()
