"""The past: the undo log, undoing, going through all records, copying; and versions.

What compares two ways of objdb (an undo with a commit, a version with what is outside any) is
measured in turns inside one process. The records that are gone through and copied were written in
transactions of 5, or in bulk: transactions of 10,000 and the nodes of their tree.
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

from benchmarks.sizes import Sizes
from benchmarks.systems import System
from benchmarks.systems.persistent_store import PersistentStore, PersistentSystem

MICROSECONDS = 1e6
MILLISECONDS = 1e3
LOG_TURNS = 50
LOG_ENTRIES = 20
UNDO_TURNS = 100
ITERATE_TURNS = 3
VERSION = "plan"
VERSION_TURNS = 7
VERSION_COMMITS = 200
SOME = 100
"""Objects in a commit of some."""


def undo_log(system: System, path: Path, sizes: Sizes) -> dict[str, float]:
    """The newest entries of the undo log, and as many in the middle of it, by their time."""
    store = system.open(path)
    assert isinstance(system, PersistentSystem) and isinstance(store, PersistentStore)
    database, middle = store.database, sizes.transactions // 2
    times = [entry["time"] for entry in database.undoLog(middle, middle + LOG_ENTRIES)]
    newest = _timed(LOG_TURNS, lambda: database.undoLog(0, -LOG_ENTRIES))
    between = partial(system.undo_log_between, database, times[-1], times[0], LOG_ENTRIES)
    assert [entry["time"] for entry in between()] == times
    turns = LOG_TURNS if system.searches_by_time else 3  # the others go through the log
    span = _timed(turns, between)
    store.close()
    return {"undo_log_ms": newest * MILLISECONDS, "undo_log_by_time_ms": span * MILLISECONDS}


def _timed(turns: int, call: Callable[[], object]) -> float:
    """The median of the seconds that a call takes."""
    times = []
    for _ in range(turns):
        started = perf_counter()
        call()
        times.append(perf_counter() - started)
    return median(times)


def undo(system: System, path: Path, sizes: Sizes) -> dict[str, float]:
    """A commit of one changed object, and undoing it, in turns: medians."""
    import transaction

    store = system.open(path)
    assert isinstance(store, PersistentStore)
    database, item = store.database, store.item(0)
    times: dict[str, list[float]] = {"undone_commit_us": [], "undo_us": []}
    for _ in range(UNDO_TURNS):
        number = item.number
        started = perf_counter()
        item.number = number + 1
        store.commit()
        times["undone_commit_us"].append(perf_counter() - started)
        last = database.undoLog(0, -1)[0]["id"]
        started = perf_counter()
        database.undo(last)
        transaction.commit()
        times["undo_us"].append(perf_counter() - started)
        assert item.number == number
    store.close()
    return {name: median(values) * MICROSECONDS for name, values in times.items()}


def iterate(system: System, path: Path, sizes: Sizes) -> dict[str, float]:
    """All records of a file, with their data: the median, per record."""
    return {"iterate_us": _iterate(system, path)}


def iterate_bulk(system: System, path: Path, sizes: Sizes) -> dict[str, float]:
    """The same, written in bulk."""
    return {"iterate_bulk_us": _iterate(system, path)}


def _iterate(system: System, path: Path) -> float:
    assert isinstance(system, PersistentSystem)
    storage, times = system.storage(str(path / "data.fs")), []
    for _ in range(ITERATE_TURNS):
        count = size = 0
        started = perf_counter()
        for transaction in storage.iterator():
            for record in transaction:
                count += 1
                size += len(record.data)
        times.append((perf_counter() - started) / count)
    storage.close()
    return median(times) * MICROSECONDS


def copy(system: System, path: Path, sizes: Sizes) -> dict[str, float]:
    """Copying a file, from one file storage to a new one, durably: per record."""
    return {"copy_us": _copy(system, path)}


def copy_bulk(system: System, path: Path, sizes: Sizes) -> dict[str, float]:
    """The same, written in bulk."""
    return {"copy_bulk_us": _copy(system, path)}


def _copy(system: System, path: Path) -> float:
    assert isinstance(system, PersistentSystem)
    source = system.storage(str(path / "data.fs"))
    count = sum(1 for transaction in source.iterator() for _ in transaction)
    destination = system.storage(str(path / "copy.fs"))
    gc.collect()
    started = perf_counter()
    destination.copyTransactionsFrom(source)
    elapsed = perf_counter() - started
    assert destination.lastTransaction() == source.lastTransaction()
    assert len(destination) == len(source)
    destination.close()
    source.close()
    return elapsed / count * MICROSECONDS


def versions(system: System, path: Path, sizes: Sizes) -> dict[str, float]:
    """Commits and cold loads in a version and outside any, in turns: medians."""
    store = system.open(path)
    assert isinstance(store, PersistentStore)
    half = sizes.version_objects
    inside = _Worker(store.database, VERSION, range(half))
    outside = _Worker(store.database, "", range(half, 2 * half))
    times: dict[str, list[float]] = {}
    for worker in (inside, outside):  # as far apart, and as near to one another, in the file
        worker.change(half)
    for turn in range(VERSION_TURNS):
        for name, worker in _in_turns(turn, inside, outside):
            times.setdefault(f"load_{name}_us", []).append(worker.load())
    for turn in range(VERSION_COMMITS):
        for name, worker in _in_turns(turn, inside, outside):
            times.setdefault(f"commit_{name}_us", []).append(worker.change(1))
    for turn in range(VERSION_COMMITS // 5):
        for name, worker in _in_turns(turn, inside, outside):
            some = worker.change(SOME) / SOME
            times.setdefault(f"commit_some_{name}_us", []).append(some)
    inside.connection.close()
    outside.connection.close()
    store.close()
    return {name: median(values) * MICROSECONDS for name, values in times.items()}


def version_commit(system: System, path: Path, sizes: Sizes) -> dict[str, float]:
    """Committing, and aborting, a version in which many objects are changed, in a transaction that
    does nothing else: medians. The connection that changed them stays open, and sees it later."""
    from transaction import TransactionManager

    store = system.open(path)
    assert isinstance(store, PersistentStore)
    database, times = store.database, {}
    worker, manager = _Worker(database, VERSION, range(sizes.version_objects)), TransactionManager()
    for name, end in (("commit", database.commitVersion), ("abort", database.abortVersion)):
        found = times[f"version_{name}_ms"] = []
        for _ in range(VERSION_TURNS):
            worker.change(sizes.version_objects)
            gc.collect()
            started = perf_counter()
            end(VERSION, txn=manager.get())
            manager.commit()
            found.append(perf_counter() - started)
            assert database.versionEmpty(VERSION)
            worker.manager.begin()
            worker.load()
    worker.connection.close()
    store.close()
    return {name: median(values) * MILLISECONDS for name, values in times.items()}


def _in_turns(turn: int, inside: _Worker, outside: _Worker) -> list[tuple[str, _Worker]]:
    pairs = [("inside", inside), ("outside", outside)]
    return pairs if turn % 2 else pairs[::-1]


class _Worker:
    """A connection in a version, or outside any, with some items."""

    def __init__(self, database: Any, version: str, keys: range) -> None:
        from transaction import TransactionManager

        self.manager = TransactionManager()
        self.connection = database.open(version, transaction_manager=self.manager)
        tree = self.connection.root()["items"]
        self.items = list(tree.values(min=keys[0], max=keys[-1]))
        self.load()

    def load(self) -> float:
        """Load all of the items; return the seconds taken for each."""
        items = self.items
        self.connection.cacheMinimize()
        started = perf_counter()
        for item in items:
            item.number  # noqa: B018  loads it
        return (perf_counter() - started) / len(items)

    def change(self, count: int) -> float:
        """Change so many of the items; return the seconds that the commit takes."""
        for item in self.items[:count]:
            item.number += 1
        started = perf_counter()
        self.manager.commit()
        return perf_counter() - started
