"""The long fault campaign: `python -m tests.campaign [MINUTES]`, or `./dev crash [MINUTES]`."""

from __future__ import annotations

import faulthandler
import logging
import os
import random
import sys
import tempfile
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

import objdb
from objdb.check import check
from objdb.connection.isolation import ISOLATIONS
from objdb.interfaces import IStorageSelfCheck
from objdb.testing.interrupts import OPERATIONS, Exploration, OpeningExploration
from objdb.testing.packing_model import pack_at_random
from objdb.testing.recording import check_isolation
from tests.campaign.bookings import book_in_processes
from tests.campaign.graphs import graph_goes_round
from tests.campaign.kills import kill_once
from tests.campaign.leaks import WAYS, fail_often
from tests.campaign.races import race
from tests.campaign.sweeps import sweep
from tests.isolation.interleavings import interleaved
from tests.safe import kills as safe_kills
from tests.storages import FORGETFUL, STORAGES, open_database

# A campaign takes seconds; one that takes so long does not end.
LONGEST_SECONDS = 900.0
BOOKINGS = 4000
_share = 1.0  # of the size of each campaign; smaller to see that they run


def sized(count: int) -> int:
    """Return so much of *count* as this run is to do, at least 1."""
    return max(1, int(count * _share))


KILLED = (
    "file:{}.fs", "file:{}.fs?checkpoint_records=20", "file:{}.fs?preallocate_bytes=0",
    "file:{}.fs?durability=os", "sqlite:{}.sqlite", "pickle:{}.pickle",
    "compressed+sqlite:{}.sqlite", "compressed+file:{}.fs?method=zstd",
    "demo:(memory:)(file:{}.fs)", "encrypted+file:{}.fs?key=env:CAMPAIGN_KEY",
    "berkeley:{}", "berkeley:{}?checkpoint_bytes=20000",
)
os.environ.setdefault("CAMPAIGN_KEY", "5a" * 32)


def kills(directory: Path, seed: int) -> None:
    """Kills of writers on one database."""
    chance = random.Random(seed)
    uri = chance.choice(KILLED).format(directory / "data")
    way = chance.choice(["plain", "versions", "undo"])
    packs = chance.choice(["no", "no", "yes"])
    for _ in range(sized(10)):
        kill_once(uri, chance, way, packs)


def some_storages(directory: Path, chance: random.Random) -> Iterator[Any]:
    """Open storages: a file, and another kind."""
    yield objdb.FileStorage(
        directory / "usual.fs", checkpoint_records=chance.choice([5, 100, 10_000])
    )
    kind = chance.choice([kind for kind in STORAGES if kind != "file"])
    yield STORAGES[kind](directory)


def races(directory: Path, seed: int) -> None:
    """A long race, on a file and on another storage."""
    chance = random.Random(seed)
    for storage in some_storages(directory, chance):
        with objdb.DB(storage, **database_options(chance)) as db:
            race(db, rounds=sized(400), seed=seed, packs=chance.random() < 0.5)
            check(db.storage).raise_if_damaged()


def histories(directory: Path, seed: int) -> None:
    """Random transactions of many threads, on a file and on another storage, and of a few
    connections step by step: what they saw of one another."""
    chance = random.Random(seed)
    for storage in some_storages(directory, chance):
        with objdb.DB(storage, **database_options(chance)) as db:
            isolation = chance.choice([None, *ISOLATIONS])
            threads = chance.choice([2, 4, 8, 16])
            check_isolation(db, isolation, threads=threads, transactions=sized(300), seed=seed)
            check(db.storage).raise_if_damaged()
    for number in range(sized(100)):
        isolation = chance.choice(ISOLATIONS)
        report = interleaved(1000 * seed + number, isolation)
        report.raise_if_forbidden(isolation)


def database_options(chance: random.Random) -> dict[str, Any]:
    """Choose what a database for many threads is like."""
    return {
        "cache_size": chance.choice([3, 50, 10_000]), "pool_size": chance.choice([1, 3, 7, 20]),
        "isolation": chance.choice(["snapshot", "serializable"]),
    }


def sweeps(directory: Path, seed: int) -> None:
    """A random workload, crashed everywhere."""
    sweep(seed, steps=sized(10))


def graphs(directory: Path, seed: int) -> None:
    """A random graph, back and forth between ZODB and objdb."""
    for number in range(sized(5)):
        graph_goes_round(directory / f"data{number}.fs", seed + number)


def packs(directory: Path, seed: int) -> None:
    """Random histories, packed to random moments, on every kind of storage."""
    for number in range(sized(5)):
        for kind, make in STORAGES.items():
            folder = directory / f"{kind}{number}"
            folder.mkdir()
            with make(folder) as storage:
                pack_at_random(storage, random.Random(20 * seed + number), times=5)
                assert check_structure(storage) == []


def check_structure(storage: Any) -> list[str]:
    """Return what a storage finds wrong with its own structure, if it looks."""
    return storage.self_check() if IStorageSelfCheck.providedBy(storage) else []


