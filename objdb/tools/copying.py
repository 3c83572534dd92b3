"""The subcommand that copies a storage to another: the migration tool."""

from __future__ import annotations

import os
import sys
from typing import Any

import click
from rich.progress import SpinnerColumn, TextColumn, TimeElapsedColumn

from objdb.check import check
from objdb.database.opening import open_storage
from objdb.errors import UsageError
from objdb.ids import NO_TID, Tid, next_tid
from objdb.interfaces import IStorageIteration, IStorageRestoreable
from objdb.tools.terminal import (
    echo,
    json_option,
    progress_bar,
    reading_uri,
    show_json,
    show_tid,
)
from objdb.tools.words import DatabaseType


@click.command(epilog="Example: objdb migrate work.fs file:/backup/work.fs")
@click.argument("source", type=DatabaseType())
@click.argument("destination", type=DatabaseType())
@click.option("--dry-run", is_flag=True, help="Show how much there is to copy; copy nothing.")
@click.option("--verify/--no-verify", default=True, help="Check the whole copy at the end.")
@json_option
def migrate(source: str, destination: str, dry_run: bool, verify: bool, as_json: bool) -> None:
    """Copy all transactions of SOURCE to DESTINATION, as they are.

    DESTINATION is new, or an earlier copy (interrupted or not), which is continued.
    """
    if os.path.realpath(source) == os.path.realpath(destination):
        raise UsageError(f"{source} is the same file as {destination}")
    origin, _ = open_storage(reading_uri(source))
    try:
        _require(origin, IStorageIteration, "be copied: its transactions cannot be listed")
        if dry_run:
            facts = _remaining(origin, _last_in(destination))
        else:
            target, _ = open_storage(destination)
            try:
                facts = _copy(origin, target, verify)
            finally:
                target.close()
    finally:
        origin.close()
    if as_json:
        show_json(facts)
    else:
        echo("\n".join(f"{name.replace('_', ' ')}: {value}" for name, value in facts.items()))
    sys.exit(1 if facts.get("problems") else 0)


def _last_in(destination: str) -> Tid:
    """Return the tid of the last transaction of a storage that may not exist."""
    try:
        target, _ = open_storage(reading_uri(destination))
    except FileNotFoundError:
        return NO_TID
    try:
        tid: Tid = target.lastTransaction()
        return tid
    finally:
        target.close()


def _require(storage: Any, interface: Any, what: str) -> None:
    if not interface.providedBy(storage):
        raise UsageError(f"{storage.getName()} cannot {what}")


def _remaining(origin: Any, last: bytes) -> dict[str, Any]:
    """Return how many transactions come after the tid *last*."""
    start = None if last == NO_TID else next_tid(last)
    count = sum(1 for _ in origin.iterator(start))
    return {"transactions_to_copy": count, "after": show_tid(last)}


def _copy(origin: Any, target: Any, verify: bool) -> dict[str, Any]:
    _require(target, IStorageRestoreable, "take copies")
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with progress_bar(*columns) as progress:
        task = progress.add_task("copying")

        def tell(done: Any) -> None:
            progress.update(
                task,
                description=f"{done.transactions:,} transactions, {done.revisions:,} revisions",
            )

        count = target.copyTransactionsFrom(origin, tell)
        facts: dict[str, Any] = {
            "transactions_copied": count, "objects": len(target),
            "last_transaction": show_tid(target.lastTransaction()),
        }
        if verify:
            progress.update(task, description="checking the copy")
            facts["problems"] = check(target).problems
            if target.lastTransaction() != origin.lastTransaction():
                facts["not_copied"] = "transactions committed to the source meanwhile; copy again"
    return facts


COMMANDS = (migrate,)
