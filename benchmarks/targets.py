"""What objdb promises to reach, as ratios in one run, and whether it did.

A bound compares one number of a row: its ratio to the peer, or our own value. Ratios are written
so that they can be read aloud: "2.5 × ZODB" is how many times as fast we are, "≤ 1.15 ×" how much
of the peer's time we take.
"""

# ruff: noqa: RUF001, RUF002
from __future__ import annotations

from dataclasses import dataclass

from benchmarks.measurements import concurrency, history, sharing
from benchmarks.results import Results
from benchmarks.sizes import Sizes
from benchmarks.systems import SYSTEMS

OURS = "objdb"
SERVER = "objdb-zeo"
NOISE = 1.05
"""Two runs of the same code differ by so much: "no slower" and "equal" allow for it."""


@dataclass(frozen=True)
class Bound:
    """A condition, with the words that the table has for it.

    at_least, at_most    limits on the row's ratio
    ours_at_most         a limit on our own value, in the row's unit
    no_worse_than        a system that has to be slower than we are
    """

    text: str
    at_least: float | None = None
    at_most: float | None = None
    ours_at_most: float | None = None
    no_worse_than: str | None = None


@dataclass(frozen=True)
class Target:
    """A row of the table: a quantity of ours beside the peer's.

    speed     the ratio says how many times as fast as the peer we are; otherwise, it says how
              many times the peer's time or memory we take
    beside    another quantity of the measurement, ours as well, and its name, in place of a
              peer's
    ours      which system is ours
    """

    title: str
    measurement: str
    quantity: str
    unit: str
    at_least: Bound
    aim: Bound | None = None
    peer: str | None = None
    speed: bool = True
    more_is_better: bool = False
    beside: tuple[str, str] | None = None
    ours: str = OURS


@dataclass(frozen=True)
class Verdict:
    """A target beside what was measured; `reached` and `aim` are None where nothing was."""

    target: Target
    ours: float | None
    peer: float | None
    ratio: float | None
    reached: bool | None
    aim: bool | None


def judge(target: Target, results: Results) -> Verdict:
    """Compare the medians of a run with a target."""
    ours = results.median(target.measurement, target.ours, target.quantity)
    peer = None
    if target.peer:
        peer = results.median(target.measurement, target.peer, target.quantity)
    elif target.beside:
        peer = results.median(target.measurement, target.ours, target.beside[0])
    ratio = None
    if ours is not None and peer is not None:
        ratio = _ratio(target, ours, peer)
    reached = _holds(target.at_least, target, ours, ratio, results)
    aim = _holds(target.aim, target, ours, ratio, results) if target.aim else None
    return Verdict(target, ours, peer, ratio, reached, aim)


def _ratio(target: Target, ours: float, peer: float) -> float | None:
    over, under = (ours, peer) if target.more_is_better or not target.speed else (peer, ours)
    return over / under if under else None


def _holds(
    bound: Bound, target: Target, ours: float | None, ratio: float | None, results: Results
) -> bool | None:
    if ours is None:
        return None
    checks: list[bool] = []
    if bound.ours_at_most is not None:
        checks.append(ours <= bound.ours_at_most)
    if bound.no_worse_than:
        other = results.median(target.measurement, bound.no_worse_than, target.quantity)
        if other is None:
            return None
        checks.append(ours > other if target.more_is_better else ours <= other)
    if bound.at_least is not None or bound.at_most is not None:
        if ratio is None:
            return None
        checks.append(bound.at_least is None or ratio >= bound.at_least)
        checks.append(bound.at_most is None or ratio <= bound.at_most)
    return all(checks)


def _times(factor: float) -> Bound:
    return Bound(f"{factor:g} × ZODB", at_least=factor)


def targets(sizes: Sizes) -> list[Target]:
    """The table, with the sizes of this run."""
    return [
        *_commits(sizes), *_loads(), *_cache(sizes), *_concurrency(sizes), *_history(sizes),
        *_versions(sizes), *_opening(sizes), *_packing(sizes),
        *_safes(),
    ]


