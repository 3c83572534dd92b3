"""The subcommands for module safes: list them, get and set a value, export all."""

from __future__ import annotations

import ast
import json
import os
from collections.abc import Callable
from typing import Any, TextIO

import click

from objdb.errors import ObjdbError
from objdb.safe import Safe, SafeInfo, list_safes, open_safe
from objdb.safe.naming import directory_of_safes
from objdb.tools.terminal import (
    echo,
    escaped,
    json_escaped,
    json_option,
    show_bytes,
    show_json,
    show_table,
)

_directory_option = click.option(
    "--directory", type=click.Path(file_okay=False),
    help="The directory of the safes; by default OBJDB_SAFE, or ./safe.",
)
_SHOWN_KEYS = 10


class _Literal(click.ParamType):  # type: ignore[type-arg]
    """A Python literal, such as 42 or "[1, 2]"; any other word is text."""

    name = "literal"

    def convert(self, value: Any, param: Any, ctx: Any) -> Any:
        """Return the value that the word stands for."""
        try:
            return ast.literal_eval(value)
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
            return value


@click.group(epilog="Example: objdb safe get shop.prices apple")
def safe() -> None:
    """Show and change module safes, also while programs use them.

    SAFE is a name that `objdb safe list` shows, or a module's name if it is unique. KEY and VALUE
    are Python literals, such as 42, "'42'" or "[1, None]"; other words are text.
    """


@safe.command("list", epilog="Example: objdb safe list --directory /srv/shop/safe")
@_directory_option
@json_option
def list_(directory: str | None, as_json: bool) -> None:
    """List the safes: owner, backend, size.

    The number of keys is ? if a safe cannot be opened; the reason is printed.
    """
    found = [(info, _count(info)) for info in _safes(directory)]
    if as_json:
        show_json([
            {
                "name": info.name, "node": info.node, "cage": info.cage, "module": info.module,
                "backend": info.backend, "keys": count, "size_bytes": info.size_bytes,
            }
            for info, count in found
        ])
        return
    show_table(["name", "cage", "module", "backend", "keys", "size"], [
        [
            info.name, info.cage, info.module, info.backend, "?" if count is None else count,
            show_bytes(info.size_bytes),
        ]
        for info, count in found
    ])


@safe.command(epilog="Example: objdb safe get shop.prices apple")
@click.argument("name", metavar="SAFE")
@click.argument("key", type=_Literal())
@_directory_option
def get(name: str, key: Any, directory: str | None) -> None:
    """Print the value at KEY, as Python writes it."""
    with _open(name, directory) as found:
        if key not in _hashable(key, found):
            raise click.ClickException(f"there is no key {key!r} in {name}; {_keys(found)}")
        echo(repr(found[key]))


@safe.command("set", epilog='Example: objdb safe set shop.prices apple "[1, 20]"')
@click.argument("name", metavar="SAFE")
@click.argument("key", type=_Literal())
@click.argument("value", type=_Literal())
@_directory_option
def set_(name: str, key: Any, value: Any, directory: str | None) -> None:
    """Store VALUE at KEY, in an existing safe."""
    with _open(name, directory) as found:
        _hashable(key, found)[key] = value


@safe.command(epilog="Example: objdb safe export shop.prices --format json -o prices.json")
@click.argument("name", metavar="SAFE")
@click.option(
    "--format", "form", type=click.Choice(["python", "json"]), default="python",
    show_default=True, help="The output format.",
)
@click.option("-o", "--output", type=click.File("w", atomic=True), default="-", help="A file.")
@_directory_option
def export(name: str, form: str, output: TextIO, directory: str | None) -> None:
    """Write all pairs, a line for each: (key, value) as Python writes it, or [key, value] as JSON.

    Pairs that would not be the same when read again are left out and reported, and the exit code
    is 1: objects of classes, and in JSON tuples, sets, bytes and keys that are not text.
    """
    write = {"python": _as_python, "json": _as_json}[form]
    left_out = []
    with _open(name, directory) as found:
        for key, value in found.items():
            line = write(key, value)
            if line is None:
                left_out.append(key)
            else:
                output.write(line + "\n")
    for key in left_out:
        echo(f"left out: {key!r}, which {form} cannot represent", err=True)
    if left_out:
        click.get_current_context().exit(1)


def _as_python(key: Any, value: Any) -> str | None:
    return _same((key, value), repr, ast.literal_eval)


def _as_json(key: Any, value: Any) -> str | None:
    write = json.JSONEncoder(ensure_ascii=False, allow_nan=False).encode
    text = _same([key, value], write, json.loads)
    # JSON makes text of the keys of dicts, and numbers of bools, without an error.
    is_same = text and repr(json.loads(text)) == repr([key, value])
    return json_escaped(text) if text and is_same else None


def _same(pair: Any, write: Callable[[Any], str], read: Callable[[str], Any]) -> str | None:
    """Return *pair* as text, if it can be read again."""
    try:
        text = write(pair)
        return text if read(text) == pair else None
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return None


def _safes(directory: str | None) -> list[SafeInfo]:
    where = directory_of_safes(directory)
    if not where.is_dir():
        raise click.ClickException(
            f"there is no directory {where}. Name the directory of the safes by --directory or "
            "OBJDB_SAFE, or change to the program's directory"
        )
    return list_safes(where)


def _count(info: SafeInfo) -> int | None:
    try:
        with open_safe(info.path, create=False) as found:
            return len(found)
    except (ObjdbError, OSError) as error:
        echo(f"{escaped(info.name)}: {escaped(error)}", err=True)
        return None


def _open(name: str, directory: str | None) -> Safe:
    safes = _safes(directory)
    name = name.rstrip(os.sep)
    found = [info for info in safes if info.name == name] or [
        info for info in safes if info.module == name
    ]
    if len(found) == 1:
        return open_safe(found[0].path, create=False)
    what = f"there is no safe {name!r}" if not found else f"several safes are {name!r}"
    names = ", ".join(info.name for info in found or safes) or "none"
    raise click.ClickException(f"{what} in {directory_of_safes(directory)}; there are: {names}")


def _hashable(key: Any, found: Safe) -> Safe:
    try:
        hash(key)
    except TypeError as error:
        raise click.BadParameter(f"{key!r} cannot be a key: {error}") from error
    return found


def _keys(found: Safe) -> str:
    shown: list[str] = []
    for key in found:
        if len(shown) == _SHOWN_KEYS:
            shown.append("…")
            break
        shown.append(repr(key))
    return "it has " + (", ".join(shown) or "none")


COMMANDS = (safe,)
