"""A process that commits from several threads until it is killed: `python -m
tests.campaign.writer URI FIRST THREADS WAY PACKS` (the number of its first thread; whether it also
packs, over and over: no, yes, or auto, by itself).

Thread number t sets two objects to the same number n, commits, and then writes "t n" to standard
output: acknowledged. It begins after the numbers that are in the file. Ways to do it:

    plain      in one transaction
    versions   in a version, which is moved to another one, and that committed
    undo       in one transaction, which is undone and redone
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Iterable

import transaction

import objdb
from objdb.database import packing


def main() -> None:
    uri, first, count, way, packs = sys.argv[1], *map(int, sys.argv[2:4]), *sys.argv[4:]
    numbers = range(first, first + count)
    autopack = {"days": 0, "growth_bytes": 50_000} if packs == "auto" else None
    packing._LOOK_SECONDS = 0.01
    db = objdb.DB(uri, autopack=autopack, pool_size=count)
    db.run(lambda connection: begin(connection, numbers), tries=1000)
    threads = [
        threading.Thread(target=write, args=(db, number, WAYS[way])) for number in numbers
    ]
    if packs == "yes":
        threads.append(threading.Thread(target=pack, args=(db,)))
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def begin(connection: objdb.Connection, numbers: Iterable[int]) -> None:
    """Make the objects of these threads, if they are not there."""
    root = connection.root()
    for number in numbers:
        for half in "ab":
            if f"{half}{number}" not in root:
                root[f"{half}{number}"] = objdb.PersistentMapping(n=0)


def write(db: objdb.DB, thread: int, change: Change) -> None:
    """Commit for ever."""
    with db.transaction() as connection:
        number = connection.root()[f"a{thread}"]["n"]
    while True:
        number += 1
        change(db, thread, number)
        os.write(1, b"%d %d\n" % (thread, number))


def plainly(db: objdb.DB, thread: int, number: int, version: str = "") -> None:
    """Set both objects, in one transaction."""
    with db.transaction(f"{thread} is {number}", version) as connection:
        connection.root()[f"a{thread}"]["n"] = number
        connection.root()[f"b{thread}"]["n"] = number
        if number % 7 == 0:
            connection.root()[f"b{thread}"]["ballast"] = "x" * (number % 5000)


def in_versions(db: objdb.DB, thread: int, number: int) -> None:
    """Set both in a version, and commit that by way of another."""
    first, second = f"first of {thread}", f"second of {thread}"
    for version in (first, second):  # what the process before has left
        db.abortVersion(version)
    transaction.commit()
    plainly(db, thread, number, first)
    db.commitVersion(first, second)
    transaction.commit()
    db.commitVersion(second)
    transaction.commit()


def with_undo(db: objdb.DB, thread: int, number: int) -> None:
    """Set both, undo that, and redo it; where it was packed meanwhile, set both again."""
    plainly(db, thread, number)
    note = f"{thread} is {number}"
    for name in (note, f"undo {note}"):
        found = db.undoLog(0, -1, lambda entry: entry["description"] == name)  # noqa: B023
        try:
            db.undo(found[0]["id"])
            transaction.get().note(f"undo {name}")
            transaction.commit()
        except (IndexError, objdb.UndoError):
            transaction.abort()
            plainly(db, thread, number)
            return


Change = Callable[[objdb.DB, int, int], None]
WAYS: dict[str, Change] = {"plain": plainly, "versions": in_versions, "undo": with_undo}


def pack(db: objdb.DB) -> None:
    """Pack for ever."""
    while True:
        db.pack()


if __name__ == "__main__":
    main()