def _commits(sizes: Sizes) -> list[Target]:
    title = f"bulk commit of {sizes.new_objects:,} new objects, per object"
    threads = f"small durable commits, {sizes.threads} threads"
    append, berkeley = SYSTEMS["append"].title, SYSTEMS["berkeley"].title
    return [
        Target(title, "bulk-commit", "bulk_us", "µs", _times(2.5), _times(4), "zodb"),
        Target(
            "commit of 100 objects, per object",
            "batch-commit",
            "batch_us",
            "µs",
            _times(2),
            _times(3),
            "zodb",
        ),
        Target(
            "small durable commit",
            "small-commit",
            "small_us",
            "µs",
            Bound(f"≤ 1.15 × {append}", at_most=1.15),
            Bound("below the bare append", at_most=1.0),
            "append",
            speed=False,
        ),
        Target(
            threads,
            "threads-commit",
            "threads_per_second",
            "commits/s",
            _times(4),
            Bound(f"more than {berkeley}", no_worse_than="berkeley"),
            "zodb",
            more_is_better=True,
        ),
    ]


def _loads() -> list[Target]:
    found = []
    for order, name, quantity in (
        ("container order", "load-in-order", "in_order_us"),
        ("random order", "load-at-random", "at_random_us"),
    ):
        title = f"cold load, {order}"
        found.append(Target(title, name, quantity, "µs", _times(3.5), None, "zodb"))
        bound, aim = (
            Bound("≤ 1.3 × LMDB + pickle", at_most=1.3),
            Bound("≤ LMDB + pickle", at_most=1),
        )
        found.append(Target(title, name, quantity, "µs", bound, aim, "lmdb", speed=False))
    for title, name, quantity, unit, factor, aim_factor in (
        ("cold tree traversal, per node", "tree", "tree_us", "µs", 3.5, 5),
        ("OO7 T1 cold", "oo7-t1", "t1_ms", "ms", 3.5, 5),
        ("OO7 T2b (update all, commit)", "oo7-t2b", "t2b_ms", "ms", 2.5, 4),
    ):
        found.append(
            Target(title, name, quantity, unit, _times(factor), _times(aim_factor), "zodb")
        )
    return found


def _cache(sizes: Sizes) -> list[Target]:
    slower = Bound("no slower than ZODB", at_least=1 / NOISE)
    objects = f"{sizes.objects:,} objects"
    return [
        Target(
            "attribute of a loaded object",
            "attribute",
            "attribute_ns",
            "ns",
            Bound("= plain Persistent", at_most=NOISE),
            None,
            "persistent",
            speed=False,
        ),
        Target(f"cacheMinimize of {objects}", "sweep", "sweep_ms", "ms", slower, None, "zodb"),
        Target(
            f"invalidation of {objects}",
            "invalidation",
            "invalidation_ms",
            "ms",
            slower,
            None,
            "zodb",
        ),
    ]


def _concurrency(sizes: Sizes) -> list[Target]:
    contenders = f"{concurrency.CONTENDERS} threads"
    touched, few = f"{concurrency.TOUCHED:,}", concurrency.FEW_TOUCHED
    equal = Bound("≤ 1.02 × snapshot", at_most=1.02), Bound("= snapshot", at_most=1.0)
    return [
        Target(
            "serializable: hot reads", "isolation", "hot_serializable_us", "µs", *equal,
            speed=False, beside=("hot_snapshot_us", "snapshot"),
        ),
        Target(
            "serializable: cold loads", "isolation", "cold_serializable_us", "µs", *equal,
            speed=False, beside=("cold_snapshot_us", "snapshot"),
        ),
        Target(
            f"serializable: commit after touching {touched} of {touched}, above snapshot",
            "isolation", "commit_above_ms", "ms", Bound("≤ 3 ms", ours_at_most=3.0),
            Bound("1 ms", ours_at_most=1.0),
        ),
        Target(
            f"the same, {few} of {sizes.large:,}", "isolation-of-few", "few_above_ms", "ms",
            Bound("≤ 1 ms", ours_at_most=1.0), Bound("0.1 ms", ours_at_most=0.1),
        ),
        Target(
            f"one contended object, {contenders}", "contended-object", "contended_per_second",
            "commits/s", _times(4), _times(6), "zodb", more_is_better=True,
        ),
        Target(
            f"contended `Length`, {contenders}", "contended-length", "length_per_second",
            "commits/s", _times(3), _times(5), "zodb", more_is_better=True,
        ),
        Target(
            f"savepoint of {concurrency.SAVEPOINT_OBJECTS:,} changed objects, and its rollback",
            "savepoint", "savepoint_and_back_ms", "ms", _times(2), _times(4), "zodb",
        ),
        Target(
            "open and close a pooled connection", "pool", "pool_us", "µs",
            Bound("no slower than ZODB", at_least=1 / NOISE), None, "zodb",
        ),
        Target(
            f"{concurrency.TASKS:,} asyncio tasks, durable commits", "tasks",
            "by_tasks_per_second", "commits/s",
            Bound(f"0.8 × {sizes.threads} threads", at_least=0.8),
            Bound(f"= {sizes.threads} threads", at_least=1.0), more_is_better=True,
            beside=("by_threads_per_second", f"{sizes.threads} threads"),
        ),
    ]


