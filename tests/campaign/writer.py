"""A process that commits from several threads until it is killed: `python -m
tests.campaign.writer PATH THREADS WAY OPTIONS` (a JSON dict for FileStorage; with "packs" it also
packs, over and over; by itself, where that is "auto").

Thread number t sets two objects to the same number n, commits, and then writes "t n" to standard
output: acknowledged. It begins after the numbers that are in the file. Ways to do it:

    plain      in one transaction
    versions   in a version, which is moved to another one, and that committed
    undo       in one transaction, which is undone and redone
"""

from __future__ import annotations

import json
import os
import sys
import threading
from collections.abc import Callable

import transaction

import objdb
from objdb.database import packing


def main() -> None:
    path, count, way, options = sys.argv[1], int(sys.argv[2]), sys.argv[3], json.loads(sys.argv[4])
    packs = options.pop("packs", False)
    autopack = {"days": 0, "growth_bytes": 50_000} if packs == "auto" else None
    packing._LOOK_SECONDS = 0.01
    db = objdb.DB(objdb.FileStorage(path, **options), autopack=autopack, pool_size=count)
    with db.transaction() as connection:
        root = connection.root()
        for thread in range(count):
            for half in "ab":
                root.setdefault(f"{half}{thread}", objdb.PersistentMapping(n=0))
    threads = [
        threading.Thread(target=write, args=(db, thread, WAYS[way])) for thread in range(count)
    ]
    if packs is True:
        threads.append(threading.Thread(target=pack, args=(db,)))
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


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
    """Set both, undo that, and redo it."""
    plainly(db, thread, number)
    note = f"{thread} is {number}"
    for name in (note, f"undo {note}"):
        (entry,) = db.undoLog(0, -1, lambda entry: entry["description"] == name)  # noqa: B023
        db.undo(entry["id"])
        transaction.get().note(f"undo {name}")
        transaction.commit()


Change = Callable[[objdb.DB, int, int], None]
WAYS: dict[str, Change] = {"plain": plainly, "versions": in_versions, "undo": with_undo}


def pack(db: objdb.DB) -> None:
    """Pack for ever."""
    while True:
        db.pack()


if __name__ == "__main__":
    main()
