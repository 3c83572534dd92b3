"""Subcommands that only read: a process that writes the database can go on."""

from __future__ import annotations

import sys
from datetime import datetime

import click
from rich.progress import BarColumn, TextColumn, TimeElapsedColumn

from objdb.check import check as check_storage
from objdb.database.differences import diff as diff_revisions
from objdb.ids import NO_TID, Oid, Tid, format_oid, time_from_tid
from objdb.records.broken import class_name
from objdb.storage.times import ahead_of_clock
from objdb.tools.terminal import (
    database_argument,
    echo,
    escaped,
    json_option,
    limit_option,
    open_database,
    plain_changes,
    progress_bar,
    show_bytes,
    show_changes,
    show_json,
    show_table,
    show_tid,
    show_time,
)
from objdb.tools.words import MomentType, OidType


@click.command(epilog="Example: objdb info calendar.fs")
@database_argument
@json_option
def info(database: str, as_json: bool) -> None:
    """Show the size of a database, and when it was last changed."""
    with open_database(database) as db:
        last = db.storage.lastTransaction()
        facts = {
            "name": db.name,
            "storage": type(db.storage).__name__,
            "objects": len(db.storage),
            "size_bytes": db.storage.getSize(),
            "last_tid": last.hex(),
            "last_change": None if last == NO_TID else show_time(time_from_tid(last)),
        }
        ahead = ahead_of_clock(last)
    if as_json:
        show_json(facts)
        return
    echo(f"{escaped(facts['name'])} ({facts['storage']})")
    echo(f"{facts['objects']:,} objects, {show_bytes(int(str(facts['size_bytes'])))}")
    echo(f"last change: {facts['last_change']} (tid {facts['last_tid']})")
    if ahead:
        echo(f"careful: {ahead}")


@click.command(epilog="Example: objdb check calendar.fs && cp calendar.fs /backup/")
@database_argument
@json_option
def check(database: str, as_json: bool) -> None:
    """Read everything, and check that it is consistent. Exit code 1 if it is not."""
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with open_database(database) as db, progress_bar(*columns) as progress:
        task = progress.add_task("reading", total=None)

        def tell(phase: str, done: int, total: int) -> None:
            progress.update(
                task, description=f"{done:,} {phase}", completed=done, total=total or None
            )

        report = check_storage(db.storage, tell)
    if as_json:
        show_json(
            {
                "name": report.name, "transactions": report.transactions,
                "revisions": report.revisions, "objects": report.objects,
                "garbage": report.garbage, "unverified": report.unverified,
                "note": report.note, "problems": report.problems,
            }
        )
    else:
        echo(
            f"{escaped(report.name)}: {report.transactions:,} transactions, {report.revisions:,} "
            f"revisions, {report.objects:,} objects, {report.garbage:,} of them unreachable"
        )
        if report.unverified:
            echo(
                f"{report.unverified:,} transactions have no checksum, and could not be verified: "
                "ZODB wrote them (objdb pack adds checksums to what it keeps), or objdb 0.1 wrote "
                "them to SQLite or Berkeley DB (objdb migrate makes a copy with checksums)"
            )
        if report.note:
            echo(escaped(report.note))
        for problem in report.problems:
            echo(f"  {escaped(problem)}")
        echo(f"{len(report.problems)} problems" if report.problems else "no problems")
    sys.exit(1 if report.problems else 0)


@click.command(epilog="Example: objdb history calendar.fs 0x2a --limit 5")
@database_argument
@click.argument("oid", type=OidType())
@limit_option
@json_option
def history(database: str, oid: Oid, limit: int, as_json: bool) -> None:
    """List the revisions of an object, newest first."""
    with open_database(database) as db:
        entries = db.history(oid, limit)
    if as_json:
        show_json(entries)
        return
    show_table(
        ["tid", "time", "user", "size", "version", "description"],
        (
            [
                entry["tid"].hex(), show_time(entry["time"]), entry["user_name"],
                show_bytes(entry["size"]), entry["version"], entry["description"],
            ]
            for entry in entries
        ),
    )


@click.command(epilog="Example: objdb diff calendar.fs 0x2a yesterday 03ff2a9100000000")
@database_argument
@click.argument("oid", type=OidType())
@click.argument("old", type=MomentType())
@click.argument("new", type=MomentType(), required=False)
@json_option
def diff(
    database: str, oid: Oid, old: Tid | datetime, new: Tid | datetime | None, as_json: bool
) -> None:
    """Show the changes of an object after OLD, up to and including NEW (default: all).

    Both are transactions (`objdb history` lists those that changed the object) or times.
    Attributes and items are shown as they were at OLD, and as they were at NEW.
    """
    with open_database(database) as db:
        new = new or db.storage.lastTransaction()
        with db.open(at=old) as past, db.open(at=new) as present:
            obj = present.get(oid)
            found = diff_revisions(past.get(oid), obj)
    if as_json:
        show_json(plain_changes(found))
        return
    moments = f"at {_moment(old)} and at {_moment(new)}"
    name = f"{escaped(class_name(type(obj)))} {format_oid(oid)}"
    if not found:
        echo(f"{name} is the same {moments}")
        return
    echo(f"{name} {moments}")
    show_changes(found)


def _moment(moment: Tid | datetime) -> str:
    return show_tid(moment) if isinstance(moment, bytes) else show_time(moment.timestamp())


COMMANDS = (info, check, history, diff)