def _history(sizes: Sizes) -> list[Target]:
    entries = f"{history.LOG_ENTRIES} of {sizes.transactions:,} transactions"
    small, bulk = "transactions of 5 records", "transactions of 10,000"
    return [
        Target(
            f"undoLog: the newest {entries}", "undo-log", "undo_log_ms", "ms",
            Bound("no slower than ZODB", at_least=1 / NOISE), Bound("1 ms", ours_at_most=1.0),
            "zodb",
        ),
        Target(
            "the same, in the middle of them, by time", "undo-log", "undo_log_by_time_ms", "ms",
            Bound("≤ 20 ms", ours_at_most=20.0), Bound("1 ms", ours_at_most=1.0), "zodb",
        ),
        Target(
            "undo of a small transaction", "undo", "undo_us", "µs",
            Bound("≤ 1.5 × the commit", at_most=1.5), Bound("1.2 × the commit", at_most=1.2),
            speed=False, beside=("undone_commit_us", "the commit"),
        ),
        Target(
            f"iterate all records, {small}", "iterate", "iterate_us", "µs", _times(2), _times(4),
            "zodb",
        ),
        Target(
            f"iterate all records, {bulk}", "iterate-bulk", "iterate_bulk_us", "µs", _times(2),
            _times(4), "zodb",
        ),
        Target(
            f"copyTransactionsFrom, durable, {small}, per record", "copy", "copy_us", "µs",
            _times(10), _times(20), "zodb",
        ),
        Target(
            f"copyTransactionsFrom, durable, {bulk}, per record", "copy-bulk", "copy_bulk_us",
            "µs", _times(10), _times(20), "zodb",
        ),
    ]


def _versions(sizes: Sizes) -> list[Target]:
    equal = Bound("≤ 1.1 × outside", at_most=1.1)
    compared = [
        Target(
            title, "versions", f"{name}_inside_us", "µs", equal, speed=False,
            beside=(f"{name}_outside_us", "outside"),
        )
        for title, name in (
            ("cold load in a version", "load"),
            ("small durable commit in a version", "commit"),
            (f"commit of {history.SOME} objects in a version, per object", "commit_some"),
        )
    ]
    return [
        *compared,
        Target(
            f"commit of a version of {sizes.version_objects:,} objects", "version-commit",
            "version_commit_ms", "ms", Bound("≤ 20 ms", ours_at_most=20.0),
        ),
    ]


def _opening(sizes: Sizes) -> list[Target]:
    large = f"open a file of {sizes.large:,} objects"
    index = f"index of {sizes.index_objects or 10_000_000:,} objects, all of it touched"
    return [
        Target(
            large,
            "open",
            "open_ms",
            "ms",
            Bound("≤ ZODB's time", at_most=1.0),
            Bound("1 ms", ours_at_most=1.0),
            "zodb",
            speed=False,
        ),
        Target(
            f"{large}: memory",
            "open",
            "open_mib",
            "MiB",
            Bound("≤ 2 MiB growth", ours_at_most=2.0),
            None,
            "zodb",
            speed=False,
        ),
        Target(
            "the same after kill -9",
            "open-after-kill",
            "killed_ms",
            "ms",
            Bound("≤ 100 ms", ours_at_most=100.0),
            Bound("20 ms", ours_at_most=20.0),
            "zodb",
            speed=False,
        ),
        Target(
            index,
            "index",
            "index_mib",
            "MiB",
            Bound("≤ 200 MiB resident", ours_at_most=200.0),
            None,
            "zodb",
            speed=False,
        ),
        Target(
            f"{index}: private memory",
            "index",
            "index_private_mib",
            "MiB",
            Bound("part of the above", ours_at_most=200.0),
            Bound("nothing private (≤ 2 MiB)", ours_at_most=2.0),
            "zodb",
            speed=False,
        ),
    ]


def _safes() -> list[Target]:
    return [
        Target(
            "safe[key] = value, durable", "safe", "set_us", "µs",
            Bound("≤ 1.3 × Berkeley DB", at_most=1.3), Bound("≤ 1.1 × Berkeley DB", at_most=1.1),
            speed=False, beside=("bare_set_us", "Berkeley DB by itself"),
        ),
        Target(
            "safe[key]", "safe", "get_us", "µs", Bound("≤ 20 µs", ours_at_most=20.0),
            Bound("10 µs", ours_at_most=10.0), speed=False,
            beside=("bare_get_us", "Berkeley DB by itself"),
        ),
    ]


