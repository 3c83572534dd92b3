"""The long fault campaign: `python -m tests.campaign [MINUTES]`, or `./dev crash [MINUTES]`."""

from __future__ import annotations

import logging
import random
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import click
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

import objdb
from objdb.check import check
from tests.campaign.graphs import graph_goes_round
from tests.campaign.kills import kill_once
from tests.campaign.races import race
from tests.campaign.sweeps import sweep

console = Console()


def kills(directory: Path, seed: int) -> None:
    """Ten kills of writers on one file."""
    chance = random.Random(seed)
    options = chance.choice(
        [{}, {"checkpoint_records": 20}, {"preallocate_bytes": 0}, {"durability": "os"}]
    )
    for _ in range(10):
        kill_once(directory / "data.fs", chance, **options)


def races(directory: Path, seed: int) -> None:
    """A long race, in memory and on a file."""
    chance = random.Random(seed)
    storage = objdb.FileStorage(
        directory / "data.fs", checkpoint_records=chance.choice([5, 100, 10_000])
    )
    for where in (None, storage):
        with objdb.DB(where, cache_size=chance.choice([3, 50, 10_000])) as db:
            race(db, rounds=1500, seed=seed)
            check(db.storage).raise_if_damaged()


def sweeps(directory: Path, seed: int) -> None:
    """A random workload, crashed everywhere."""
    sweep(seed, steps=25)


def graphs(directory: Path, seed: int) -> None:
    """A random graph, back and forth between ZODB and objdb."""
    for number in range(5):
        graph_goes_round(directory / f"data{number}.fs", seed + number)


CAMPAIGNS: list[Callable[[Path, int], None]] = [kills, races, sweeps, graphs]


@click.command(epilog="Example: ./dev crash 60   (an hour)")
@click.argument("minutes", type=float, default=10)
@click.option("--seed", type=int, help="Begin with this seed, to repeat a failure.")
@click.option(
    "--only", type=click.Choice([c.__name__ for c in CAMPAIGNS]), multiple=True,
    help="Only this campaign; may be repeated.",
)
def main(minutes: float, seed: int | None, only: tuple[str, ...]) -> None:
    """Kill, race, crash and pass around databases for so many MINUTES (default 10).

    Stops at the first failure, and says how to repeat it.
    """
    logging.getLogger("objdb").setLevel(logging.ERROR)  # torn tails are what is asked for
    seed = random.randrange(10**9) if seed is None else seed
    chosen = [c for c in CAMPAIGNS if not only or c.__name__ in only]
    done: Counter[str] = Counter()
    end = time.monotonic() + minutes * 60
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        bar = progress.add_task("", total=minutes * 60)
        while time.monotonic() < end or not done:
            campaign = chosen[sum(done.values()) % len(chosen)]
            left = max(0.0, end - time.monotonic())
            description = f"{campaign.__name__}, seed {seed}"
            progress.update(bar, description=description, completed=minutes * 60 - left)
            with tempfile.TemporaryDirectory(prefix="objdb-campaign-") as directory:
                try:
                    campaign(Path(directory), seed)
                except Exception:
                    progress.stop()
                    traceback.print_exc()
                    name = campaign.__name__
                    again = f"./dev crash 0 --only {name} --seed {seed}"
                    console.print(f"failed. To repeat it: {again}")
                    sys.exit(1)
            done[campaign.__name__] += 1
            seed += 1
    summary = ", ".join(f"{count} times {name}" for name, count in done.items())
    console.print(f"held: {summary} in {minutes:g} minutes; the last seed was {seed - 1}")


if __name__ == "__main__":
    main()
