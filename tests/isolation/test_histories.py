"""Random transactions of many connections: what they saw of one another is what their isolation
mode allows, and a database that gets something wrong is found out."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import objdb
from objdb.connection.connection import Connection
from objdb.connection.isolation import ISOLATIONS, ReadSet
from objdb.connection.work import Work
from objdb.database.invalidations import InvalidationLog
from objdb.ids import MAX_TID
from objdb.storage import conflicts
from objdb.storage.storage import Storage
from objdb.testing import recording
from objdb.testing.anomalies import ALLOWED, check
from objdb.testing.recording import (
    CHANGE,
    EXTRAS,
    READ,
    Plan,
    Recorder,
    Step,
    check_isolation,
    interleave,
)
from tests.conftest import Databases
from tests.database.staging import Gate
from tests.isolation.interleavings import CLIENTS, interleaved


@pytest.mark.parametrize("cache_size", [3, 10_000])
@pytest.mark.parametrize("where", [None, "data.fs"], ids=["memory", "file"])
@pytest.mark.parametrize("isolation", ISOLATIONS)
def test_threads(databases: Databases, isolation: str, where: Any, cache_size: int) -> None:
    """Threads that do random transactions see of one another what their mode allows."""
    db = databases.open(where, isolation=isolation, cache_size=cache_size)
    report = check_isolation(db, threads=5, transactions=150)
    statuses = {transaction.status for transaction in report.history.transactions}
    assert statuses == {"committed", "aborted"}
    assert any(report.history.final or {})


def test_modes_of_connections(databases: Databases) -> None:
    """The mode is that of the connections, where one is given."""
    db = databases.open(isolation="snapshot")
    check_isolation(db, "serializable", threads=5, transactions=150)


# -- one thread, and an order of steps

keys = st.sampled_from(["m0", "m1", "o0", "o1", "t0", "t1", "b0", "b1", "r0", "r1", "r2"])
steps = st.builds(
    Step, st.sampled_from([READ, READ, READ, CHANGE, CHANGE, CHANGE, *EXTRAS]), keys,
    st.integers(0, 39),
)
plans = st.builds(
    Plan, st.lists(steps, min_size=1, max_size=6).map(tuple), st.sampled_from([False] * 9 + [True]),
    st.booleans(),
)


@pytest.mark.parametrize("isolation", ISOLATIONS)
@settings(max_examples=250, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.lists(st.lists(plans, min_size=1, max_size=3), min_size=2, max_size=CLIENTS),
    st.lists(st.integers(0, CLIENTS - 1), max_size=60), st.sampled_from([1, 20, 1000]),
)
def test_interleavings(
    isolation: str, its: list[list[Plan]], order: list[int], cache_size: int
) -> None:
    """So do transactions of several connections, stepped through any order."""
    with objdb.DB(isolation=isolation, cache_size=cache_size) as db:
        recorder = Recorder(db)
        interleave(recorder, its, order)
        report = check(recorder.history(), is_opaque=True).raise_if_forbidden(isolation)
        assert len(report.history.transactions) == sum(map(len, its))


@pytest.mark.parametrize("isolation", ISOLATIONS)
def test_what_is_allowed_is_found(isolation: str) -> None:
    """What a mode allows does happen, and nothing else."""
    found: set[str] = set()
    for seed in range(80):
        found |= interleaved(seed, isolation).raise_if_forbidden(isolation).kinds
    assert found == ALLOWED[isolation]


def test_an_interleaving_is_repeated() -> None:
    """The same steps in the same order make the same history."""
    assert interleaved(7, "snapshot").history == interleaved(7, "snapshot").history


# -- databases that get something wrong


def keep_no_view(connection: Connection) -> None:
    """Begin no view: read what is current."""
    _begin_view(connection)
    connection._before = MAX_TID


_begin_view = Connection._begin_view


def see_no_invalidations(log: InvalidationLog, *args: Any) -> list[bytes]:
    return []


def forget_reads(storage: Any, *args: Any) -> None:
    """Do nothing."""


def take_ours(db: Any, oid: bytes, old: Any, committed: bytes, new: bytes, serials: Any) -> bytes:
    """Resolve every conflict in favour of the last."""
    return new


def roll_back_nothing(connection: Connection, mark: Any) -> None:
    """Do nothing."""


def move_the_marker(reads: ReadSet) -> dict[bytes, bytes]:
    """Forget what was read before."""
    reads.begin()
    return {}


BREAKAGES: dict[str, tuple[Any, str, Callable[..., Any], str]] = {
    "reads are not checked": (Storage, "checkReads", forget_reads, "serializable"),
    "reads are forgotten": (ReadSet, "serials", move_the_marker, "serializable"),
    "writes are not checked": (conflicts, "resolve_conflicts", forget_reads, "snapshot"),
    "no view is kept": (Connection, "_begin_view", keep_no_view, "snapshot"),
    "the cache is stale": (InvalidationLog, "between", see_no_invalidations, "snapshot"),
    "merging loses": (objdb.DB, "resolve", take_ours, "snapshot"),
    "savepoints hold nothing": (Work, "roll_back", roll_back_nothing, "snapshot"),
}


@pytest.mark.parametrize("name", BREAKAGES)
def test_breakages_are_found(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """A database that gets something wrong shows what its mode does not allow."""
    owner, attribute, replacement, isolation = BREAKAGES[name]
    monkeypatch.setattr(owner, attribute, replacement)
    for seed in range(100):
        if interleaved(seed, isolation).kinds - ALLOWED[isolation]:
            return
    raise AssertionError("not found")


def test_threads_find_breakages(monkeypatch: pytest.MonkeyPatch) -> None:
    """Threads find it, too, and tell the seed and the transactions."""
    monkeypatch.setattr(conflicts, "resolve_conflicts", forget_reads)
    with objdb.DB() as db, pytest.raises(AssertionError, match="seed 5: snapshot tr") as caught:
        check_isolation(db, threads=5, transactions=200, seed=5)
    assert " committed: " in str(caught.value)


def test_errors_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """An error that is no conflict is told, with the seed; of its transaction the outcome is not
    known."""

    def fail(connection: Any, key: str) -> None:
        raise OSError("the disk is on fire")

    monkeypatch.setattr(recording, "read", fail)
    with objdb.DB() as db, pytest.raises(AssertionError, match=r"seed 5: .*on fire"):
        check_isolation(db, threads=2, transactions=20, seed=5)
    with objdb.DB() as db:
        recorder = Recorder(db)
        with pytest.raises(OSError, match="on fire"):
            interleave(recorder, [[Plan((Step(CHANGE, "t0"), Step(READ, "t0")))]], [])
        assert [str(done) for done in recorder.transactions] == ["T1 unknown: append t0 1"]


def test_a_deadlock_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """A thread that does not go on, when no other does, is told with all stacks."""
    gate = Gate()
    monkeypatch.setattr(recording, "read", lambda connection, key: gate.pass_through())
    with objdb.DB() as db:
        try:
            with pytest.raises(AssertionError, match="deadlock") as caught:
                check_isolation(db, threads=1, transactions=20, seed=5, patience_seconds=0.2)
        finally:
            gate.open()
            for thread in threading.enumerate():
                if thread.name.startswith("check_isolation"):
                    thread.join(60)
    assert "in pass_through" in str(caught.value)


def test_rolled_back_operations_do_not_count(databases: Databases) -> None:
    """What a savepoint took back is no part of the history, and is not there in the end."""
    recorder = Recorder(databases.open())
    steps = (
        Step(CHANGE, "t0"), Step("savepoint"), Step(CHANGE, "t0"), Step(CHANGE, "r0"),
        Step("rollback"), Step(READ, "t0"),
    )
    interleave(recorder, [[Plan(steps)]], [])
    assert str(recorder.history()) == "T1 committed: append t0 1, read t0 [1]\nfinally: t0 [1]"