def _packing(sizes: Sizes) -> list[Target]:
    title = f"pack of {sizes.packed:,} objects in three generations"
    many = f"pack of {sizes.packed_many or 2_000_000:,} objects: memory"
    return [
        Target(title, "pack", "pack_s", "s", _times(3), _times(6), "zodb"),
        Target(
            f"{title}: memory", "pack", "pack_mib", "MiB", Bound("≤ ZODB's", at_most=1.0), None,
            "zodb", speed=False,
        ),
        Target(
            many, "pack-many", "many_mib", "MiB", Bound("≤ 150 MiB growth", ours_at_most=150.0),
            Bound("100 MiB", ours_at_most=100.0), "zodb", speed=False,
        ),
        Target(
            "commits by a thread beside a pack", "pack-beside", "beside_per_second", "commits/s",
            Bound("0.5 × those without it", at_least=0.5),
            Bound("0.7 × those without it", at_least=0.7),
            more_is_better=True, beside=("beside_alone_per_second", "without the pack"),
        ),
        Target(
            "the longest commit beside a pack", "pack-beside", "beside_longest_ms", "ms",
            Bound("≤ 50 ms", ours_at_most=50.0), Bound("10 ms", ours_at_most=10.0), "zodb",
            speed=False,
        ),
    ]


def storage_targets(sizes: Sizes) -> list[Target]:
    """What other storages and layers are to reach, in a run with `--storages`."""
    bulk = "bulk-commit", "bulk_us", "µs"
    in_order = "load-in-order", "in_order_us", "µs"
    at_random = "load-at-random", "at_random_us", "µs"
    small, batch = ("small-commit", "small_us", "µs"), ("batch-commit", "batch_us", "µs")
    threads = "threads-commit", "threads_per_second", "commits/s"
    found: list[Target] = []
    for name, bare in (("berkeley", "Berkeley DB"), ("sqlite", "SQLite")):
        most, aim = (Bound(f"≤ {n:g} × bare {bare}", at_most=n) for n in (2, 1.3))
        for what, row in (
            ("bulk commit", bulk), ("cold load in order", in_order),
            ("cold load at random", at_random),
        ):
            ours = f"objdb-{name}"
            found.append(Target(f"{bare}: {what}", *row, most, aim, name, speed=False, ours=ours))
            slower = Bound("no slower than ZODB", at_least=1 / NOISE)
            found.append(Target(f"{bare}: {what}", *row, slower, None, "zodb", ours=ours))
    found.append(Target(
        f"Berkeley DB: small durable commits, {sizes.threads} threads", *threads,
        Bound("≥ 0.5 × bare Berkeley DB", at_least=0.5), Bound("0.7 ×", at_least=0.7), "berkeley",
        more_is_better=True, ours="objdb-berkeley",
    ))
    better, best = Bound("1.5 × RelStorage", at_least=1.5), Bound("3 × RelStorage", at_least=3)
    for what, row in (
        ("bulk commit", bulk), ("commit of 100", batch), ("small durable commit", small),
        ("cold load in order", in_order), ("cold load at random", at_random),
    ):
        found.append(
            Target(f"SQLite: {what}", *row, better, best, "relstorage", ours="objdb-sqlite")
        )
    found.append(Target(
        f"SQLite: small durable commits, {sizes.threads} threads", *threads, better, best,
        "relstorage", more_is_better=True, ours="objdb-sqlite",
    ))
    found.append(Target(
        "SQLite: 4 processes committing", "processes-commit", "processes_per_second", "commits/s",
        Bound("2 × RelStorage", at_least=2), Bound("4 × RelStorage", at_least=4), "relstorage",
        more_is_better=True, ours="objdb-sqlite",
    ))
    for ours, title, most, aim in (
        ("objdb-zlib", "zlib", 1.5, 1.2), ("objdb-zstd", "zstd with a dictionary", 1.5, 1.2),
        ("objdb-encrypted", "encrypted", 2.0, 1.5),
    ):
        for what, row in (("in order", in_order), ("at random", at_random)):
            bounds = (Bound(f"≤ {n:g} × the file", at_most=n) for n in (most, aim))
            found.append(Target(
                f"{title}: cold load {what}", *row, *bounds, "objdb", speed=False, ours=ours
            ))
    for ours, title in (("objdb-berkeley", "Berkeley DB"), ("objdb-sqlite", "SQLite")):
        found.append(Target(
            f"{title}: open a file of {sizes.large:,} objects", "open", "open_ms", "ms",
            Bound("≤ 20 ms", ours_at_most=20), None, "zodb", ours=ours,
        ))
    return found


