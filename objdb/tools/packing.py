"""The subcommand that packs: what is old, and what nothing leads to, goes."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import click
from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeElapsedColumn

from objdb.errors import UsageError
from objdb.tools.terminal import (
    TimeType,
    database_argument,
    open_database,
    progress_bar,
    show_bytes,
)

_PHASES = {
    "verify": "verifying what there is", "mark": "finding what stays",
    "copy": "copying what stays",
    "follow": "copying what was committed meanwhile",
}


@click.command(epilog="Example: objdb pack calendar.fs --days 7")
@database_argument
@click.option("--days", type=click.FloatRange(0), help="Keep all history of so many days.")
@click.option("--before", type=TimeType(), help="Keep all history from this time on.")
@click.option("--no-gc", is_flag=True, help="Keep objects that nothing leads to.")
@click.option("--keep-old", is_flag=True, help="Keep the file as it was, as DATABASE.old.")
@click.option("--dry-run", is_flag=True, help="Say what would be gained, and change nothing.")
def pack(
    database: str, days: float | None, before: datetime | None, no_gc: bool, keep_old: bool,
    dry_run: bool,
) -> None:
    """Forget revisions that are not current, and objects that nothing leads to any more.

    Without --days or --before, only what is current stays. What is gone cannot be undone. A
    program that has the file open packs it itself: db.pack().
    """
    if days is not None and before is not None:
        raise UsageError("--days and --before are two ways to say it: give one")
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

        result = db.pack(
            before, days or 0, gc=not no_gc, keep_old=keep_old, dry_run=dry_run, progress=tell
        )
    gained = show_bytes(result.size_before - result.size_after)
    objects = result.objects_before - result.objects_after
    what = "About {} and {:,} objects would go" if dry_run else "{} and {:,} objects are gone"
    click.echo(
        f"{what.format(gained, objects)}: {show_bytes(result.size_before)} -> "
        f"{show_bytes(result.size_after)}, {result.objects_before:,} -> "
        f"{result.objects_after:,} objects"
    )


COMMANDS = (pack,)
