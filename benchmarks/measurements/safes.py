"""Module safes: one value stored durably, and read again, beside Berkeley DB by itself.

Both store the same bytes in one synced transaction, in turns, in directories beside each other.
"""

from __future__ import annotations

from pathlib import Path
from pickle import dumps, loads
from statistics import median
from time import perf_counter
from typing import Any

from benchmarks.shapes import Item
from benchmarks.sizes import Sizes
from benchmarks.systems import System

MICROSECONDS = 1e6
KEYS = 1000
READS = 20_000


def access(system: System, path: Path, sizes: Sizes) -> dict[str, float]:
    """Store a plain object at each of 1,000 keys in turn: the median; and read it: the mean."""
    from berkeleydb import db as bdb

    from objdb.safe import open_safe

    bare = path / "bare"
    bare.mkdir()
    environment = bdb.DBEnv()
    parts = bdb.DB_INIT_MPOOL | bdb.DB_INIT_LOCK | bdb.DB_INIT_LOG | bdb.DB_INIT_TXN
    environment.open(str(bare), parts | bdb.DB_CREATE | bdb.DB_RECOVER | bdb.DB_THREAD)
    table = bdb.DB(environment)
    table.open(
        "bare.db", dbtype=bdb.DB_BTREE,
        flags=bdb.DB_CREATE | bdb.DB_AUTO_COMMIT | bdb.DB_THREAD,
    )

    def bare_set(key: str, value: Any) -> None:
        txn = environment.txn_begin()
        table.put(key.encode(), dumps(value, 5), txn=txn)
        txn.commit()

    keys = [f"key {number}" for number in range(KEYS)]
    with open_safe(path / "safe", backend="berkeley") as safe:
        safe.update((key, Item(0)) for key in keys)
        for key in keys:
            table.put(key.encode(), dumps(Item(0), 5))
        set_us, bare_set_us = _in_turns((safe.__setitem__, bare_set), keys, sizes.small_commits)
        started = perf_counter()
        for number in range(READS):
            safe[keys[number % KEYS]]
        get = perf_counter() - started
        started = perf_counter()
        for number in range(READS):
            loads(table.get(keys[number % KEYS].encode()))
        bare_get = perf_counter() - started
    table.close()
    environment.close()
    return {
        "set_us": set_us, "bare_set_us": bare_set_us,
        "get_us": get / READS * MICROSECONDS, "bare_get_us": bare_get / READS * MICROSECONDS,
    }


def _in_turns(functions: tuple[Any, Any], keys: list[str], times: int) -> list[float]:
    """The medians of both, in microseconds."""
    taken: tuple[list[float], list[float]] = ([], [])
    for number in range(times):
        key, value = keys[number % len(keys)], Item(number)
        for function, times_of in zip(functions, taken, strict=True):
            started = perf_counter()
            function(key, value)
            times_of.append(perf_counter() - started)
    return [median(times_of) * MICROSECONDS for times_of in taken]
