"""What does not end as hoped, very often: nothing of it is kept.

Each way of failing is a function that fails once. It is repeated until whatever is allocated once
is there, and then on: memory, descriptors and threads stay what they were.
"""

from __future__ import annotations

import gc
import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import psutil
import transaction

import objdb
from objdb.database import conflicts, invalidations
from objdb.storage import staging
from tests.storages import STORAGES

# What is no leak: dicts and lists that grow in steps; and the name of a directory, which the
# binding of Berkeley DB keeps each time that it is told one. A leak keeps a transaction, or a
# connection: dozens of blocks each time.
MOST_BLOCKS = 3
MOST_RESIDENT = 16 * 1024 * 1024  # bytes that the libraries and the allocator take in steps
WARM = 0.25  # of the times


class Usage(NamedTuple):
    """What a process holds: blocks of memory allocated by Python, bytes of memory in all,
    descriptors, threads."""

    blocks: int
    resident: int
    files: int
    threads: int


def usage() -> Usage:
    """Return what this process holds."""
    gc.collect()
    files = len(os.listdir("/proc/self/fd"))
    resident = psutil.Process().memory_info().rss
    return Usage(sys.getallocatedblocks(), resident, files, threading.active_count())


class Refusing:
    """A participant of a transaction that votes against it."""

    transaction_manager = None

    def sortKey(self) -> str:
        return "~refusing"

    def tpc_begin(self, txn: Any) -> None:
        pass

    commit = tpc_finish = tpc_abort = abort = tpc_begin

    def tpc_vote(self, txn: Any) -> None:
        raise ValueError("no")


class Failures:
    """Fails, in a database that is open, in each way that a method is named for. *db* has
    objects `a` and `b` in its root."""

    def __init__(self, db: Any) -> None:
        self.db = db
        self.managers = [transaction.TransactionManager(explicit=True) for _ in range(2)]
        self.connections = [db.open(transaction_manager=manager) for manager in self.managers]
        self.number = 0

    def close(self) -> None:
        """Give the connections back."""
        for connection in self.connections:
            connection.close()

    def _begin(self) -> tuple[Any, Any]:
        self.number += 1
        for manager in self.managers:
            manager.begin()
        one, other = self.connections
        return one.root(), other.root()

    def _fails(self, error: type[Exception], function: Callable[[], object]) -> None:
        """Let *function* fail, and abort."""
        try:
            function()
        except error:
            for manager in self.managers:
                manager.abort()
            return
        raise AssertionError(f"no {error.__name__}")

    def conflict(self) -> None:
        """What was written was changed meanwhile."""
        ours, theirs = self._begin()
        ours["b"]["data"] = "x" * 3000
        ours["a"]["n"], theirs["a"]["n"] = self.number, -self.number
        self.managers[1].commit()
        self.managers[1].begin()
        self._fails(objdb.ConflictError, self.managers[0].commit)

    def read_conflict(self) -> None:
        """What had to be current was changed meanwhile."""
        ours, theirs = self._begin()
        self.connections[0].readCurrent(ours["a"])
        ours["b"]["data"] = "x" * 3000
        theirs["a"]["n"] = self.number
        self.managers[1].commit()
        self.managers[1].begin()
        self._fails(objdb.ReadConflictError, self.managers[0].commit)

    def unpicklable(self) -> None:
        """The last object cannot be stored."""
        ours, _ = self._begin()
        ours["b"]["data"] = "x" * 3000
        ours["a"]["new"] = objdb.PersistentMapping(bad=lambda: 0)
        self._fails(objdb.UnpicklableError, self.managers[0].commit)

    def refused(self) -> None:
        """Another participant votes against the transaction."""
        ours, _ = self._begin()
        ours["b"]["data"] = "x" * 3000
        self.managers[0].get().join(Refusing())
        self._fails(ValueError, self.managers[0].commit)

    def savepoint(self) -> None:
        """A transaction is aborted after a savepoint, and a rollback."""
        ours, _ = self._begin()
        ours["b"]["data"] = "x" * 3000
        savepoint = self.managers[0].savepoint()
        ours["b"]["new"] = objdb.PersistentMapping()
        savepoint.rollback()
        for manager in self.managers:
            manager.abort()

    def failed_savepoint(self) -> None:
        """A savepoint cannot be made."""
        ours, _ = self._begin()
        ours["b"]["data"] = lambda: 0
        self._fails(objdb.UnpicklableError, self.managers[0].savepoint)

    def retries(self) -> None:
        """Every attempt has a conflict."""
        self._begin()

        def function(connection: Any) -> None:
            connection.root()["b"]["data"] = "x" * 3000
            raise objdb.ConflictError("again")

        self._fails(objdb.ConflictError, lambda: self.db.run(function, tries=2))


IN_DATABASE = [name for name in vars(Failures) if name[0] != "_" and name != "close"]


def failing_in_database(kind: str, name: str, folder: Path, times: int) -> None:
    """Fail so often in a database over a *kind* of storage, records in a temporary file, in the
    way *name*."""
    with small_limits(), objdb.DB(STORAGES[kind](folder)) as db:
        with db.transaction() as connection:
            connection.root()["a"] = objdb.PersistentMapping(n=0)
            connection.root()["b"] = objdb.PersistentMapping()
        failures = Failures(db)
        try:
            require_flat(getattr(failures, name), times, db.pack)
        finally:
            failures.close()


@contextmanager
def small_limits() -> Iterator[None]:
    """Keep little where the number of what is kept is limited, and records in files soon."""
    limits = (staging, "SPOOL_BYTES", 1000), (invalidations, "_MOST_OIDS", 50)
    with ExitStack() as stack:
        for module, name, limit in (*limits, (conflicts, "MOST_KEPT", 10)):
            stack.enter_context(patch.object(module, name, limit))
        yield


def fail_often(kind: str, name: str, folder: Path, times: int) -> None:
    """Fail so often over a *kind* of storage in the way *name*; AssertionError if something of
    it is kept."""
    if name in IN_DATABASE:
        failing_in_database(kind, name, folder, times)
    else:
        OPENING[name](kind, folder, times)


def opening(kind: str, folder: Path, times: int) -> None:
    """Open, change and close a database so often."""

    def once() -> None:
        with objdb.DB(STORAGES[kind](folder)) as db, db.transaction() as connection:
            connection.root()["n"] = 1

    require_flat(once, times)


def failing_to_open(kind: str, folder: Path, times: int) -> None:
    """Open a database so often with a setting that is wrong, told when its storage is open."""

    def once() -> None:
        try:
            objdb.DB(lambda: STORAGES[kind](folder), isolation="perfect")
        except objdb.ObjdbError:
            return
        raise AssertionError("it was opened")

    require_flat(once, times)


OPENING = {"opening": opening, "failing_to_open": failing_to_open}
WAYS = [*IN_DATABASE, *OPENING]


def require_flat(
    function: Callable[[], object], times: int, settle: Callable[[], object] | None = None
) -> None:
    """Call *function* so often; AssertionError if what the process holds grows. *settle* is called
    before it is measured, and as often in between: a larger pack takes more memory."""
    settle = settle or (lambda: None)
    warm = max(3, int(times * WARM))
    for _ in range(warm):
        function()
    settle()
    before = usage()
    for done in range(warm, times):
        function()
        if done % warm == 0:
            settle()
    settle()
    after = usage()
    told = f"{times - warm} times: {before} became {after}"
    assert after.files == before.files, told
    assert after.threads == before.threads, told
    assert after.resident - before.resident < MOST_RESIDENT, told
    assert after.blocks - before.blocks < 100 + MOST_BLOCKS * (times - warm), told
