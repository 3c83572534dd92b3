"""Subcommands that list transactions, and undo them."""

from __future__ import annotations

import sys
from collections.abc import Callable
from datetime import datetime
from typing import Any

import click
import transaction

from objdb.database.db import DB
from objdb.errors import UsageError
from objdb.ids import Oid, Tid, format_oid, time_from_tid
from objdb.storage.undo import tid_from_id
from objdb.tools.terminal import (
    database_argument,
    echo,
    escaped,
    json_option,
    limit_option,
    open_database,
    plain_changes,
    show_bytes,
    show_changes,
    show_json,
    show_table,
    show_time,
)
from objdb.tools.words import MomentType, OidType

Condition = Callable[[dict[str, Any]], bool]

# The functions that an expression of --where can call.
_FUNCTIONS = {
    "len": len, "min": min, "max": max, "sum": sum, "any": any, "all": all, "sorted": sorted,
    "str": str, "int": int, "float": float, "bool": bool, "abs": abs, "round": round,
}


@click.command(
    epilog="Example: objdb undolog calendar.fs --user ann --since 2026-03-01 "
    "--where \"size > 1000 and 'import' in description\""
)
@database_argument
@click.option("--user", help="Only transactions of this user.")
@click.option("--text", help="Only those whose description contains this.")
@click.option("--since", type=MomentType(), help="Only those from this time on.")
@click.option("--until", type=MomentType(), help="Only those up to this time.")
@click.option("--object", "oid", type=OidType(), help="Only those that changed this object.")
@click.option(
    "--where", metavar="EXPRESSION",
    help="Only those for which this Python expression is true. It can use id, time, user_name, "
    "description, size, items of the transaction's extension, and entry.get('name') for items "
    "that not all have.",
)
@limit_option
@json_option
def undolog(
    database: str, user: str | None, text: str | None, since: Tid | datetime | None,
    until: Tid | datetime | None, oid: Oid | None, where: str | None, limit: int, as_json: bool,
) -> None:
    """List transactions that can be undone, newest first, with the ids for `objdb undo`."""
    matches = _condition(where) if where else None
    with open_database(database) as db:
        tids = None if oid is None else _tids_of(db, oid)

        def is_wanted(entry: dict[str, Any]) -> bool:
            return (
                (user is None or _is_user(entry["user_name"], user))
                and (text is None or text in entry["description"])
                and (since is None or entry["time"] >= _seconds(since))
                and (until is None or entry["time"] <= _seconds(until))
                and (tids is None or tid_from_id(entry["id"]) in tids)
                and (matches is None or matches(entry))
            )

        entries = db.undoLog(0, -limit, is_wanted)
    if as_json:
        show_json(entries)
        return
    show_table(
        ["id", "time", "user", "size", "description"],
        (
            [
                entry["id"], show_time(entry["time"]), entry["user_name"],
                show_bytes(entry["size"]), entry["description"],
            ]
            for entry in entries
        ),
    )


def _seconds(moment: Tid | datetime) -> float:
    """Return a moment as seconds since 1970."""
    return time_from_tid(moment) if isinstance(moment, bytes) else moment.timestamp()


def _is_user(user_name: str, user: str) -> bool:
    """Whether *user_name* is *user*; `setUser` puts a path and a space before the name."""
    return user in (user_name, user_name.partition(" ")[2])


def _condition(expression: str) -> Condition:
    """Return the function that evaluates an expression over an entry."""
    try:
        code = compile(expression, "--where", "eval")
    except (SyntaxError, ValueError) as error:
        raise UsageError(f"--where {expression!r} is not a Python expression: {error}") from None

    def matches(entry: dict[str, Any]) -> bool:
        try:
            return bool(eval(code, {"__builtins__": {}, **_FUNCTIONS, **entry, "entry": entry}))
        except Exception as error:
            raise UsageError(
                f"--where {expression!r} fails with {type(error).__name__}: {error}, for the "
                f"transaction {entry['id']}, which has {', '.join(entry)}. For an item that not "
                "all have, write entry.get('name')"
            ) from None

    return matches


def _tids_of(db: DB, oid: Oid) -> set[bytes]:
    """Return the tids of the transactions that changed an object."""
    return {entry["tid"] for entry in db.history(oid, sys.maxsize)}


@click.command(epilog="Example: objdb undo calendar.fs A_8qjh8AAAA= --dry-run")
@database_argument
@click.argument("ids", nargs=-1, required=True)
@click.option("--dry-run", is_flag=True, help="Show what would change; change nothing.")
@click.option("--user", default="", help="The user of the new transaction.")
@click.option("--note", help="Its description (default: the ids undone).")
@json_option
def undo(
    database: str, ids: tuple[str, ...], dry_run: bool, user: str, note: str | None, as_json: bool
) -> None:
    """Undo transactions, given by their IDs, which `objdb undolog` lists, or tids.

    To redo them, undo the new transaction. Nothing is changed if one object cannot be undone.
    """
    with open_database(database, read_only=dry_run) as db:
        preview = db.undo_preview(list(ids))
        _show_preview(preview, as_json)
        if preview.obstacles:
            raise UsageError(
                "this cannot be undone: see above. Undo later transactions first, or with it"
            )
        if dry_run:
            return
        manager = transaction.TransactionManager(explicit=True)
        txn = manager.begin()
        txn.user = user
        txn.note(note or f"undo {' '.join(ids)}")
        db.undoMultiple(list(ids), txn)
        manager.commit()
    if not as_json:
        echo("done")


def _show_preview(preview: Any, as_json: bool) -> None:
    if as_json:
        show_json(
            {
                "changes": [
                    {
                        "oid": format_oid(change.oid), "class": change.class_name,
                        "attributes": plain_changes(change.attributes),
                    }
                    for change in preview.changes
                ],
                "obstacles": [
                    {
                        "oid": None if found.oid is None else format_oid(found.oid),
                        "class": found.class_name, "reason": found.reason,
                    }
                    for found in preview.obstacles
                ],
            }
        )
        return
    for change in preview.changes:
        echo(f"{escaped(change.class_name)} {format_oid(change.oid)}")
        show_changes(change.attributes)
    for found in preview.obstacles:
        what = "" if found.oid is None else f"{escaped(found.class_name)} {format_oid(found.oid)}: "
        echo(f"in the way: {what}{escaped(found.reason)}")


COMMANDS = (undolog, undo)
