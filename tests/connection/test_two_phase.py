"""One transaction in two databases and an SQL database: both or neither, or an error that says
which."""

from __future__ import annotations

import errno
import logging
import sqlite3
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import transaction

import objdb
from objdb.testing.faults import FaultyFiles, Operation
from tests.conftest import Databases

PHASES = ("tpc_begin", "commit", "tpc_vote", "tpc_finish")
# What a connection calls in its storage, in each phase.
STORAGE_CALLS = {**dict(zip(PHASES, PHASES, strict=True)), "commit": "store"}


class SqlParticipant:
    """Rows written to SQLite when the transaction commits: when all have voted; or, *early*, as
    the last vote, so that a failure is one of the vote."""

    def __init__(self, path: Path, early: bool = False) -> None:
        self.connection = sqlite3.connect(path, isolation_level=None)
        self.connection.execute("BEGIN")
        self.early = early
        self.fails_in = ""

    def insert(self, value: int) -> None:
        self.connection.execute("INSERT INTO rows VALUES (?)", (value,))

    def sortKey(self) -> str:
        return "~sqlite"

    def _step(self, phase: str) -> None:
        if self.fails_in == phase:
            raise sqlite3.OperationalError(f"{phase} failed")

    def tpc_begin(self, txn: Any) -> None:
        self._step("tpc_begin")

    def commit(self, txn: Any) -> None:
        self._step("commit")

    def tpc_vote(self, txn: Any) -> None:
        self._step("tpc_vote")
        if self.early:
            self.connection.execute("COMMIT")

    def tpc_finish(self, txn: Any) -> None:
        self._step("tpc_finish")
        if not self.early:
            self.connection.execute("COMMIT")

    def abort(self, txn: Any) -> None:
        if self.connection.in_transaction:
            self.connection.execute("ROLLBACK")

    tpc_abort = abort


class Parties:
    """Two databases and a table, with 0 in each, and a way to put 1 in all of them."""

    def __init__(self, databases: Databases) -> None:
        group: dict[str, Any] = {}
        self.first = databases.open("first.fs", databases=group, database_name="first")
        self.second = databases.open(None, databases=group, database_name="second")
        self.table = databases.directory / "table.sqlite"
        self.opened: list[SqlParticipant] = []
        connection = sqlite3.connect(self.table)
        connection.execute("CREATE TABLE rows (value)")
        connection.close()
        for db in (self.first, self.second):
            with db.transaction() as connection:
                connection.root()["value"] = 0

    def change(self, connection: objdb.Connection, fails_in: str = "", early: bool = False) -> None:
        """Put 1 everywhere, in the connection's transaction."""
        connection.root()["value"] = 1
        connection.get_connection("second").root()["value"] = 1
        sql = SqlParticipant(self.table, early)
        self.opened.append(sql)
        sql.fails_in = fails_in
        connection.transaction_manager.get().join(sql)
        sql.insert(1)

    def values(self) -> list[int]:
        """What is in the three now."""
        found = []
        for db in (self.first, self.second):
            with db.transaction() as connection:
                found.append(connection.root()["value"])
        connection = sqlite3.connect(self.table)
        found.append(connection.execute("SELECT count(*) FROM rows").fetchone()[0])
        connection.close()
        return found

    def close(self) -> None:
        for sql in self.opened:
            sql.connection.close()


@pytest.fixture
def parties(databases: Databases) -> Iterator[Parties]:
    parties = Parties(databases)
    yield parties
    parties.close()


def fail(monkeypatch: pytest.MonkeyPatch, db: objdb.DB, phase: str) -> None:
    """Let the storage fail in a phase."""

    def fails(*arguments: Any) -> None:
        raise OSError(errno.EIO, f"{phase} failed")

    monkeypatch.setattr(db.storage, STORAGE_CALLS[phase], fails)


def in_block(parties: Parties, **options: Any) -> None:
    with parties.first.transaction() as connection:
        parties.change(connection, **options)


def plainly(parties: Parties, **options: Any) -> None:
    manager = transaction.TransactionManager()
    with parties.first.open(transaction_manager=manager) as connection:
        parties.change(connection, **options)
        try:
            manager.commit()
        finally:
            manager.abort()


def again(parties: Parties, **options: Any) -> None:
    parties.first.run(lambda connection: parties.change(connection, **options))


WAYS = pytest.mark.parametrize("way", [in_block, plainly, again])
Way = Callable[..., None]


@WAYS
@pytest.mark.parametrize("early", [False, True])
def test_all(parties: Parties, way: Way, early: bool) -> None:
    """What is committed is committed everywhere."""
    way(parties, early=early)
    assert parties.values() == [1, 1, 1]


@WAYS
@pytest.mark.parametrize("who", ["first", "second", "sql"])
@pytest.mark.parametrize("phase", PHASES[:3])
def test_a_failure_before_the_end(
    parties: Parties, monkeypatch: pytest.MonkeyPatch, way: Way, who: str, phase: str
) -> None:
    """A failure up to the vote leaves all as they were, and is the error that comes out."""
    with monkeypatch.context() as patch:
        if who != "sql":
            fail(patch, getattr(parties, who), phase)
        with pytest.raises((OSError, sqlite3.OperationalError), match=f"{phase} failed"):
            way(parties, fails_in=phase if who == "sql" else "")
    assert parties.values() == [0, 0, 0]
    way(parties)
    assert parties.values() == [1, 1, 1]


