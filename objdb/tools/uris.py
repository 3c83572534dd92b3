"""The subcommand that lists the parts of a URI: schemes, layers, parameters, options."""

from __future__ import annotations

from typing import Any

import click

from objdb.database.options import OPTIONS
from objdb.database.schemes import SCHEMES, Scheme, added_schemes
from objdb.tools.terminal import echo, json_option, show_json, show_table


@click.command(epilog="Example: objdb uris --json")
@json_option
def uris(as_json: bool) -> None:
    """List the kinds of storages and layers that a URI can name, their parameters, and the options
    of the database.

    The options are also arguments of objdb.DB, and can be set in objdb.toml.
    """
    schemes = {**SCHEMES, **added_schemes()}
    if as_json:
        show_json({
            "storages": _parameters(schemes, is_layer=False),
            "layers": _parameters(schemes, is_layer=True),
            "options": {
                name: {"default": option.default, "meaning": option.metadata["meaning"]}
                for name, option in OPTIONS.items()
            },
        })
        return
    for title, is_layer in (("storage", False), ("layer", True)):
        mark = "+" if is_layer else ":"
        found = _parameters(schemes, is_layer=is_layer)
        show_table(
            [title, "parameters"], [[name + mark, ", ".join(found[name])] for name in found]
        )
        echo("")
    rows = [[name, _shown(o.default), o.metadata["meaning"]] for name, o in OPTIONS.items()]
    show_table(["option", "default", "meaning"], rows)
    echo("\nFor example: encrypted+file:letters.fs?key=env:LETTERS_KEY&pool_size=20")


def _parameters(schemes: dict[str, Scheme], *, is_layer: bool) -> dict[str, list[str]]:
    return {
        name: list(scheme.parameters) for name, scheme in schemes.items()
        if scheme.is_layer is is_layer
    }


def _shown(default: Any) -> str:
    words = {None: "never", True: "yes", False: "no"}
    is_word = default is None or isinstance(default, bool)
    return words[default] if is_word else str(default)


COMMANDS = (uris,)
