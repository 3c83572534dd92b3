"""A process that commits from several threads until it is killed: `python -m
tests.campaign.writer PATH THREADS OPTIONS` (a JSON dict for FileStorage).

Thread number t sets two objects to the same number n, commits, and then writes "t n" to standard
output: acknowledged. It begins after the numbers that are in the file.
"""

from __future__ import annotations

import json
import os
import sys
import threading

import objdb


def main() -> None:
    path, count, options = sys.argv[1], int(sys.argv[2]), json.loads(sys.argv[3])
    db = objdb.DB(objdb.FileStorage(path, **options), pool_size=count)
    with db.transaction() as connection:
        root = connection.root()
        for thread in range(count):
            for half in "ab":
                root.setdefault(f"{half}{thread}", objdb.PersistentMapping(n=0))
    threads = [threading.Thread(target=write, args=(db, thread)) for thread in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def write(db: objdb.DB, thread: int) -> None:
    """Commit for ever."""
    with db.transaction() as connection:
        number = connection.root()[f"a{thread}"]["n"]
    while True:
        number += 1
        with db.transaction() as connection:
            connection.root()[f"a{thread}"]["n"] = number
            connection.root()[f"b{thread}"]["n"] = number
            if number % 7 == 0:
                connection.root()[f"b{thread}"]["ballast"] = "x" * (number % 5000)
        os.write(1, b"%d %d\n" % (thread, number))


if __name__ == "__main__":
    main()
