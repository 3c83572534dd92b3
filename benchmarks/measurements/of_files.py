"""What is measured of files: history, versions, opening, packing, safes, growth."""

from __future__ import annotations

from functools import partial

from benchmarks.measurements import history, opening, packing, safes
from benchmarks.measurements.measurement import Measurement, Quantity
from benchmarks.sizes import Sizes
from benchmarks.systems import SYSTEMS

SLOW_TO_LOAD = ("durus",)
"""Left out of files larger than `Sizes.slow_objects`, since building them takes minutes."""

HUGE_OBJECTS = 2_000_000
HUGE = ("objdb", "zodb", "lmdb")
"""Larger files than `HUGE_OBJECTS` are built for these systems only, for the same reason."""


def of_files(sizes: Sizes) -> list[Measurement]:
    """All of them."""
    return [
        *_history(sizes),
        *_versions(sizes),
        *_opening(sizes),
        *_packing(sizes),
        *_safes(),
        *_growth(sizes),
    ]


def _who(objects: int, sizes: Sizes) -> tuple[str, ...]:
    """The systems that take part with a file of so many objects; empty: all."""
    if objects > HUGE_OBJECTS:
        return HUGE
    if objects > sizes.slow_objects:
        return tuple(name for name in SYSTEMS if name not in SLOW_TO_LOAD)
    return ()


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
