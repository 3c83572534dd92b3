"""After os.fork(): a child gets a storage of its own, or an error that says what to do."""

from __future__ import annotations

import os
import sys
import threading
import traceback
from collections.abc import Callable
from typing import Any

import objdb
from tests.conftest import Databases
from tests.models import Person


def in_child(action: Callable[[], Any]) -> str:
    """Do something in a forked child, and return what it returned, as text."""
    read, write = os.pipe()
    child = os.fork()
    if not child:
        try:
            os.close(read)
            try:
                text = str(action())
            except BaseException:
                text = traceback.format_exc()
            os.write(write, text.encode()[:60_000])
        finally:
            os._exit(0)
    os.close(write)
    with open(read, encoding="utf-8") as file:
        text = file.read()
    os.waitpid(child, 0)
    return text


def name_of(error: type[BaseException], action: Callable[[], Any]) -> str:
    """Return the name of the error that an action ends in."""
    try:
        action()
    except error as caught:
        return f"{type(caught).__name__}: {caught}"
    return "no error"


def test_a_storage_that_cannot_be_shared(databases: Databases) -> None:
    """Every way to begin a transaction is refused in the child; the parent goes on."""
    for where in ("data.fs", None):
        db = databases.open(where)
        with db.transaction() as connection:
            connection.root()["ann"] = Person("ann", age=1)

        def work(connection: objdb.Connection) -> None:
            connection.root()["ann"].age += 1

        for way in (db.open, lambda d=db: d.run(work), lambda d=db: d.open(temporary=True)):
            told = in_child(lambda w=way: name_of(objdb.StorageForkedError, w))
            assert told.startswith("StorageForkedError"), told
            assert str(os.getpid()) in told and "Open it here" in told
        db.run(work)
        with db.transaction() as connection:
            assert connection.root()["ann"].age == 2


def test_a_connection_of_the_parent(databases: Databases) -> None:
    """A connection that was open cannot commit in the child, and does no harm there."""
    db = databases.open("data.fs")
    with db.open() as connection:
        connection.root()["ann"] = Person("ann", age=1)
        connection.transaction_manager.commit()
        connection.root()["ann"].age = 5
        told = in_child(
            lambda: name_of(objdb.StorageForkedError, connection.transaction_manager.commit)
        )
        assert told.startswith("StorageForkedError"), told
        connection.transaction_manager.commit()
    with db.transaction() as connection:
        assert connection.root()["ann"].age == 5


def test_a_storage_from_a_callable(databases: Databases) -> None:
    """The child gets a new storage, with connections and caches of its own."""
    made: list[objdb.MappingStorage] = []

    def make() -> objdb.MappingStorage:
        made.append(objdb.MappingStorage())
        return made[-1]

    db = databases.open(make, pool_size=2)
    with db.transaction() as connection:
        connection.root()["parent"] = 1

    def look() -> list[Any]:
        with db.transaction() as connection:
            keys = list(connection.root())
            connection.root()["child"] = 1
        with db.transaction() as connection:
            keys += list(connection.root())
        db.close()
        return [keys, len(made)]

    assert in_child(look) == "[['child'], 2]"
    assert len(made) == 1
    with db.transaction() as connection:
        assert list(connection.root()) == ["parent"]


def test_a_file_from_a_callable(databases: Databases) -> None:
    """A file that the parent still writes cannot be opened by the child, which is told who has
    it; another file can."""
    parent = os.getpid()
    directory = databases.directory

    def make() -> objdb.FileStorage:
        return objdb.FileStorage(directory / "data.fs")

    def own() -> objdb.FileStorage:
        return objdb.FileStorage(directory / f"of {os.getpid() == parent}.fs")

    db, other = databases.open(make), databases.open(own)
    told = in_child(lambda: name_of(objdb.StorageLockedError, db.open))
    assert told.startswith("StorageLockedError") and str(os.getpid()) in told, told

    def commit() -> str:
        with other.transaction() as connection:
            connection.root()["child"] = 1
        other.close()
        return "committed"

    assert in_child(commit) == "committed"
    with objdb.DB(directory / "of False.fs") as left, left.transaction() as connection:
        assert list(connection.root()) == ["child"]
    with other.transaction() as connection:
        assert list(connection.root()) == []


def test_locks_held_by_other_threads(databases: Databases) -> None:
    """A fork in the middle of what other threads do in the pool leaves no lock behind in the
    child."""
    db = databases.open(objdb.MappingStorage, pool_size=3)
    stop = threading.Event()

    def churn() -> None:
        while not stop.is_set():
            with db.transaction() as connection:
                _ = connection.root().get("x")

    threads = [threading.Thread(target=churn) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(20):
            assert in_child(lambda: db.run(lambda c: sorted(c.root()))) == "[]"
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def test_closing_in_the_child(databases: Databases) -> None:
    """A child that closes what it inherited takes nothing from the parent."""
    db = databases.open("data.fs")
    with db.transaction() as connection:
        connection.root()["ann"] = Person("ann", age=1)
    connection = db.open()
    connection.root()["ann"].age = 2
    assert in_child(db.close) == "None"
    connection.transaction_manager.commit()
    connection.close()
    sys.stdout.flush()
    with db.transaction() as connection:
        assert connection.root()["ann"].age == 2
