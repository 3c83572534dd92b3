"""The `objdb` command: what an administrator asks of a database, and does to it.

    look      info, check, history, diff, undolog
    change    undo, versions, migrate, pack
    safes     safe list, safe get, safe set, safe export

Exit codes: 0 done, 1 it could not be done (or `check` found damage), 2 wrong usage. What is a
user's mistake, or the database's state, is told in a sentence, without a traceback.
"""

from __future__ import annotations

from typing import Any

import click

from objdb.errors import ObjdbError
from objdb.tools import copying, looking, packing, safes, undoing, versions
from objdb.version import __version__


class _Group(click.Group):
    """Tells the errors of objdb and of the operating system as messages."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except ObjdbError as error:
            raise click.ClickException(str(error)) from error
        except OSError as error:
            where = f"{error.filename}: " if error.filename else ""
            raise click.ClickException(f"{where}{error.strerror or error}") from error


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="objdb")
def main() -> None:
    """Look at databases of objects, and administer them.

    DATABASE is a path or a URI, such as calendar.fs or file:calendar.fs. `objdb COMMAND --help`
    shows an example of each command.
    """


for command in (
    *looking.COMMANDS, *undoing.COMMANDS, *versions.COMMANDS, *copying.COMMANDS,
    *packing.COMMANDS, *safes.COMMANDS,
):
    main.add_command(command)
