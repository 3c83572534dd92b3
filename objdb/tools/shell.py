"""The subcommand that gives a Python prompt on a database.

    objdb shell cal.fs ─► a connection ─► names: root, db, connection, commit, abort, undo, log
                                            ╰─► IPython's prompt, or ptpython's, or Python's own
"""

from __future__ import annotations

import code
import os
import sys
import traceback
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import click
import transaction

from objdb.tools.terminal import database_argument, echo, escaped, open_database, show_time

PROMPTS = ("ptpython", "ipython", "python")


class Session:
    """What the names at the prompt do, on the database *db*."""

    def __init__(self, db: Any) -> None:
        self.db = db
        self.manager = transaction.TransactionManager()
        self.connection = db.open(transaction_manager=self.manager)

    def names(self) -> dict[str, Any]:
        """Return what is known at the prompt."""
        import objdb

        return {
            "objdb": objdb, "db": self.db, "connection": self.connection,
            "root": self.connection.root(), "commit": self.commit, "abort": self.abort,
            "undo": self.undo, "log": self.log,
        }

    def commit(self, note: str = "") -> None:
        """Commit what was changed, with a note for the undo log."""
        if note:
            self.manager.get().note(note)
        self.manager.commit()

    def abort(self) -> None:
        """Drop what was changed, and see what others have committed."""
        self.manager.abort()
        self.connection.sync()

    def undo(self, transaction_id: Any = None, note: str = "") -> None:
        """Undo a transaction, the last one if none is named, and commit that."""
        if transaction_id is None:
            transaction_id = self.db.undoLog(0, 1)[0]["id"]
        self.db.undo(transaction_id, self.manager.get())
        self.commit(note)

    def log(self, count: int = 10) -> None:
        """Print the last transactions, with the ids for `undo`."""
        for entry in self.db.undoLog(0, -count):
            texts = entry["id"], show_time(entry["time"]), entry["user_name"], entry["description"]
            echo("  ".join(escaped(str(text)) for text in texts if text))

    def close(self) -> None:
        """Drop what was not committed, and say so."""
        if self.connection.work is not None:
            echo("What was changed and not committed is dropped.", err=True)
        self.manager.abort()
        self.connection.close()


@click.command(epilog="Example: objdb shell zeo://localhost:9100 -c 'print(list(root))'")
@database_argument
@click.option("--read-only", is_flag=True, help="Let nothing be committed.")
@click.option("-c", "source", metavar="CODE", help="Run this instead of giving a prompt.")
@click.option(
    "--prompt", type=click.Choice(PROMPTS), help="Which one; default: the first that is installed."
)
def shell(database: str, read_only: bool, source: str | None, prompt: str | None) -> None:
    """Give a Python prompt on DATABASE, with the names root, db, connection, commit, abort, undo
    and log.

    Looking at objects imports their classes: from the current directory, too, as `python` does.
    Where the input is no terminal, it is run as a program.
    """
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    with open_database(database, read_only=read_only) as db:
        session = Session(db)
        try:
            if source is None and not sys.stdin.isatty():
                source = sys.stdin.read()
            if source is not None:
                _run(source, session.names())
            else:
                _prompt(prompt)(session.names(), _banner(db))
        finally:
            session.close()


def _run(source: str, names: dict[str, Any]) -> None:
    """Run a program; show where it fails, without frames of the command."""
    try:
        exec(compile(source, "<objdb shell>", "exec"), names)
    except Exception as error:
        frames = error.__traceback__
        traceback.print_exception(error.with_traceback(frames and frames.tb_next))
        raise click.exceptions.Exit(1) from error


def _banner(db: Any) -> str:
    return (
        f"{escaped(db.name)}: root, db, connection; commit(note), abort(), undo(id), log(). "
        "Ctrl-D ends it."
    )


def _prompt(wanted: str | None) -> Callable[[dict[str, Any], str], object]:
    """Return what gives a prompt. `UsageError` if the one that is wanted is not installed."""
    package = {"ptpython": "ptpython", "ipython": "IPython", "python": "code"}
    there = [name for name in PROMPTS if find_spec(package[name]) is not None]
    if wanted is not None and wanted not in there:
        raise click.UsageError(
            f"{wanted} is not installed. Install it with: pip install {wanted}"
        )
    return {"ptpython": _ptpython, "ipython": _ipython, "python": _python}[wanted or there[0]]


def _ptpython(names: dict[str, Any], banner: str) -> None:
    from ptpython.repl import embed

    echo(banner, err=True)
    embed(globals=names)


def _ipython(names: dict[str, Any], banner: str) -> None:
    from IPython import start_ipython

    echo(banner, err=True)
    start_ipython(argv=["--no-banner", "--no-confirm-exit"], user_ns=names)


def _python(names: dict[str, Any], banner: str) -> None:
    try:
        import readline
        import rlcompleter

        readline.set_completer(rlcompleter.Completer(names).complete)
        readline.parse_and_bind("tab: complete")
    except ImportError:  # then without
        pass
    code.interact(banner=banner, local=names, exitmsg="")


COMMANDS = (shell,)