def sharing_targets(sizes: Sizes) -> list[Target]:
    """What the server and its clients are to reach, in a run with `--sharing`."""
    found = _sharing_alone(sizes)
    clients = f"{sharing.CLIENTS} clients"
    for title, row, factor, aim in (
        (f"small durable commits, {clients}", ("clients-commit", "clients_per_second"), 4, 6),
        (
            f"small durable commits, {sizes.threads} threads of one client",
            ("threads-commit", "threads_per_second"), 4, 8,
        ),
        (
            f"one contended `Length`, {clients}", ("clients-contended", "contended_per_second"),
            3, None,
        ),
    ):
        found.append(_of_sharing(
            title, *row, "commits/s", factor, aim, more_is_better=True
        ))
    found.append(Target(
        f"small commits, {clients}", "clients-commit", "clients_per_second", "commits/s",
        Bound("above Durus, which does not sync", at_least=1.0), None, "durus-server",
        more_is_better=True, ours=SERVER,
    ))
    found.append(_of_sharing(
        f"cold loads, {clients} together", "clients-load", "client_loads_per_second", "loads/s",
        2.5, None, more_is_better=True,
    ))
    for title, quantity, factor in (("iteration", "iterated_us", 50), ("copy", "copied_us", 20)):
        found.append(_of_sharing(
            f"{title} through the wire, per record", "iteration", quantity, "µs", factor, None
        ))
    return [*found, *_sharing_bounds()]


def _of_sharing(
    title: str, measurement: str, quantity: str, unit: str, factor: float, aim: float | None,
    *, more_is_better: bool = False, ours: str = SERVER,
) -> Target:
    bounds = [None if n is None else Bound(f"{n:g} × ZEO", at_least=n) for n in (factor, aim)]
    assert bounds[0] is not None
    return Target(
        title, measurement, quantity, unit, bounds[0], bounds[1], "zeo",
        more_is_better=more_is_better, ours=ours,
    )


def _sharing_alone(sizes: Sizes) -> list[Target]:
    """What one client does."""
    load = "load-at-random", "at_random_us", "µs"
    return [
        _of_sharing("cold load, random order", *load, 2.5, 4),
        Target(
            "cold load, random order", *load, Bound("no slower than Durus", at_least=1 / NOISE),
            None, "durus-server", ours=SERVER,
        ),
        Target(
            "cold load above a bare round trip", "load-above-round-trip", "above_us", "µs",
            Bound("≤ 35 µs", ours_at_most=35), ours=SERVER,
        ),
        _of_sharing("the same, objdb's client on ZEO's server", *load, 2, 3, ours="objdb-on-zeo"),
        _of_sharing("small durable commit", "small-commit", "small_us", "µs", 2.5, 4),
        Target(
            "small commit", "small-commit", "small_us", "µs",
            Bound("above Durus, which does not sync", at_least=1.0), None, "durus-server",
            ours=SERVER,
        ),
        _of_sharing("commit of 100 objects, per object", "batch-commit", "batch_us", "µs", 2.5, 4),
    ]


def _sharing_bounds() -> list[Target]:
    """What is not compared with a peer."""
    return [
        Target(
            "a load while another client commits without pause: 99th percentile",
            "load-beside-commits", "beside_99_times", "× its median",
            Bound("≤ 3", ours_at_most=3), ours=SERVER,
        ),
        Target(
            f"reconnection, {sharing.CHANGED:,} oids changed meanwhile", "reconnection",
            "reconnection_ms", "ms", Bound("≤ 100 ms", ours_at_most=100), ours=SERVER,
        ),
        Target(
            "… unchanged objects that are loaded again", "reconnection", "dropped", "objects",
            Bound("none", ours_at_most=0), ours=SERVER,
        ),
        Target(
            f"a commit with {sharing.IDLE_CLIENTS:,} idle clients", "idle-clients", "idle_times",
            "× without", Bound("≤ 2", ours_at_most=2), Bound("1.2", ours_at_most=1.2), ours=SERVER,
        ),
        Target(
            "… resident memory of the server", "idle-clients", "idle_resident_mib", "MiB",
            Bound("≤ 64", ours_at_most=64), ours=SERVER,
        ),
        Target(
            "… of that, a client", "idle-clients", "idle_kib", "KiB",
            Bound("≤ 12", ours_at_most=12), Bound("as ZEO, 6.4", ours_at_most=6.4), ours=SERVER,
        ),
    ]
