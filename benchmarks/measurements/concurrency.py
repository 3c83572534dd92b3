"""Many transactions at once, savepoints, the pool, and what isolation costs.

What compares two ways of objdb is measured in turns inside one process. What is contended is one
object, changed by several threads that all try again after a conflict; each change counts once.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

from benchmarks.sizes import Sizes
from benchmarks.systems import System
from benchmarks.systems.persistent_store import PersistentStore, PersistentSystem
from benchmarks.threads import Start, run_threads

MICROSECONDS = 1e6
MILLISECONDS = 1e3
CONTENDERS = 4
CONTENDED_COMMITS = 500
"""By each of the threads."""
SAVEPOINT_OBJECTS = 1000
TURNS = 15
TOUCHED = 10_000
FEW_TOUCHED = 100
MODES = ("snapshot", "serializable")
TASKS = 1000
TASK_COMMITS = 3
"""By each of the tasks."""
TASK_TURNS = 3


def contended_object(system: System, path: Path, sizes: Sizes) -> dict[str, float]:
    """Threads that add to one number: committed transactions per second."""

    def add(root: Any) -> None:
        root["contended"]["n"] += 1

    def value(root: Any) -> int:
        return int(root["contended"]["n"])

    from persistent.mapping import PersistentMapping

    rate = _contend(system, path, PersistentMapping(n=0), add, value)
    return {"contended_per_second": rate}


def contended_length(system: System, path: Path, sizes: Sizes) -> dict[str, float]:
    """Threads that add to one `BTrees.Length`, whose conflicts are resolved: committed
    transactions per second."""

    def add(root: Any) -> None:
        root["contended"].change(1)

    def value(root: Any) -> int:
        return int(root["contended"]())

    from BTrees.Length import Length

    return {"length_per_second": _contend(system, path, Length(), add, value)}


def _contend(
    system: System, path: Path, shared: Any, add: Callable[[Any], None],
    value: Callable[[Any], int],
) -> float:
    assert isinstance(system, PersistentSystem)
    store = system.open(path)
    store.root()["contended"] = shared
    store.commit()

    def work(index: int, start: Start) -> None:
        with system.retrying(store.database) as run:
            start()
            for _ in range(CONTENDED_COMMITS):
                run(add)

    elapsed = run_threads(CONTENDERS, work)
    store.connection.sync()
    assert value(store.root()) == CONTENDERS * CONTENDED_COMMITS, "an addition was lost"
    store.close()
    return CONTENDERS * CONTENDED_COMMITS / elapsed


def savepoint(system: System, path: Path, sizes: Sizes) -> dict[str, float]:
    """A savepoint of changed objects, and rolling as many changes back to it: medians."""
    import transaction

    store = system.open(path)
    assert isinstance(store, PersistentStore)
    items = [store.item(key) for key in range(SAVEPOINT_OBJECTS)]
    times: dict[str, list[float]] = {"savepoint_ms": [], "rollback_ms": []}
    for _ in range(TURNS):
        for item in items:
            item.number += 1
        before = [item.number for item in items[:2]]
        started = perf_counter()
        point = transaction.savepoint()
        times["savepoint_ms"].append(perf_counter() - started)
        for item in items:
            item.number += 1
        started = perf_counter()
        point.rollback()
        times["rollback_ms"].append(perf_counter() - started)
        assert [item.number for item in items[:2]] == before
        transaction.abort()
    store.close()
    both = [sum(pair) for pair in zip(*times.values(), strict=True)]
    medians = {name: median(values) * MILLISECONDS for name, values in times.items()}
    return {"savepoint_and_back_ms": median(both) * MILLISECONDS, **medians}


def pool(system: System, path: Path, sizes: Sizes) -> dict[str, float]:
    """Opening a connection that waits in the pool, and closing it."""
    from transaction import TransactionManager

    store = system.open(path)
    assert isinstance(store, PersistentStore)
    manager = TransactionManager()
    open_connection, count, times = store.database.open, 200, []
    open_connection(transaction_manager=manager).close()
    for _ in range(50):
        started = perf_counter()
        for _ in range(count):
            open_connection(transaction_manager=manager).close()
        times.append((perf_counter() - started) / count)
    store.close()
    return {"pool_us": median(times) * MICROSECONDS}


def isolation(system: System, path: Path, sizes: Sizes) -> dict[str, float]:
    """Reading and committing in both modes: 10,000 objects, all of them touched."""
    store = system.open(path)
    assert isinstance(store, PersistentStore)
    times: dict[str, list[float]] = {}
    readers = {mode: _Reader(store.database, mode, TOUCHED) for mode in MODES}
    for turn in range(TURNS):
        for mode in MODES if turn % 2 else reversed(MODES):
            reader = readers[mode]
            reader.connection.cacheMinimize()
            reader.manager.begin()
            times.setdefault(f"cold_{mode}_us", []).append(reader.touch(TOUCHED) / TOUCHED)
            reader.manager.abort()
            reader.manager.begin()
            times.setdefault(f"hot_{mode}_us", []).append(reader.touch(TOUCHED) / TOUCHED)
            times.setdefault(f"commit_{mode}_us", []).append(reader.commit())
    for reader in readers.values():
        reader.connection.close()
    store.close()
    found = {name: median(values) * MICROSECONDS for name, values in times.items()}
    found["commit_above_ms"] = (found["commit_serializable_us"] - found["commit_snapshot_us"]) / 1e3
    return found


def isolation_of_few(system: System, path: Path, sizes: Sizes) -> dict[str, float]:
    """Committing with a large cache of which little was touched, in both modes."""
    store = system.open(path)
    assert isinstance(store, PersistentStore)
    times: dict[str, list[float]] = {mode: [] for mode in MODES}
    for mode in MODES:
        reader = _Reader(store.database, mode, sizes.large)
        for _ in range(TURNS):
            reader.manager.begin()
            reader.touch(FEW_TOUCHED)
            times[mode].append(reader.commit())
        reader.connection.cacheMinimize()
        reader.connection.close()
    store.close()
    above = median(times["serializable"]) - median(times["snapshot"])
    return {"few_above_ms": above * MILLISECONDS}


def tasks(system: System, path: Path, sizes: Sizes) -> dict[str, float]:
    """Small durable commits by asyncio tasks, and by threads: commits per second. Each task, and
    each thread, changes an object of its own."""
    store = system.open(path)
    assert isinstance(store, PersistentStore)
    rates: dict[str, list[float]] = {"by_tasks": [], "by_threads": []}
    for turn in range(TASK_TURNS):
        for way in (_by_tasks, _by_threads) if turn % 2 else (_by_threads, _by_tasks):
            started = perf_counter()
            way(store.database, sizes)
            rates[way.__name__[1:]].append(TASKS * TASK_COMMITS / (perf_counter() - started))
    store.close()
    return {f"{way}_per_second": median(found) for way, found in rates.items()}


def _change(key: int) -> Callable[[Any], None]:
    def change(connection: Any) -> None:
        connection.root()["items"][key].number += 1

    return change


def _by_tasks(database: Any, sizes: Sizes) -> None:
    async def task(key: int) -> None:
        for _ in range(TASK_COMMITS):
            await database.arun(_change(key))

    async def all_of_them() -> None:
        await asyncio.gather(*(task(key) for key in range(TASKS)))

    asyncio.run(all_of_them())


def _by_threads(database: Any, sizes: Sizes) -> None:
    def work(index: int, start: Start) -> None:
        change = _change(index * (TASKS // sizes.threads))
        start()
        for _ in range(TASKS * TASK_COMMITS // sizes.threads):
            database.run(change)

    run_threads(sizes.threads, work)


class _Reader:
    """A connection in one mode, with so many items loaded."""

    def __init__(self, database: Any, mode: str, count: int) -> None:
        from transaction import TransactionManager

        self.manager = TransactionManager(explicit=True)
        self.manager.begin()
        self.connection = database.open(transaction_manager=self.manager, isolation=mode)
        tree = self.connection.root()["items"]
        self.items = list(tree.values(max=count - 1))
        self.touch(count)
        self.manager.commit()

    def touch(self, count: int) -> float:
        """Read an attribute of so many items; return the seconds taken."""
        items = self.items[:count]
        started = perf_counter()
        for item in items:
            item.number  # noqa: B018  loads or touches it
        return perf_counter() - started

    def commit(self) -> float:
        """Change one of the items that were touched, and commit; return the seconds taken."""
        self.items[0].number += 1
        started = perf_counter()
        self.manager.commit()
        return perf_counter() - started
