"""What was done, undoing it, and plans: the calendar's side of undo and versions."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from typing import Any

import objdb

from .errors import CalendarError


def list_changes(db: objdb.DB, last: int) -> list[tuple[datetime, str]]:
    """Return when the last transactions were, and their notes, the newest first."""
    return [
        (datetime.fromtimestamp(entry["time"]), entry["description"] or "(no note)")
        for entry in db.undoLog(0, last)
    ]


def undo_change(db: objdb.DB, number: int) -> str:
    """Undo the transaction that `list_changes` has in this place, counted from 1; return its
    note.

    Raises CalendarError when there is none; objdb.UndoError when something that it changed was
    changed again since, and cannot be told apart.
    """
    entries = db.undoLog(number - 1, number)
    if not entries:
        raise CalendarError(f"there is no change number {number}; `log` lists them")
    note: str = entries[0]["description"] or "(no note)"
    with db.transaction(note=f"undo: {note}") as connection:
        db.undo(entries[0]["id"], connection.transaction_manager.get())
    return note


def list_plans(db: objdb.DB) -> list[str]:
    """Return a line about each plan."""
    return [f"{name}: {len(db.version_diff(name))} objects" for name in db.versions()]


def show_plan(db: objdb.DB, name: str) -> Iterator[str]:
    """Yield what was done in a plan, the oldest first. Raises CalendarError for one that nobody
    did anything in."""
    if db.versionEmpty(name):
        known = ", ".join(db.versions()) or "none yet"
        raise CalendarError(f"there is no plan {name!r}; there is {known}")
    done: dict[Any, str] = {}
    for change in db.version_diff(name):
        for entry in change.by:
            done[entry["tid"]] = f"{datetime.fromtimestamp(entry['time']):%d %b %H:%M}  " + (
                entry["description"] or "(no note)"
            )
    for tid in sorted(done):
        yield done[tid]


def end_plan(db: objdb.DB, name: str, *, commit: bool) -> None:
    """Let everybody have a plan; or give it up."""
    with db.transaction(note=f"{'commit' if commit else 'drop'} the plan {name}") as connection:
        txn = connection.transaction_manager.get()
        if commit:
            db.commitVersion(name, txn=txn)
        else:
            db.abortVersion(name, txn)
