"""Transactions are copied from ZODB's storages to ours, and from ours to ZODB's."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import transaction
import ZODB
from ZODB.FileStorage import FileStorage as ZODBFileStorage

import objdb
from objdb.check import check
from objdb.testing.helpers import contents
from tests.campaign.graphs import in_objdb, in_zodb
from tests.models import Person

pytestmark = pytest.mark.peer


@contextmanager
def peer(path: Path) -> Iterator[Any]:
    """ZODB's storage; its iterators are closed when they are dropped."""
    storage = ZODBFileStorage(str(path))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield storage
    storage.close()


def plain(storage: Any) -> list[Any]:
    """What an iterator shows; ours and ZODB's, which shows the checksums as well."""
    return [
        (
            txn.tid, txn.status, txn.user, txn.description,
            {key: value for key, value in txn.extension.items() if key[0] != "_"},
            [(r.oid, r.tid, r.data, r.data_txn) for r in txn],
        )
        for txn in storage.iterator()
    ]


def fill(path: Path) -> None:
    """A history written by both, with undos and un-creations by both."""
    for number, side in enumerate(["zodb", "objdb", "zodb", "objdb"]):
        with (in_zodb if side == "zodb" else in_objdb)(path) as connection:
            connection.root()[number] = Person(str(number))
            if number:
                connection.root()[0].age = number
    for side, undone in (("zodb", [0]), ("objdb", [0]), ("zodb", [0, 1, 2]), ("objdb", [3])):
        db: Any = objdb.DB(path) if side == "objdb" else ZODB.DB(ZODBFileStorage(str(path)))
        entries = db.undoLog(0, 100)
        db.undoMultiple([entries[number]["id"] for number in undone])
        transaction.get().note(f"undone by {side}")
        transaction.get().setUser("ännä")
        transaction.get().setExtendedInfo("numbers", undone)
        try:
            transaction.commit()
        except Exception:
            transaction.abort()
        db.close()


def test_from_zodb(tmp_path: Path) -> None:
    """ZODB's FileStorage as the source: all its transactions, into either storage of ours; the
    file is the same for ZODB."""
    fill(tmp_path / "source.fs")
    with peer(tmp_path / "source.fs") as source:
        expected = plain(source)
        with objdb.MappingStorage() as memory:
            assert memory.copyTransactionsFrom(source) == len(expected)
            assert [txn[:-1] for txn in plain(memory)] == [txn[:-1] for txn in expected]
            assert check(memory).problems == []
        with objdb.FileStorage(tmp_path / "copy.fs") as copy:
            assert copy.copyTransactionsFrom(source) == len(expected)
            assert copy.copyTransactionsFrom(source) == 0
            assert check(copy).problems == []
            ours = contents(copy)
    with peer(tmp_path / "copy.fs") as again:
        found = plain(again)
    assert found == [(*txn[:-1], last_of_each(txn[-1])) for txn in expected]
    assert [txn[0] for txn in ours] == [txn[0] for txn in expected]
    with in_zodb(tmp_path / "source.fs") as connection:
        names = {key: person.name for key, person in connection.root().items()}
    with in_zodb(tmp_path / "copy.fs") as connection:
        assert {key: person.name for key, person in connection.root().items()} == names


def last_of_each(revisions: list[Any]) -> list[Any]:
    """ZODB writes an object once for each transaction it undoes; the last one counts."""
    return list({revision[0]: revision for revision in revisions}.values())


def test_to_zodb(tmp_path: Path) -> None:
    """Ours as the source of ZODB's copyTransactionsFrom, which then has the same."""
    fill(tmp_path / "source.fs")
    with objdb.FileStorage(tmp_path / "source.fs") as source:
        expected = plain(source)
        with peer(tmp_path / "copy.fs") as copy:
            copy.copyTransactionsFrom(source)
            assert plain(copy) == expected
    with objdb.FileStorage(tmp_path / "copy.fs") as copy:
        assert check(copy).problems == []
        assert plain(copy) == expected
    with in_zodb(tmp_path / "copy.fs") as connection, in_objdb(tmp_path / "source.fs") as other:
        assert set(connection.root()) == set(other.root())


def test_memory_to_zodb(tmp_path: Path) -> None:
    """A database in memory becomes a file of ZODB's."""
    with objdb.DB(None) as db:
        for number in range(3):
            with db.transaction(f"number {number}") as connection:
                connection.root()[number] = Person(str(number))
        db.undo(db.undoLog()[0]["id"])
        transaction.commit()
        with peer(tmp_path / "copy.fs") as copy:
            copy.copyTransactionsFrom(db.storage)
            assert plain(copy) == plain(db.storage)
    with in_zodb(tmp_path / "copy.fs") as connection:
        assert sorted(connection.root()) == [0, 1]
