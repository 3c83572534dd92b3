"""The subcommand that packs: it removes old revisions and unreachable objects."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import click
from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeElapsedColumn

from objdb.errors import UsageError
from objdb.ids import Tid
from objdb.interfaces import IStorageHistory
from objdb.storage.foreign import provides
from objdb.storage.packing import PackResult
from objdb.storage.times import is_future
from objdb.tools.terminal import (
    database_argument,
    echo,
    open_database,
    progress_bar,
    show_bytes,
)
from objdb.tools.words import MomentType

_PHASES = {
    "verify": "verifying", "mark": "marking reachable objects",
    "copy": "copying what stays",
    "follow": "copying transactions committed meanwhile",
}


@click.command(epilog="Example: objdb pack calendar.fs --days 7")
@database_argument
@click.option(
    "--days", type=click.FloatRange(0), help="Keep all history of this many days (default: 1)."
)
@click.option(
    "--before", type=MomentType(), help="Keep all history from this time or transaction on."
)
@click.option("--now", is_flag=True, help="Keep no history at all.")
@click.option("--no-gc", is_flag=True, help="Keep unreachable objects.")
@click.option("--keep-old", is_flag=True, help="Keep the old file as DATABASE.old.")
@click.option("--dry-run", is_flag=True, help="Show what would be gained; change nothing.")
def pack(
    database: str, days: float | None, before: Tid | datetime | None, now: bool, no_gc: bool,
    keep_old: bool, dry_run: bool,
) -> None:
    """Remove revisions that are not current, and unreachable objects.

    The history of the last day stays, or as --days, --before or --now say. Packed transactions
    cannot be undone. A program that has the file open packs it itself: db.pack().
    """
    if (days is not None) + (before is not None) + now > 1:
        raise UsageError("--days, --before and --now exclude each other: give one")
    if before is not None and is_future(before):
        raise UsageError("--before is in the future. To keep no history, give --now")
    columns = (
        TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn()
    )
    with (
        open_database(database, read_only=dry_run) as db,
        progress_bar(*columns) as progress,
    ):
        tasks: dict[str, Any] = {}

        def tell(phase: str, done: int, total: int) -> None:
            if phase not in tasks:
                tasks[phase] = progress.add_task(_PHASES[phase])
            progress.update(tasks[phase], completed=done, total=total)

        if days is None:
            days = 0 if now or before is not None else 1
        result = db.pack(
            before, days, gc=not no_gc, keep_old=keep_old, dry_run=dry_run, progress=tell
        )
        has_history = provides(db.storage, IStorageHistory)
    echo(_told(result, dry_run))
    if has_history and days:
        echo(f"the history of {days:g} {'day' if days == 1 else 'days'} stays; --now drops it too")


def _told(result: PackResult, dry_run: bool) -> str:
    """Return the result of a pack as a sentence; it includes what others committed meanwhile."""
    sizes = (
        f"{show_bytes(result.size_before)} -> {show_bytes(result.size_after)}, "
        f"{result.objects_before:,} -> {result.objects_after:,} objects"
    )
    gained = result.size_before - result.size_after
    objects = result.objects_before - result.objects_after
    if gained < 0 or objects < 0:
        return f"Packed; more was committed meanwhile, or stays, than was removed: {sizes}"
    what = "About {} and {:,} objects would go" if dry_run else "{} and {:,} objects are gone"
    return f"{what.format(show_bytes(gained), objects)}: {sizes}"


COMMANDS = (pack,)
