"""Loaded objects becoming ghosts again: because memory is wanted, or because they are outdated."""

from __future__ import annotations

from pathlib import Path
from time import perf_counter

from benchmarks.sizes import Sizes
from benchmarks.systems import System
from benchmarks.systems.persistent_store import PersistentStore

MILLISECONDS = 1e3


def sweep(system: System, path: Path, sizes: Sizes) -> dict[str, float]:
    """`cacheMinimize` with all items of the container loaded."""
    store = system.open(path)
    assert isinstance(store, PersistentStore)
    loaded = store.read_in_order()
    started = perf_counter()
    store.connection.cacheMinimize()
    elapsed = perf_counter() - started
    assert loaded[0]._p_changed is None and loaded[-1]._p_changed is None
    store.close()
    return {"sweep_ms": elapsed * MILLISECONDS}


def invalidation(system: System, path: Path, sizes: Sizes) -> dict[str, float]:
    """One connection has all items loaded, another has committed changes of all: `sync`."""
    from transaction import TransactionManager

    store = system.open(path)
    assert isinstance(store, PersistentStore)
    reader = store.database.open(transaction_manager=TransactionManager(explicit=False))
    loaded = list(reader.root()["items"].values())
    for item in loaded:
        item.number  # noqa: B018  loads it
    for item in store.read_in_order():
        item.number += 1
    store.commit()
    started = perf_counter()
    reader.sync()
    elapsed = perf_counter() - started
    assert loaded[0]._p_changed is None and loaded[-1]._p_changed is None
    reader.close()
    store.close()
    return {"invalidation_ms": elapsed * MILLISECONDS}
