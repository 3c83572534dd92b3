"""The databases that are built once per run and then copied or reopened for each measurement.

A template is named by what is in it: `items:100000`, `generations:200000` (items that were changed
twice), `tree`, `oo7`, `history:20000` (so many transactions of 5 records), or `killed:1000000`,
which is what a process leaves behind that is killed after committing that many items. The empty
name stands for an empty directory.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from time import perf_counter
from typing import Any

from benchmarks import oo7
from benchmarks.sizes import Sizes
from benchmarks.systems import ObjectStore, Store, System
from benchmarks.systems.persistent_store import PersistentSystem

BATCH = 10_000
"""Items per transaction while loading."""

GENERATION_BATCH = 1000
"""Items per transaction while they are changed."""

TREE_CHILDREN = 3
HISTORY_OBJECTS = 1000
HISTORY_RECORDS = 5
"""So many records are in a transaction, of so many objects in turn."""

MIB = 1 << 20


def needs(template: str) -> str:
    """The ability a system must have to build the template."""
    if template.startswith("history"):
        return "history"
    return "objects" if template in ("tree", "oo7") else "items"


def build(system: System, template: str, path: Path, sizes: Sizes) -> tuple[Store, float]:
    """Build the template in the empty directory `path`.

    Returns the store, still open, and the microseconds taken per item.
    """
    store = system.create(path)
    started = perf_counter()
    count = 1
    if template == "tree":
        assert isinstance(store, ObjectStore)
        store.root()["tree"] = _tree(store.model, sizes.tree_levels, itertools.count())
        store.commit()
    elif template == "oo7":
        assert isinstance(store, ObjectStore)
        store.root()["oo7"] = oo7.build(store.model, sizes.oo7_parts, sizes.oo7_levels)
        store.commit()
    elif template.startswith("history"):
        assert isinstance(system, PersistentSystem)
        store.stage(range(HISTORY_OBJECTS))
        store.commit()
        store.close()
        with system.unsynced(str(path / "data.fs")) as storage:
            _write_history(system, storage, int(template.partition(":")[2]))
        store = system.open(path)
    else:
        count = int(template.partition(":")[2])
        for first in range(0, count, BATCH):
            store.stage(range(first, min(first + BATCH, count)))
            store.commit()
            store.trim()
        if template.startswith("generations:"):
            _change_all(store, count)
    return store, (perf_counter() - started) / count * 1e6


def _change_all(store: Store, count: int) -> None:
    """Two more generations: change every item, and once more."""
    for generation in (1, 2):
        for first in range(0, count, GENERATION_BATCH):
            for key in range(first, min(first + GENERATION_BATCH, count)):
                store.item(key).number = key + generation
            store.commit()
        store.trim()


def _write_history(system: PersistentSystem, storage: Any, transactions: int) -> None:
    """Write transactions that change items, through the storage: a small part of the time that
    commits would take."""
    items = [number.to_bytes(8, "big") for number in range(1, HISTORY_OBJECTS + 1)]
    current = {oid: storage.load(oid, "") for oid in items}
    oids = itertools.cycle(items)
    for number in range(transactions):
        metadata = system.metadata("somebody", f"change {number}")
        storage.tpc_begin(metadata)
        changed = list(itertools.islice(oids, HISTORY_RECORDS))
        for oid in changed:
            storage.store(oid, current[oid][1], current[oid][0], "", metadata)
        storage.tpc_vote(metadata)
        tid = storage.tpc_finish(metadata)
        current.update((oid, (current[oid][0], tid)) for oid in changed)


def _tree(model: Any, levels: int, numbers: Iterator[int]) -> Any:
    """A tree of nodes with 3 children each."""
    number = next(numbers)
    if levels == 1:
        return model.Node(number, [])
    children = [_tree(model, levels - 1, numbers) for _ in range(TREE_CHILDREN)]
    return model.Node(number, children)


def tree_nodes(levels: int) -> int:
    """How many nodes that tree has."""
    nodes: int = (TREE_CHILDREN**levels - 1) // (TREE_CHILDREN - 1)
    return nodes


def size_mib(path: Path) -> float:
    """The space that the files in a directory take on disk."""
    return sum(file.stat().st_blocks * 512 for file in path.rglob("*") if file.is_file()) / MIB


def warm(path: Path) -> None:
    """Read the files once, so that they are in the page cache.

    Not in the process that measures: the memory used for it would serve what is measured.
    """
    for file in path.rglob("*"):
        if file.is_file():
            with file.open("rb", buffering=0) as source:
                while source.read(16 * MIB):
                    pass
