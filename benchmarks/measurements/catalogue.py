"""What is measured: each measurement with its database, its systems and what it reports."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from benchmarks.measurements import (
    cache,
    commits,
    concurrency,
    history,
    loads,
    opening,
    packing,
    safes,
)
from benchmarks.sizes import Sizes
from benchmarks.systems import SYSTEMS, System

Function = Callable[[System, Path, Sizes], dict[str, float]]

SLOW_TO_LOAD = ("durus",)
"""Left out of files larger than `Sizes.slow_objects`, since building them takes minutes."""

HUGE_OBJECTS = 2_000_000
HUGE = ("objdb", "zodb", "lmdb")
"""Larger files than `HUGE_OBJECTS` are built for these systems only, for the same reason."""


@dataclass(frozen=True)
class Quantity:
    """A number that a measurement gives."""

    key: str
    title: str
    unit: str
    more_is_better: bool = False


@dataclass(frozen=True)
class Measurement:
    """A function, the database it starts from, and who takes part.

    ability    a system must have it (see `systems/base.py`)
    template   what the database holds (see `templates.py`)
    writes     whether it changes the database, and so needs a copy of its own
    rounds     at most this many, because it takes long; 0: as many as the others
    only       names of systems, if not all with the ability take part
    """

    name: str
    function: Function
    ability: str
    template: str
    quantities: tuple[Quantity, ...]
    writes: bool = False
    rounds: int = 0
    only: tuple[str, ...] = ()

    def takes(self, system: System) -> bool:
        if system.takes_part_in is not None:
            return self.name in system.takes_part_in
        return self.ability in system.abilities and (not self.only or system.name in self.only)


def catalogue(sizes: Sizes) -> dict[str, Measurement]:
    """All measurements of a run, by name."""
    found = [
        *_commits(sizes),
        *_loads(sizes),
        *_cache(sizes),
        *_concurrency(sizes),
        *_isolation(sizes),
        *_history(sizes),
        *_versions(sizes),
        *_opening(sizes),
        *_packing(sizes),
        *_safes(),
        *_growth(sizes),
    ]
    return {measurement.name: measurement for measurement in found}


def _who(objects: int, sizes: Sizes) -> tuple[str, ...]:
    """The systems that take part with a file of so many objects; empty: all."""
    if objects > HUGE_OBJECTS:
        return HUGE
    if objects > sizes.slow_objects:
        return tuple(name for name in SYSTEMS if name not in SLOW_TO_LOAD)
    return ()


def _commits(sizes: Sizes) -> list[Measurement]:
    items = f"items:{sizes.objects}"
    return [
        Measurement(
            "bulk-commit",
            commits.bulk,
            "items",
            "",
            (
                Quantity(
                    "bulk_us", f"bulk commit of {sizes.new_objects:,} new objects", "µs/object"
                ),
            ),
        ),
        Measurement(
            "batch-commit",
            commits.batch,
            "items",
            items,
            (Quantity("batch_us", "commit of 100 new objects", "µs/object"),),
            writes=True,
        ),
        Measurement(
            "small-commit",
            commits.small,
            "save",
            items,
            (Quantity("small_us", "small durable commit (one changed object)", "µs"),),
            writes=True,
        ),
        Measurement(
            "threads-commit",
            commits.threads,
            "threads",
            items,
            (
                Quantity(
                    "threads_per_second",
                    f"small durable commits, {sizes.threads} threads",
                    "commits/s",
                    more_is_better=True,
                ),
            ),
            writes=True,
        ),
        Measurement(
            "processes-commit",
            commits.processes,
            "processes",
            items,
            (
                Quantity(
                    "processes_per_second",
                    f"small durable commits, {commits.PROCESSES} processes",
                    "commits/s",
                    more_is_better=True,
                ),
            ),
            writes=True,
        ),
    ]


def _loads(sizes: Sizes) -> list[Measurement]:
    items = f"items:{sizes.objects}"
    return [
        Measurement(
            "load-in-order",
            loads.in_order,
            "items",
            items,
            (Quantity("in_order_us", "cold load, container order", "µs/object"),),
        ),
        Measurement(
            "load-at-random",
            loads.at_random,
            "items",
            items,
            (Quantity("at_random_us", "cold load, random order", "µs/object"),),
        ),
        Measurement(
            "tree",
            loads.tree,
            "objects",
            "tree",
            (Quantity("tree_us", "cold tree traversal", "µs/node"),),
        ),
        Measurement(
            "oo7-t1",
            loads.oo7_t1,
            "objects",
            "oo7",
            (Quantity("t1_ms", "OO7 T1, cold", "ms"),),
        ),
        Measurement(
            "oo7-t2b",
            loads.oo7_t2b,
            "objects",
            "oo7",
            (
                Quantity("t2b_ms", "OO7 T2b, cold: update all, commit", "ms"),
                Quantity("t2b_commit_ms", "… of that, the commit", "ms"),
            ),
            writes=True,
        ),
        Measurement(
            "attribute",
            loads.attribute,
            "attribute",
            items,
            (Quantity("attribute_ns", "attribute of a loaded object", "ns"),),
        ),
    ]


def _cache(sizes: Sizes) -> list[Measurement]:
    items = f"items:{sizes.objects}"
    title = f"invalidation of {sizes.objects:,} loaded objects"
    return [
        Measurement(
            "sweep",
            cache.sweep,
            "sweep",
            items,
            (Quantity("sweep_ms", f"cacheMinimize of {sizes.objects:,} objects", "ms"),),
        ),
        Measurement(
            "invalidation",
            cache.invalidation,
            "sweep",
            items,
            (Quantity("invalidation_ms", title, "ms"),),
            writes=True,
        ),
    ]


def _concurrency(sizes: Sizes) -> list[Measurement]:
    items = f"items:{sizes.objects}"
    contenders = f"{concurrency.CONTENDERS} threads"
    changed = f"{concurrency.SAVEPOINT_OBJECTS:,} changed objects"
    return [
        Measurement(
            "contended-object", concurrency.contended_object, "retries", items,
            (
                Quantity(
                    "contended_per_second", f"one contended object, {contenders}", "commits/s",
                    more_is_better=True,
                ),
            ),
            writes=True,
        ),
        Measurement(
            "contended-length", concurrency.contended_length, "retries", items,
            (
                Quantity(
                    "length_per_second", f"one contended `Length`, {contenders}", "commits/s",
                    more_is_better=True,
                ),
            ),
            writes=True,
        ),
        Measurement(
            "savepoint", concurrency.savepoint, "retries", items,
            (
                Quantity("savepoint_and_back_ms", f"savepoint of {changed}, and rollback", "ms"),
                Quantity("savepoint_ms", "… of that, the savepoint", "ms"),
                Quantity("rollback_ms", "… of that, the rollback", "ms"),
            ),
        ),
        Measurement(
            "pool", concurrency.pool, "retries", items,
            (Quantity("pool_us", "open and close a pooled connection", "µs"),),
        ),
        Measurement(
            "tasks", concurrency.tasks, "isolation", items,
            (
                Quantity(
                    "by_tasks_per_second", f"small durable commits, {concurrency.TASKS:,} tasks",
                    "commits/s", more_is_better=True,
                ),
                Quantity(
                    "by_threads_per_second", f"… by {sizes.threads} threads in the same process",
                    "commits/s", more_is_better=True,
                ),
            ),
            writes=True,
        ),
    ]


def _isolation(sizes: Sizes) -> list[Measurement]:
    items = f"items:{sizes.objects}"
    touched, few = f"{concurrency.TOUCHED:,}", concurrency.FEW_TOUCHED
    return [
        Measurement(
            "isolation", concurrency.isolation, "isolation", items,
            (
                Quantity("hot_serializable_us", "serializable: hot read", "µs"),
                Quantity("hot_snapshot_us", "… in snapshot", "µs"),
                Quantity("cold_serializable_us", "serializable: cold load", "µs/object"),
                Quantity("cold_snapshot_us", "… in snapshot", "µs/object"),
                Quantity("commit_serializable_us", f"commit after touching {touched}", "µs"),
                Quantity("commit_snapshot_us", "… in snapshot", "µs"),
                Quantity("commit_above_ms", "… above snapshot", "ms"),
            ),
            writes=True,
        ),
        Measurement(
            "isolation-of-few", concurrency.isolation_of_few, "isolation", f"items:{sizes.large}",
            (
                Quantity(
                    "few_above_ms",
                    f"serializable: commit after touching {few} of {sizes.large:,}, above snapshot",
                    "ms",
                ),
            ),
            writes=True,
            rounds=3,
        ),
    ]


def _history(sizes: Sizes) -> list[Measurement]:
    items, log = f"items:{sizes.objects}", f"history:{sizes.transactions}"
    copied = f"history:{sizes.copied}"
    entries = f"{history.LOG_ENTRIES} of {sizes.transactions:,} transactions"
    return [
        Measurement(
            "undo-log", history.undo_log, "history", log,
            (
                Quantity("undo_log_ms", f"undoLog: the newest {entries}", "ms"),
                Quantity("undo_log_by_time_ms", "… as many in the middle, by time", "ms"),
            ),
        ),
        Measurement(
            "undo", history.undo, "history", items,
            (
                Quantity("undo_us", "undo of a small transaction, durable", "µs"),
                Quantity("undone_commit_us", "… the small commit that is undone", "µs"),
            ),
            writes=True,
        ),
        Measurement(
            "iterate", history.iterate, "history", copied,
            (Quantity("iterate_us", "iterate, transactions of 5 records", "µs/record"),),
        ),
        Measurement(
            "iterate-bulk", history.iterate_bulk, "history", items,
            (Quantity("iterate_bulk_us", "iterate, transactions of 10,000", "µs/record"),),
        ),
        Measurement(
            "copy", history.copy, "history", copied,
            (Quantity("copy_us", "copyTransactionsFrom, of 5 records each", "µs/record"),),
            writes=True,
            rounds=3,
        ),
        Measurement(
            "copy-bulk", history.copy_bulk, "history", items,
            (Quantity("copy_bulk_us", "copyTransactionsFrom, of 10,000 each", "µs/record"),),
            writes=True,
        ),
    ]


def _versions(sizes: Sizes) -> list[Measurement]:
    items, some = f"items:{sizes.objects}", f"{history.SOME} objects"
    changed = f"a version of {sizes.version_objects:,} objects"
    return [
        Measurement(
            "versions", history.versions, "versions", items,
            (
                Quantity("load_inside_us", "cold load in a version", "µs/object"),
                Quantity("load_outside_us", "… outside", "µs/object"),
                Quantity("commit_inside_us", "small durable commit in a version", "µs"),
                Quantity("commit_outside_us", "… outside", "µs"),
                Quantity("commit_some_inside_us", f"commit of {some} in a version", "µs/object"),
                Quantity("commit_some_outside_us", "… outside", "µs/object"),
            ),
            writes=True,
        ),
        Measurement(
            "version-commit", history.version_commit, "versions", items,
            (
                Quantity("version_commit_ms", f"commit of {changed}", "ms"),
                Quantity("version_abort_ms", f"abort of {changed}", "ms"),
            ),
            writes=True,
        ),
    ]


def _opening(sizes: Sizes) -> list[Measurement]:
    large = f"{sizes.large:,} objects"
    found = [
        Measurement(
            "open",
            opening.opening,
            "items",
            f"items:{sizes.large}",
            (
                Quantity("open_ms", f"open a file of {large}", "ms"),
                Quantity("open_mib", "… memory taken", "MiB"),
            ),
            only=_who(sizes.large, sizes),
        ),
        Measurement(
            "open-after-kill",
            opening.after_kill,
            "items",
            f"killed:{sizes.large}",
            (
                Quantity("killed_ms", f"open a file of {large} after kill -9", "ms"),
                Quantity("killed_mib", "… memory taken", "MiB"),
            ),
            writes=True,
            rounds=3,
            only=_who(sizes.large, sizes),
        ),
    ]
    if sizes.index_objects:
        title = f"index of {sizes.index_objects:,} objects, all of it touched"
        found.append(
            Measurement(
                "index",
                opening.index,
                "index",
                f"items:{sizes.index_objects}",
                (
                    Quantity("index_mib", title, "MiB"),
                    Quantity("index_private_mib", "… of that, private", "MiB"),
                    Quantity("index_mapped_mib", "… of that, mapped from files", "MiB"),
                    Quantity("index_open_ms", "… time to open the file", "ms"),
                ),
                rounds=3,
            )
        )
    return found


def _packing(sizes: Sizes) -> list[Measurement]:
    generations = f"generations:{sizes.packed}"
    title = f"pack of {sizes.packed:,} objects in three generations"
    found = [
        Measurement(
            "pack", packing.pack, "sweep", generations,
            (Quantity("pack_s", title, "s"), Quantity("pack_mib", "… memory taken", "MiB")),
            writes=True, rounds=3,
        ),
        Measurement(
            "pack-beside", packing.pack_beside, "sweep", generations,
            (
                Quantity(
                    "beside_per_second", "commits by a thread beside a pack", "commits/s",
                    more_is_better=True,
                ),
                Quantity(
                    "beside_alone_per_second", "… without the pack", "commits/s",
                    more_is_better=True,
                ),
                Quantity("beside_share", "… share that is left", "", more_is_better=True),
                Quantity("beside_longest_ms", "… the longest one beside it", "ms"),
                Quantity("beside_pack_s", "… the pack", "s"),
            ),
            writes=True, rounds=3,
        ),
    ]
    if sizes.packed_many:
        title = f"pack of {sizes.packed_many:,} objects"
        found.append(
            Measurement(
                "pack-many", packing.pack_many, "sweep", f"items:{sizes.packed_many}",
                (Quantity("many_s", title, "s"), Quantity("many_mib", "… memory taken", "MiB")),
                writes=True, rounds=1,
            )
        )
    return found


def _safes() -> list[Measurement]:
    return [
        Measurement(
            "safe", safes.access, "isolation", "",
            (
                Quantity("set_us", "safe[key] = value, durable", "µs"),
                Quantity("bare_set_us", "… the same bytes in Berkeley DB by itself", "µs"),
                Quantity("get_us", "safe[key]", "µs"),
                Quantity("bare_get_us", "… in Berkeley DB by itself, and unpickled", "µs"),
            ),
            writes=True,
        ),
    ]


def _growth(sizes: Sizes) -> list[Measurement]:
    return [
        Measurement(
            f"growth-{count}",
            partial(opening.growth, objects=count),
            "items",
            f"items:{count}",
            (
                Quantity("growth_load_us", "cold load, runs of 100 at random places", "µs/object"),
                Quantity("growth_commit_us", "commit of 100 new objects", "µs/object"),
                Quantity("growth_open_ms", "open", "ms"),
                Quantity("growth_open_mib", "memory taken by opening", "MiB"),
                Quantity("growth_file_mib", "space on disk", "MiB"),
            ),
            writes=True,
            rounds=3 if count <= HUGE_OBJECTS else 1,
            only=_who(count, sizes),
        )
        for count in sizes.growth
    ]