@WAYS
@pytest.mark.parametrize(("who", "committed", "unknown", "not_committed"), [
    ("first", [], ["first"], ["second", "sql"]),
    ("second", ["first"], ["second"], ["sql"]),
])  # fmt: skip
def test_a_database_fails_to_finish(
    parties: Parties, monkeypatch: pytest.MonkeyPatch, way: Way, who: str,
    committed: list[str], unknown: list[str], not_committed: list[str],
) -> None:
    """The error says where the transaction is committed, where it is not, and where it may be."""
    names = {
        "first": parties.first.name, "second": parties.second.name,
        "sql": "SqlParticipant (~sqlite)",
    }
    with monkeypatch.context() as patch:
        fail(patch, getattr(parties, who), "tpc_finish")
        with pytest.raises(objdb.PartialCommitError, match="halfway") as caught:
            way(parties)
    error = caught.value
    assert isinstance(error.__cause__, OSError)
    assert error.committed == tuple(names[name] for name in committed)
    assert error.unknown == tuple(names[name] for name in unknown)
    assert error.not_committed == tuple(names[name] for name in not_committed)
    for name, value in zip(["first", "second", "sql"], parties.values(), strict=True):
        assert (name in committed) == (value == 1)  # the one that failed did so before it did
    way(parties)
    assert parties.values() == [1, 1, 1]


@pytest.mark.parametrize("way", [in_block, again])
def test_another_fails_to_finish(parties: Parties, way: Way) -> None:
    """A data manager that is asked last, and fails when it must not: the error names those who
    have committed, and the transaction is not tried again."""
    with pytest.raises(objdb.PartialCommitError) as caught:
        way(parties, fails_in="tpc_finish")
    assert isinstance(caught.value.__cause__, sqlite3.OperationalError)
    assert caught.value.committed == (parties.first.name, parties.second.name)
    assert caught.value.unknown == ("SqlParticipant (~sqlite)",)
    assert parties.values() == [1, 1, 0]
    assert len(parties.opened) == 1


def test_another_fails_to_finish_without_us(
    parties: Parties, caplog: pytest.LogCaptureFixture
) -> None:
    """Where the transaction is not ended by objdb, the log says it, and a note at the error."""
    with (
        caplog.at_level(logging.CRITICAL, "objdb"),
        pytest.raises(sqlite3.OperationalError) as caught,
    ):
        plainly(parties, fails_in="tpc_finish")
    (record,) = [record for record in caplog.records if record.name.startswith("objdb")]
    assert f"is committed in {parties.first.name}, {parties.second.name}" in record.message
    if sys.version_info >= (3, 11):
        assert caught.value.__notes__ == [record.message]
    assert parties.values() == [1, 1, 0]


@WAYS
def test_committing_with_the_last_vote(parties: Parties, way: Way) -> None:
    """What cannot vote, and commits when it should, belongs at the end, and into its vote."""
    with pytest.raises(sqlite3.OperationalError):
        way(parties, fails_in="tpc_vote", early=True)
    assert parties.values() == [0, 0, 0]


@WAYS
def test_a_conflict_in_the_second(parties: Parties, way: Way) -> None:
    """A conflict in one database leaves the other as it was; run() tries both again."""
    change, meddled = parties.change, []

    def change_late(connection: objdb.Connection, **options: Any) -> None:
        change(connection, **options)
        if not meddled:
            meddled.append(True)
            with parties.second.transaction() as other:
                other.root()["value"] = 2

    parties.change = change_late  # type: ignore[method-assign]
    if way is again:
        way(parties)
        assert parties.values() == [1, 1, 1]
    else:
        with pytest.raises(objdb.ConflictError):
            way(parties)
        assert parties.values() == [0, 2, 0]


def test_a_sync_that_fails(databases: Databases) -> None:
    """When the disk fails in the end, what is on it is one of the two, and the error says where
    it has to be looked up."""
    files = FaultyFiles()
    group: dict[str, Any] = {}
    storage = objdb.FileStorage("disk.fs", files=files)
    disk = objdb.DB(storage, databases=group, database_name="disk")
    other = databases.open("other.fs", databases=group, database_name="other")

    def change(value: int) -> None:
        with disk.transaction() as connection:
            connection.root()["value"] = value
            connection.get_connection("other").root()["value"] = value

    def fails(operation: Operation) -> None:
        if operation.kind == "sync":
            raise OSError(errno.EIO, "the disk is broken")
        do(operation)

    change(2)
    do, files.do = files.do, fails  # type: ignore[method-assign]
    with pytest.raises(objdb.PartialCommitError) as caught:
        change(3)
    assert isinstance(caught.value.__cause__, objdb.StorageFailedError)
    (unknown,) = caught.value.unknown
    assert unknown == "disk.fs"
    names = {"disk.fs", other.name}
    assert names == {*caught.value.committed, unknown, *caught.value.not_committed}
    with other.transaction() as connection:
        expected = 3 if other.name in caught.value.committed else 2
        assert connection.root()["value"] == expected
    files.do = do  # type: ignore[method-assign]
    disk.close()
    reopened = objdb.DB(objdb.FileStorage("disk.fs", files=files))
    with reopened, reopened.transaction() as connection:
        assert connection.root()["value"] in (2, 3)
