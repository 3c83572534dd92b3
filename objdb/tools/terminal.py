"""What the subcommands share: opening, arguments, and how things are shown."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import Any

import click
from rich.console import Console
from rich.progress import Progress, ProgressColumn

from objdb.database.db import DB
from objdb.database.opening import with_parameter
from objdb.ids import Oid, Tid, oid_from_int

database_argument = click.argument("database")
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
limit_option = click.option(
    "--limit", type=click.IntRange(1), default=20, show_default=True, help="At most so many."
)


@contextmanager
def open_database(where: str, *, read_only: bool = True) -> Iterator[DB]:
    """Open a database that exists; *read_only*: beside a process that writes it."""
    with DB(reading_uri(where) if read_only else _existing(where)) as db:
        yield db


def reading_uri(where: str) -> str:
    """Return the URI that opens what *where* names, which has to exist, for reading only."""
    return with_parameter(with_parameter(where, "create", "false"), "read_only", "true")


def _existing(where: str) -> str:
    return with_parameter(where, "create", "false")


class OidType(click.ParamType):  # type: ignore[type-arg]
    """An oid as messages print it: 0x2a, or 42."""

    name = "oid"

    def convert(self, value: Any, param: Any, ctx: Any) -> Oid:
        """Return the oid that a word stands for."""
        try:
            return oid_from_int(int(value, 0))
        except (ValueError, OverflowError):
            self.fail(f"{value!r} is no oid, as 0x2a and 42 are", param, ctx)


class TidType(click.ParamType):  # type: ignore[type-arg]
    """A tid as messages print it: 16 hexadecimal digits."""

    name = "tid"

    def convert(self, value: Any, param: Any, ctx: Any) -> Tid:
        """Return the tid that a word stands for."""
        digits = value.removeprefix("0x")
        try:
            tid = bytes.fromhex(digits)
        except ValueError:
            tid = b""
        if len(tid) != 8:
            self.fail(f"{value!r} is no tid: those are 16 hexadecimal digits", param, ctx)
        return tid


class TimeType(click.ParamType):  # type: ignore[type-arg]
    """A time in ISO form; without a zone, it is local time. Converted to an aware datetime."""

    name = "time"

    def convert(self, value: Any, param: Any, ctx: Any) -> datetime:
        """Return the time that a word stands for."""
        try:
            return datetime.fromisoformat(value.replace("Z", "+00:00")).astimezone()
        except (ValueError, OverflowError):
            self.fail(f"{value!r} is no time, as 2026-03-01 and 2026-03-01T09:30 are", param, ctx)


def show_time(seconds: float) -> str:
    """Return a time as it is shown: local, in ISO form, with its zone."""
    return datetime.fromtimestamp(seconds).astimezone().isoformat(" ", "seconds")


def show_bytes(size: int) -> str:
    """Return a size as it is shown."""
    amount = float(size)
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if amount < 1024 or unit == "GiB":
            break
        amount /= 1024
    return f"{amount:.0f} {unit}" if unit == "bytes" else f"{amount:.1f} {unit}"


def show_table(header: list[str], rows: Iterable[list[Any]]) -> None:
    """Print rows under a header; a row is a line, however long."""
    lines = [header, *([" ".join(str(cell).splitlines()) for cell in row] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        cells = (cell.ljust(width) for cell, width in zip(line, widths, strict=True))
        click.echo("  ".join(cells).rstrip())


def progress_bar(*columns: ProgressColumn) -> Progress:
    """Return a progress bar for long work: on a terminal; elsewhere nothing is shown."""
    console = Console(stderr=True)
    return Progress(
        *columns, console=console, transient=True, disable=not console.is_terminal
    )


def show_json(value: Any) -> None:
    """Print a value as JSON; bytes as hexadecimal digits, what has no form in JSON as text."""
    click.echo(json.dumps(value, indent=1, ensure_ascii=False, default=_plain))


def _plain(value: Any) -> str:
    return value.hex() if isinstance(value, bytes) else str(value)


def show_changes(changes: dict[Any, tuple[Any, Any]]) -> None:
    """Print what attributes were, and are then, a line for each."""
    for name, values in changes.items():
        before, after = ("(nothing)" if value is ... else repr(value) for value in values)
        click.echo(f"  {_name(name)}: {before} -> {after}")


def plain_changes(changes: dict[Any, tuple[Any, Any]]) -> dict[str, list[str | None]]:
    """Return changes of attributes as JSON has them: values as Python writes them, or null."""
    return {
        _name(name): [None if value is ... else repr(value) for value in values]
        for name, values in changes.items()
    }


def _name(name: Any) -> str:
    return name if isinstance(name, str) else repr(name)
