"""What is measured: each measurement with its database, its systems and what it reports."""

from __future__ import annotations

from benchmarks.measurements import cache, commits, concurrency, loads, sharing
from benchmarks.measurements.measurement import Function, Measurement, Quantity
from benchmarks.measurements.of_files import of_files
from benchmarks.sizes import Sizes


def catalogue(sizes: Sizes) -> dict[str, Measurement]:
    """All measurements of a run, by name."""
    found = [
        *_commits(sizes),
        *_loads(sizes),
        *_cache(sizes),
        *_concurrency(sizes),
        *_isolation(sizes),
        *of_files(sizes),
        *_sharing(sizes),
    ]
    return {measurement.name: measurement for measurement in found}


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


def _sharing(sizes: Sizes) -> list[Measurement]:
    items = f"items:{sizes.objects}"
    clients = f"{sharing.CLIENTS} client processes"
    idle = f"{sharing.IDLE_CLIENTS:,} idle clients"

    def of_servers(name: str, function: Function, *quantities: Quantity) -> Measurement:
        return Measurement(name, function, "served", items, quantities, writes=True)

    return [
        of_servers("clients-commit", sharing.commits, Quantity(
            "clients_per_second", f"small commits, {clients}", "commits/s", more_is_better=True,
        )),
        of_servers("clients-contended", sharing.contended, Quantity(
            "contended_per_second", f"one contended `Length`, {clients}", "commits/s",
            more_is_better=True,
        )),
        of_servers("clients-load", sharing.loads, Quantity(
            "client_loads_per_second", f"cold loads, {clients}", "loads/s", more_is_better=True,
        )),
        of_servers(
            "load-beside-commits", sharing.beside_commits,
            Quantity("beside_us", "load while another client commits without pause", "µs"),
            Quantity("beside_99_us", "… 99th percentile", "µs"),
            Quantity("beside_99_times", "… of its own median", "times"),
        ),
        of_servers(
            "load-above-round-trip", sharing.above_round_trip,
            Quantity("above_us", "load above a bare round trip", "µs"),
            Quantity("alone_us", "… the load", "µs"),
            Quantity("round_trip_us", "… the round trip", "µs"),
        ),
        of_servers(
            "idle-clients", sharing.idle_clients,
            Quantity("beside_idle_us", f"small commit beside {idle}", "µs"),
            Quantity("alone_commit_us", "… without them", "µs"),
            Quantity("idle_times", "… ratio", "times"),
            Quantity("idle_kib", "… memory of the server, a client", "KiB"),
            Quantity("idle_resident_mib", "… altogether", "MiB"),
        ),
        of_servers(
            "reconnection", sharing.reconnection,
            Quantity(
                "reconnection_ms", f"reconnection, {sharing.CHANGED:,} oids changed meanwhile", "ms"
            ),
            Quantity("dropped", "… unchanged objects that have to be loaded again", "objects"),
        ),
        Measurement(
            "iteration", sharing.iteration, "served", f"history:{sizes.copied}",
            (
                Quantity("iterated_us", "iterating through the wire", "µs/record"),
                Quantity("copied_us", "copying through the wire", "µs/record"),
            ),
            writes=True,
        ),
    ]
