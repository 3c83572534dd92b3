"""What the subcommands share: opening databases, and output.

Text from a database, such as descriptions, class names and values, may be malicious: `escaped`
replaces control characters and those that change the direction of writing. `echo` prints such
characters only escaped, line ends aside; all output goes through `echo`, `show_table` or
`show_json`.
"""

from __future__ import annotations

import json
import re
import sys
import unicodedata
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import Any

import click
from rich.console import Console
from rich.progress import Progress, ProgressColumn
from rich.table import Table
from rich.text import Text

from objdb.database.db import DB
from objdb.database.opening import with_parameter
from objdb.ids import NO_TID, Tid, time_from_tid
from objdb.tools.words import DatabaseType

database_argument = click.argument("database", type=DatabaseType())
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
limit_option = click.option(
    "--limit", type=click.IntRange(1), default=20, show_default=True, help="Show at most this many."
)


@contextmanager
def open_database(where: str, *, read_only: bool = True) -> Iterator[DB]:
    """Open an existing database; *read_only*: also while another process writes it."""
    with DB(reading_uri(where) if read_only else _existing(where)) as db:
        yield db


def reading_uri(where: str) -> str:
    """Return the URI that opens the existing database *where* read-only."""
    return with_parameter(with_parameter(where, "create", "false"), "read_only", "true")


def _existing(where: str) -> str:
    return with_parameter(where, "create", "false")


# Control and format characters, surrogates (as in file names that are not text), and other line
# ends; the two joiners are parts of words and pictures.
_CATEGORIES = {"Cc", "Cf", "Cs", "Zl", "Zp"}
_JOINERS = "\u200c\u200d"
_SUSPECTS = re.compile(r"[^\x20-\x7e]")


def escaped(value: Any, keep: str = "") -> str:
    """Return a value as text, with control characters escaped as Python does, `\\x1b` and
    `\\u202e`. Those in *keep* stay."""
    return _SUSPECTS.sub(lambda found: _escape(found[0], keep), str(value))


def _escape(character: str, keep: str) -> str:
    if character in keep or character in _JOINERS:
        return character
    if unicodedata.category(character) not in _CATEGORIES:
        return character
    return character.encode("unicode_escape", "surrogatepass").decode("ascii")


def echo(text: str, *, err: bool = False) -> None:
    """Print text of one or several lines; any part from a database is `escaped` first, so that
    it cannot forge lines."""
    stream = sys.stderr if err else sys.stdout
    text = escaped(text, keep="\n")
    encoding = getattr(stream, "encoding", None) or "utf-8"
    click.echo(text.encode(encoding, "backslashreplace").decode(encoding), err=err)


def show_time(seconds: float) -> str:
    """Return a time as output shows it: local, in ISO form, with its zone."""
    return datetime.fromtimestamp(seconds).astimezone().isoformat(" ", "seconds")


def show_tid(tid: Tid) -> str:
    """Return a tid as output shows it: its digits, as all subcommands take them, and its time."""
    return tid.hex() if tid == NO_TID else f"{tid.hex()} ({show_time(time_from_tid(tid))})"


def show_bytes(size: int) -> str:
    """Return a size as output shows it."""
    amount = float(size)
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if amount < 1024 or unit == "GiB":
            break
        amount /= 1024
    return f"{amount:.0f} {unit}" if unit == "bytes" else f"{amount:.1f} {unit}"


def show_table(header: list[str], rows: Iterable[list[Any]]) -> None:
    """Print rows under a header. A terminal folds long cells; elsewhere each row is one line."""
    lines = [header, *([_cell(cell) for cell in row] for row in rows)]
    if sys.stdout.isatty():
        table = Table(box=None, pad_edge=False, header_style="bold")
        for name in header:
            table.add_column(name, overflow="fold", no_wrap=name in ("id", "tid"))
        for line in lines[1:]:
            table.add_row(*(Text(cell) for cell in line))
        Console().print(table)
        return
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        cells = (cell.ljust(width) for cell, width in zip(line, widths, strict=True))
        echo("  ".join(cells).rstrip())


def _cell(value: Any) -> str:
    return escaped(" ".join(str(value).splitlines()))


def progress_bar(*columns: ProgressColumn) -> Progress:
    """Return a progress bar for long work, shown on a terminal only."""
    console = Console(stderr=True)
    return Progress(
        *columns, console=console, transient=True, disable=not console.is_terminal
    )


def show_json(value: Any) -> None:
    """Print a value as JSON; bytes as hexadecimal digits, other values as text if need be."""
    echo(json_escaped(json.dumps(_with_names(value), indent=1, ensure_ascii=False, default=_plain)))


def json_escaped(text: str) -> str:
    """Return JSON with the characters that `escaped` escapes written as `\\u001b`: all are inside
    strings, line ends of the layout aside."""
    return _SUSPECTS.sub(lambda found: _escape_in_json(found[0]), text)


def _escape_in_json(character: str) -> str:
    if _escape(character, keep="\n") == character:
        return character
    return json.dumps(character)[1:-1]


def _with_names(value: Any) -> Any:
    """Return a value with all dict keys converted to text."""
    if isinstance(value, dict):
        return {_name(key): _with_names(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_with_names(item) for item in value]
    return value


def _plain(value: Any) -> str:
    return value.hex() if isinstance(value, bytes) else str(value)


def show_changes(changes: dict[Any, tuple[Any, Any]]) -> None:
    """Print the old and new value of each attribute, one a line."""
    for name, values in changes.items():
        before, after = ("(nothing)" if value is ... else repr(value) for value in values)
        echo(f"  {escaped(_name(name))}: {escaped(before)} -> {escaped(after)}")


def plain_changes(changes: dict[Any, tuple[Any, Any]]) -> dict[str, list[str | None]]:
    """Return attribute changes for JSON: values as Python writes them, or null."""
    return {
        _name(name): [None if value is ... else repr(value) for value in values]
        for name, values in changes.items()
    }


def _name(name: Any) -> str:
    return name if isinstance(name, str) else repr(name)
