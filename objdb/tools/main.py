"""The `objdb` command, with which an administrator examines and changes a database.

    look      info, check, history, diff, undolog
    change    undo, versions, migrate, pack
    safes     safe list, safe get, safe set, safe export
    share     serve
    program   shell
    help      uris

Exit codes: 0 done, 1 failed (or `check` found damage), 2 wrong usage, 130 Ctrl-C, 141 the output
pipe was closed. A user's mistake, or the database's state, is reported in a sentence, without a
traceback.
"""

from __future__ import annotations

import os
import sys
from importlib.util import find_spec
from io import StringIO
from typing import Any, NoReturn

import click

from objdb.errors import ObjdbError
from objdb.tools import copying, looking, packing, safes, serving, shell, undoing, uris, versions
from objdb.tools.terminal import echo
from objdb.version import __version__

_INTERRUPTED, _PIPE_CLOSED = 130, 141  # as shells say that a signal ended a program


class _Group(click.Group):
    """Prints errors as messages, and exits with the shell's codes."""

    def main(self, *arguments: Any, **options: Any) -> NoReturn:
        """Run the command, and exit."""
        try:
            code = super().main(*arguments, **{**options, "standalone_mode": False})
        except click.ClickException as error:
            _show(error)
            code = error.exit_code
        except (KeyboardInterrupt, click.Abort):
            code = _INTERRUPTED
        except BrokenPipeError:
            code = _PIPE_CLOSED
        sys.exit(code if isinstance(code, int) else 0)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            result = super().invoke(ctx)
            if sys.stdout is not None:
                sys.stdout.flush()
            return result
        except ObjdbError as error:
            raise click.ClickException(str(error)) from error
        except BrokenPipeError:
            _drop_output()
            ctx.exit(_PIPE_CLOSED)
        except OSError as error:
            where = f"{error.filename}: " if error.filename else ""
            if not error.filename:
                _drop_output()  # the error may be that of the output itself
            raise click.ClickException(f"{where}{error.strerror or error}") from error


def _show(error: click.ClickException) -> None:
    """Print an error as click does, `escaped`."""
    text = StringIO()
    error.show(text)
    echo(text.getvalue().rstrip("\n"), err=True)


def _drop_output() -> None:
    """Discard output not yet written, so that the interpreter exits without an error."""
    try:
        with open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), sys.stdout.fileno())
    except (OSError, ValueError, AttributeError):  # no descriptor, or closed
        pass


def _print_version(ctx: click.Context, _: Any, is_asked: bool) -> None:
    if is_asked:
        echo(f"objdb {__version__}, {_accelerator()}, Python {sys.version.split()[0]}")
        ctx.exit()


def _accelerator() -> str:
    if find_spec("objdb._accelerator") is None:
        return "without the accelerator, which was not built: install a C compiler, then reinstall"
    if os.environ.get("OBJDB_PURE_PYTHON"):
        return "without the accelerator, which OBJDB_PURE_PYTHON switches off"
    return "with the accelerator"


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--version", is_flag=True, expose_value=False, is_eager=True, callback=_print_version,
    help="Print the version, and whether the accelerator is built.",
)
def main() -> None:
    """Examine and administer object databases.

    DATABASE is a path or a URI, such as calendar.fs or file:calendar.fs. Times are local, as in
    2026-03-01, "2026-03-01 09:30", yesterday, "2 hours ago"; a transaction is named by its tid, or
    by its id in `objdb undolog`. `objdb COMMAND --help` shows an example of each command.
    """


for command in (
    *looking.COMMANDS, *undoing.COMMANDS, *versions.COMMANDS, *copying.COMMANDS,
    *packing.COMMANDS, *safes.COMMANDS, *uris.COMMANDS, *serving.COMMANDS, *shell.COMMANDS,
):
    main.add_command(command)
