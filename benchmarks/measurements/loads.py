"""Loading: the database is open, none of its objects is in memory, its files are in the page cache.

What is timed begins at the root object and ends when one attribute of the last object was read, so
it includes loading the nodes of the tree that lead there. Everything loaded is kept.
"""

from __future__ import annotations

import random
from pathlib import Path
from time import perf_counter
from timeit import Timer
from typing import Any

from benchmarks import oo7
from benchmarks.sizes import Sizes
from benchmarks.systems import ObjectStore, System
from benchmarks.templates import tree_nodes

MICROSECONDS = 1e6
MILLISECONDS = 1e3
NANOSECONDS = 1e9


def in_order(system: System, path: Path, sizes: Sizes) -> dict[str, float]:
    """All items, as the container lists them, per item."""
    store = system.open(path)
    started = perf_counter()
    loaded = store.read_in_order()
    elapsed = perf_counter() - started
    assert len(loaded) == sizes.objects
    store.close()
    return {"in_order_us": elapsed / sizes.objects * MICROSECONDS}


def at_random(system: System, path: Path, sizes: Sizes) -> dict[str, float]:
    """All items, one after another in random order, per item."""
    keys = list(range(sizes.objects))
    random.Random(3).shuffle(keys)
    store = system.open(path)
    started = perf_counter()
    loaded = store.read_by_key(keys)
    elapsed = perf_counter() - started
    assert len(loaded) == sizes.objects
    store.close()
    return {"at_random_us": elapsed / sizes.objects * MICROSECONDS}


def tree(system: System, path: Path, sizes: Sizes) -> dict[str, float]:
    """A tree of nodes with 3 children each, depth first, per node."""
    store = _object_store(system, path)
    started = perf_counter()
    nodes = _count(store.root()["tree"])
    elapsed = perf_counter() - started
    assert nodes == tree_nodes(sizes.tree_levels)
    store.close()
    return {"tree_us": elapsed / nodes * MICROSECONDS}


def _count(node: Any) -> int:
    return 1 + sum(_count(child) for child in node.children)


def oo7_t1(system: System, path: Path, sizes: Sizes) -> dict[str, float]:
    """OO7 traversal T1, cold."""
    store = _object_store(system, path)
    started = perf_counter()
    visits = oo7.traverse(store.root()["oo7"], sizes.oo7_levels)
    elapsed = perf_counter() - started
    assert visits == oo7.visits(sizes.oo7_levels)
    store.close()
    return {"t1_ms": elapsed * MILLISECONDS}


def oo7_t2b(system: System, path: Path, sizes: Sizes) -> dict[str, float]:
    """OO7 traversal T2b, cold, and the commit of all it changed."""
    store = _object_store(system, path)
    started = perf_counter()
    visits = oo7.traverse(store.root()["oo7"], sizes.oo7_levels, update=True)
    traversed = perf_counter()
    store.commit()
    committed = perf_counter()
    assert visits == oo7.visits(sizes.oo7_levels)
    store.close()
    return {
        "t2b_ms": (committed - started) * MILLISECONDS,
        "t2b_commit_ms": (committed - traversed) * MILLISECONDS,
    }


def _object_store(system: System, path: Path) -> ObjectStore:
    store = system.open(path)
    assert isinstance(store, ObjectStore)
    return store


def attribute(system: System, path: Path, sizes: Sizes) -> dict[str, float]:
    """Reading an attribute of a loaded object: the best of several loops."""
    store = system.open(path)
    item = store.item(0)
    item.number  # noqa: B018  loads it
    unrolled, loops = 20, 5_000
    timer = Timer(";".join(["item.number"] * unrolled), globals={"item": item})
    best = min(timer.repeat(100, loops)) / loops / unrolled
    store.close()
    return {"attribute_ns": best * NANOSECONDS}
