"""The subcommand for versions: list them, show one, commit or abort it."""

from __future__ import annotations

from typing import Any

import click
import transaction

from objdb.database.db import DB
from objdb.database.versions import VersionChange
from objdb.errors import UsageError
from objdb.ids import format_oid
from objdb.tools.terminal import (
    database_argument,
    echo,
    escaped,
    json_option,
    open_database,
    plain_changes,
    show_changes,
    show_json,
    show_table,
    show_time,
)


@click.command(epilog='Example: objdb versions calendar.fs "next year" --commit --dry-run')
@database_argument
@click.argument("version", required=False)
@click.option("--commit", "is_commit", is_flag=True, help="Commit VERSION.")
@click.option("--to", "destination", default="", help="Commit it to this version.")
@click.option("--abort", "is_abort", is_flag=True, help="Drop all changes in VERSION.")
@click.option("--dry-run", is_flag=True, help="Show what is in it; change nothing.")
@click.option("--user", default="", help="The user of the new transaction.")
@click.option("--note", help="Its description (default: the action).")
@json_option
def versions(
    database: str, version: str | None, is_commit: bool, destination: str, is_abort: bool,
    dry_run: bool, user: str, note: str | None, as_json: bool,
) -> None:
    """List the versions; or show the changes in VERSION, and commit or abort it.

    Each is a transaction, which `objdb undo` can undo.
    """
    _require_sense(version, is_commit, destination, is_abort)
    changes = is_commit or is_abort
    with open_database(database, read_only=dry_run or not changes) as db:
        if version is None:
            _list(db, as_json)
            return
        found = db.version_diff(version)
        if changes and not found:
            raise UsageError(_empty(db, version))
        _show(found, as_json)
        if changes and not dry_run:
            _end(db, version, None if is_abort else destination, user, note)
            if not as_json:
                echo("done")


def _require_sense(
    version: str | None, is_commit: bool, destination: str, is_abort: bool
) -> None:
    if is_commit and is_abort:
        raise click.UsageError("--commit and --abort exclude each other")
    if destination and not is_commit:
        raise click.UsageError("--to goes with --commit")
    if version is None and (is_commit or is_abort):
        raise click.UsageError("name the VERSION to commit or abort")


def _empty(db: DB, version: str) -> str:
    names = ", ".join(map(repr, db.versions())) or "no version"
    return f"nothing is changed in the version {version!r}; in use: {names}"


def _list(db: DB, as_json: bool) -> None:
    entries = [_entry(name, db.version_diff(name)) for name in db.versions()]
    if as_json:
        show_json(entries)
        return
    show_table(
        ["version", "changed", "new", "since", "last change", "users"],
        (
            [
                entry["version"], entry["changed"], entry["new"], show_time(entry["since"]),
                show_time(entry["last_change"]), ", ".join(entry["users"]),
            ]
            for entry in entries
        ),
    )


def _entry(name: str, found: list[VersionChange]) -> dict[str, Any]:
    revisions = [revision for change in found for revision in change.by]
    times = [revision["time"] for revision in revisions]
    new = sum(change.is_new for change in found)
    return {
        "version": name, "changed": len(found) - new, "new": new, "since": min(times),
        "last_change": max(times),
        "users": sorted({revision["user_name"] for revision in revisions} - {""}),
    }


def _show(found: list[VersionChange], as_json: bool) -> None:
    if as_json:
        show_json(
            [
                {
                    "oid": format_oid(change.oid), "class": change.class_name,
                    "new": change.is_new, "attributes": plain_changes(change.attributes),
                    "by": change.by,
                }
                for change in found
            ]
        )
        return
    for change in found:
        new = ", new" if change.is_new else ""
        echo(f"{escaped(change.class_name)} {format_oid(change.oid)}{new}")
        show_changes(change.attributes)
        for revision in change.by:
            words = (show_time(revision["time"]), revision["user_name"], revision["description"])
            echo(f"  by {escaped(' '.join(filter(None, words)))}")


def _end(db: DB, version: str, destination: str | None, user: str, note: str | None) -> None:
    """Commit a version to *destination* ("": outside any version), or abort it if that is None."""
    manager = transaction.TransactionManager(explicit=True)
    txn = manager.begin()
    txn.user = user
    if destination is None:
        db.abortVersion(version, txn)
        txn.note(note or f"abort the version {version}")
    else:
        db.commitVersion(version, destination, txn)
        to = f" to {destination}" if destination else ""
        txn.note(note or f"commit the version {version}{to}")
    manager.commit()


COMMANDS = (versions,)
