"""The table `[server]` of a settings file, in TOML: the options of `objdb serve`.

    [server]
    storage = "file:team.fs"
    name = {archive = "compressed+file:archive.fs"}
    address = ["127.0.0.1:9100", "unix:objdb.sock"]
    vote_seconds = 10

A key is an option's name, with - or _. Paths are relative to the folder of the file.
"""

from __future__ import annotations

import os
from difflib import get_close_matches
from typing import Any

import click

from objdb.database.settings import SERVER, read_toml
from objdb.errors import UsageError

# Of the command line only.
_EXCEPT = {"settings", "stop", "restart", "status", "json", "help"}


def load(path: str, command: click.Command, ctx: click.Context) -> dict[str, Any]:
    """Return the values for the command's parameters that the file has, by parameter. `UsageError`
    for a key that there is not, and a value that it cannot have."""
    table = read_toml(path).get(SERVER)
    if not isinstance(table, dict):
        raise UsageError(f"{path} has no table [{SERVER}], for the options of objdb serve")
    parameters = {_key(each): each for each in command.params}
    known = sorted(parameters.keys() - _EXCEPT)
    values: dict[str, Any] = {}
    for key, value in table.items():
        name = key.replace("-", "_")
        if name not in known:
            near = get_close_matches(name, known, 1)
            advice = f"did you mean {near[0]}?" if near else f"known are {', '.join(known)}"
            raise UsageError(f"{path}: [{SERVER}] has {key}, which there is not; {advice}")
        parameter = parameters[name]
        assert parameter.name is not None
        try:
            values[parameter.name] = _value(name, value, parameter, ctx, os.path.dirname(path))
        except click.BadParameter as error:
            raise UsageError(f"{path}: [{SERVER}] {key}: {error.message}") from None
    return values


def _key(parameter: click.Parameter) -> str:
    return max(parameter.opts, key=len).lstrip("-").replace("-", "_")


def _value(
    name: str, value: Any, parameter: click.Parameter, ctx: click.Context, folder: str
) -> Any:
    """Return a value as the command line would give it."""
    is_flag = isinstance(parameter, click.Option) and parameter.is_flag
    if is_flag != isinstance(value, bool):
        raise click.BadParameter(f"{value!r} is not {'true or false' if is_flag else 'valid'}")
    if name == "name":
        if not isinstance(value, dict):
            raise click.BadParameter('write {NAME = "URI"}')
        value = [f"{each}={uri}" for each, uri in value.items()]
    if name == "address":
        addresses = [value] if isinstance(value, str) else value
        value = [_in_folder(each, folder) for each in addresses]
    if name in ("pid_file", "ready_file"):
        value = os.path.join(folder, str(value))
    parameter.type_cast_value(ctx, value)
    return value


def _in_folder(address: str, folder: str) -> str:
    path = str(address).removeprefix("unix:")
    return f"unix:{os.path.join(folder, path)}" if path != address else address
