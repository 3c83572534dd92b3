"""`get_transaction().commit(1)` and `abort(1)`: subtransactions."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import transaction
from transaction.interfaces import TransactionFailedError

import objdb
from objdb import get_transaction
from tests.conftest import Databases
from tests.models import Person


@pytest.fixture
def root(db: objdb.DB) -> Any:
    connection = db.open()
    root = connection.root()
    root["p"] = Person("before")
    transaction.commit()
    yield root
    transaction.abort()
    connection.close()


def seen_by_others(db: objdb.DB) -> str:
    manager = transaction.TransactionManager()
    with db.open(transaction_manager=manager) as connection:
        return str(connection.root()["p"].name)


def test_commit_and_abort_in_parts(db: objdb.DB, root: Any) -> None:
    """abort(1) comes back to the last commit(1), again and again; others see nothing before the
    whole is committed."""
    root["p"].name = "first part"
    get_transaction().commit(1)
    for _ in range(2):
        root["p"].name = "second part"
        root["new"] = Person("new")
        get_transaction().abort(1)
        assert root["p"].name == "first part" and "new" not in root
    assert seen_by_others(db) == "before"
    root["p"].name = "third part"
    get_transaction().commit(True)
    assert seen_by_others(db) == "before"
    get_transaction().commit()
    assert seen_by_others(db) == "third part"


def test_abort_without_a_subtransaction(db: objdb.DB, root: Any) -> None:
    """Without a commit(1) before it, abort(1) drops everything; so does a plain abort()."""
    root["p"].name = "never"
    get_transaction().abort(1)
    assert root["p"].name == "before"
    root["p"].name = "never"
    get_transaction().commit(1)
    get_transaction().abort()
    assert root["p"].name == "before"
    root["p"].name = "again"
    get_transaction().abort(1)  # the subtransaction was of another transaction
    assert root["p"].name == "before"


def test_nested_with_savepoints(db: objdb.DB, root: Any) -> None:
    """Subtransactions and savepoints of one transaction can be mixed."""
    root["p"].name = "1"
    savepoint = transaction.savepoint()
    root["p"].name = "2"
    get_transaction().commit(1)
    root["p"].name = "3"
    inner = transaction.savepoint()
    root["p"].name = "4"
    inner.rollback()
    assert root["p"].name == "3"
    get_transaction().abort(1)
    assert root["p"].name == "2"
    savepoint.rollback()
    assert root["p"].name == "1"
    get_transaction().commit()
    assert seen_by_others(db) == "1"


def test_after_rolling_back_an_older_savepoint(db: objdb.DB, root: Any) -> None:
    """A commit(1) that an older savepoint has rolled back is none any more: abort(1) comes back
    to the one before it, or to the beginning."""
    root["p"].name = "1"
    get_transaction().commit(1)
    root["p"].name = "2"
    savepoint = transaction.savepoint()
    root["p"].name = "3"
    get_transaction().commit(1)
    savepoint.rollback()
    root["p"].name = "4"
    get_transaction().abort(1)
    assert root["p"].name == "1"
    transaction.abort()
    savepoint = transaction.savepoint()
    root["p"].name = "5"
    get_transaction().commit(1)
    savepoint.rollback()
    get_transaction().abort(1)
    assert root["p"].name == "before"


def test_a_conflict_at_the_end(db: objdb.DB, root: Any) -> None:
    """What subtransactions wrote is checked when the whole is committed; after the failure
    nothing more can be committed before an abort."""
    root["p"].name = "ours"
    get_transaction().commit(1)
    manager = transaction.TransactionManager()
    with db.open(transaction_manager=manager) as other:
        other.root()["p"].name = "theirs"
        manager.commit()
    with pytest.raises(objdb.ConflictError):
        get_transaction().commit()
    with pytest.raises(TransactionFailedError):
        get_transaction().commit(1)
    get_transaction().abort()
    assert root["p"].name == "theirs"


class WithoutSavepoints:
    """A data manager that knows only whole transactions."""

    transaction_manager = None

    def __init__(self) -> None:
        self.calls: list[str] = []

    def sortKey(self) -> str:
        return "~"

    def __getattr__(self, name: str) -> Any:
        if name not in ("abort", "tpc_begin", "commit", "tpc_vote", "tpc_finish", "tpc_abort"):
            raise AttributeError(name)
        return lambda txn: self.calls.append(name)


def test_with_managers_that_know_no_savepoints(db: objdb.DB, root: Any) -> None:
    """They do not stand in the way of commit(1); abort(1) says that it cannot take them back,
    and the whole can be committed or aborted."""
    manager = WithoutSavepoints()
    get_transaction().join(manager)
    root["p"].name = "part"
    get_transaction().commit(1)
    assert manager.calls == []
    with pytest.raises(TypeError, match="WithoutSavepoints"):
        get_transaction().abort(1)
    get_transaction().abort()
    assert root["p"].name == "before" and manager.calls == ["abort"]


def test_it_is_the_transaction(db: objdb.DB, root: Any) -> None:
    """All else is the transaction's; another manager's can be asked for."""
    get_transaction().note("what it is for")
    get_transaction().user = "somebody"
    assert transaction.get().description == "what it is for"
    assert transaction.get().user == "somebody"
    manager = transaction.TransactionManager()
    get_transaction(manager).note("another")
    assert manager.get().description == "another" != transaction.get().description


PROGRAM = """
import resource, sys
import objdb
from objdb import get_transaction
from tests.models import Person

def resident():
    lines = open("/proc/self/status").read().split()
    return int(lines[lines.index("VmRSS:") + 1]) // 1024

with objdb.DB(sys.argv[1]) as db, db.open() as connection:
    people = connection.root()["people"] = objdb.PersistentMapping()
    get_transaction().commit()
    before, most = resident(), 0
    for i in range(200):
        for j in range(10):
            people[i, j] = Person("p", data=bytes([i]) * 100_000)
        get_transaction().commit(1)
        most = max(most, resident())
    get_transaction().commit()
    print(max(most, resident()) - before)
"""


def test_memory_is_bounded(tmp_path: Path, databases: Databases) -> None:
    """200 MB go through one transaction with 64 MiB of memory at most."""
    path = tmp_path / "large.fs"
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(path)], capture_output=True, text=True, check=True,
        timeout=100, cwd=Path(__file__).resolve().parents[2],
    )
    assert int(done.stdout) <= 64, done.stdout
    db = databases.open(path)
    with db.transaction() as connection:
        people = connection.root()["people"]
        assert len(people) == 2000 and people[150, 3].data == bytes([150]) * 100_000