def safes(directory: Path, seed: int) -> None:
    """Kills of processes that write to a module safe, with others writing on."""
    chance = random.Random(seed)
    backend = chance.choice(["berkeley", "berkeley", "sqlite"])
    safe_kills.campaign(directory / "safe", backend, sized(15), chance)


def bookings(directory: Path, seed: int) -> None:
    """Processes that book the same people on one SQLite file."""
    processes = random.Random(seed).choice([2, 4, 8])
    book_in_processes(f"sqlite:{directory}/data.sqlite", processes, sized(BOOKINGS), seed)


def leaks(directory: Path, seed: int) -> None:
    """Transactions, or openings, that fail in one way, a hundred thousand times; openings of
    Berkeley DB, which take it ten milliseconds each, twenty thousand times."""
    chance = random.Random(seed)
    kind, way = chance.choice(list(STORAGES)), chance.choice(WAYS)
    is_slow = kind == "berkeley" and way in ("opening", "failing_to_open")
    fail_often(kind, way, directory, sized(20_000 if is_slow else 100_000))


def interrupts(directory: Path, seed: int) -> None:
    """An exception at every place of an operation, or of opening and closing; in a small run, at
    some."""
    chance = random.Random(seed)
    kind, name = chance.choice(list(STORAGES)), chance.choice([*OPERATIONS, "opening"])
    persists = kind not in FORGETFUL
    exploration: Exploration | OpeningExploration
    if name == "opening":
        opens = partial(open_database, kind)
        exploration = OpeningExploration(opens, directory, persists=persists)
    else:
        exploration = Exploration(STORAGES[kind], directory, OPERATIONS[name], persists=persists)
    exploration.run(sized(200) if _share < 1 else None, seed)
    assert exploration.faults == [], f"{kind}, {name}"


CAMPAIGNS: list[Callable[[Path, int], None]] = [
    bookings, kills, races, histories, sweeps, graphs, packs, safes, leaks,
    interrupts,
]


@click.command(epilog="Example: ./dev crash 60   (an hour)")
@click.argument("minutes", type=click.FloatRange(min=0), default=10)
@click.option("--seed", type=int, help="Begin with this seed, to repeat a failure.")
@click.option(
    "--only", type=click.Choice([c.__name__ for c in CAMPAIGNS]), multiple=True,
    help="Only this campaign; may be repeated.",
)
@click.option("--briefly", is_flag=True, help="A tenth of each, to see that they run.")
def main(minutes: float, seed: int | None, only: tuple[str, ...], briefly: bool) -> None:
    """Kill, race, check, crash and pass around databases for so many MINUTES (default 10).

    Stops at the first failure, and says how to repeat it.
    """
    global _share
    _share = 0.1 if briefly else 1.0
    seed = random.randrange(10**9) if seed is None else seed
    chosen = [c for c in CAMPAIGNS if not only or c.__name__ in only]
    done: Counter[str] = Counter()
    end = time.monotonic() + minutes * 60
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, auto_refresh=False) as progress:
        bar = progress.add_task("", total=minutes * 60)
        while time.monotonic() < end or not done:
            campaign = chosen[sum(done.values()) % len(chosen)]
            left = max(0.0, end - time.monotonic())
            description = f"{campaign.__name__}, seed {seed}"
            elapsed = minutes * 60 - left
            progress.update(bar, description=description, completed=elapsed, refresh=True)
            if not holds(campaign, seed, progress):
                sys.exit(1)
            done[campaign.__name__] += 1
            seed += 1
    runs = ", ".join(f"{name}: {count}" for name, count in done.items())
    click.echo(f"held for {minutes:g} minutes ({runs}); the last seed was {seed - 1}")


def holds(campaign: Callable[[Path, int], None], seed: int, progress: Progress) -> bool:
    """Run a campaign once; if it fails, say how, and how to repeat it."""
    again = f"To repeat it: ./dev crash 0 --only {campaign.__name__} --seed {seed}"
    again += " --briefly" * (_share < 1)
    with (
        tempfile.TemporaryDirectory(prefix="objdb-campaign-") as directory,
        watchdog(LONGEST_SECONDS, again),
    ):
        try:
            campaign(Path(directory), seed)
        except Exception:
            progress.stop()
            traceback.print_exc()
            click.echo(f"failed. {again}")
            return False
    return True


@contextmanager
def watchdog(seconds: float, again: str) -> Iterator[None]:
    """End the process with all stacks, and what to do *again*, if the block takes longer."""

    def give_up() -> None:
        faulthandler.dump_traceback(sys.__stderr__)
        print(f"failed: it did not end in {seconds:g} seconds. {again}", flush=True)
        os._exit(1)

    timer = threading.Timer(seconds, give_up)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        timer.join()


if __name__ == "__main__":
    logging.getLogger("objdb").setLevel(logging.ERROR)  # torn tails are what is asked for
    main()
