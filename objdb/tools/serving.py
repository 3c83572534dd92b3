"""The subcommand that serves storages to other processes and machines."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import resource
import signal
import sys
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import fields
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from objdb.database.opening import open_storage
from objdb.database.packing import AutoPack, autopack_of
from objdb.errors import ObjdbError, UsageError
from objdb.tools import settings
from objdb.tools.operating import restart_server, show_status, stop_server
from objdb.tools.terminal import echo, json_option
from objdb_zeo.limits import Limits

if TYPE_CHECKING:
    from objdb_zeo.listening import Listening

DEFAULT_ADDRESS = "127.0.0.1:9100"
_OTHER_DESCRIPTORS = 100  # besides those of the clients
_ARGUMENTS = "objdb.serve.arguments"
_FILE = click.Path(dir_okay=False)

logger = logging.getLogger("objdb_zeo")


def _limit(name: str, help: str, least: int = 1) -> Callable[[Any], Any]:
    """Return the option for a field of `Limits`."""
    default = getattr(Limits, name)
    is_time = isinstance(default, float)
    return click.option(
        f"--{name.replace('_', '-')}", default=default, show_default=True, help=help,
        type=click.FloatRange(min=0, min_open=True) if is_time else click.IntRange(min=least),
    )


class _Octal(click.ParamType):  # type: ignore[type-arg]
    name = "octal"

    def convert(self, value: Any, param: Any, ctx: Any) -> int:
        try:
            found = int(value, 8)
        except (TypeError, ValueError):
            found = -1
        if not 0 <= found <= 0o777:
            self.fail(f"{value!r} is not an octal number as text, such as 117", param, ctx)
        return found


class _AutoPack(click.ParamType):  # type: ignore[type-arg]
    name = "autopack"

    def convert(self, value: Any, param: Any, ctx: Any) -> AutoPack | None:
        try:
            return AutoPack.from_text(value) if isinstance(value, str) else autopack_of(value)
        except (ValueError, UsageError) as error:
            self.fail(str(error), param, ctx)


def _read_settings(ctx: click.Context, parameter: click.Parameter, path: str | None) -> str | None:
    if path is not None:
        ctx.default_map = settings.load(path, ctx.command, ctx)
    return path


class _Serve(click.Command):
    """Remembers its arguments, which are parsed again when the settings file has changed."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse."""
        ctx.meta.setdefault(_ARGUMENTS, list(args))
        return super().parse_args(ctx, args)


@click.command(
    cls=_Serve,
    epilog="Example: objdb serve file:cal.fs --address 127.0.0.1:9100; then, elsewhere: "
    "objdb info zeo://127.0.0.1:9100"
)
@click.argument("storage", required=False)
@click.option(
    "--name", "named", multiple=True, metavar="NAME=URI",
    help="Serve another storage, under this name; may be repeated. STORAGE is called 1.",
)
@click.option(
    "--address", "addresses", multiple=True, metavar="ADDRESS",
    help=f"Where to listen: HOST:PORT (port 0: any) or unix:PATH; may be repeated. Default: "
    f"{DEFAULT_ADDRESS}, or what systemd gives.",
)
@click.option("--read-only", is_flag=True, help="Let nobody commit.")
@_limit("vote_seconds", "Cut off a client that keeps others from committing for longer.")
@_limit("register_seconds", "Cut off a client that has not said what it wants after so long.")
@_limit("clients", "How many clients can be connected at once.")
@_limit("clients_per_address", "How many of one IP address, or of one user of a Unix socket.")
@_limit("frame_bytes", "The largest message.", least=1024)
@_limit("pending_bytes", "Cut off a client that does not read, when more waits for it.")
@_limit("staged_bytes", "How much a client can change before it votes.")
@click.option("--owner", metavar="USER", help="Give Unix sockets to this user.")
@click.option(
    "--group", metavar="GROUP", help="Give Unix sockets to this group, which may connect then."
)
@click.option(
    "--umask", type=_Octal(), help="Who may not connect to Unix sockets.  [default: 177; 117 with "
    "--group]",
)
@click.option(
    "--pickle-clients", is_flag=True, help="Talk pickles, for ZEO clients without msgpack."
)
@click.option(
    "--ready-file", type=_FILE,
    help="Write the addresses and the process's number here, once it listens.",
)
@click.option(
    "--pid-file", type=_FILE, help="Write the process's number here, and lock it; for --stop."
)
@click.option(
    "--autopack", type=_AutoPack(), metavar="WHEN",
    help="Pack each storage when it has grown, or time has passed: growth_bytes:100000000, "
    "every_days:7, and days:3 for the history that stays; joined by commas.",
)
@click.option(
    "--settings", type=_FILE, is_eager=True, callback=_read_settings, metavar="FILE",
    help="Read options from the table [server] of this file, such as objdb.toml; those given here "
    "win. SIGHUP reads it again.",
)
@click.option("--stop", is_flag=True, help="Stop the server that has the --pid-file.")
@click.option(
    "--restart", is_flag=True,
    help="Restart the server that has the --pid-file; it goes on listening.",
)
@click.option("--status", is_flag=True, help="Print the status of the server at --address.")
@json_option
@click.pass_context
def serve(
    ctx: click.Context, /, stop: bool, restart: bool, status: bool, as_json: bool, **given: Any
) -> None:
    """Serve STORAGE, a path or URI, to clients on this machine and others, until Ctrl-C or SIGTERM.

    Clients open it with zeo://HOST:PORT; those of ZEO can use it, too. Without STORAGE, an empty
    one in a temporary directory is served. There is no authentication: whoever can connect can
    read and write everything, so listen where only your own programs are.
    """
    if status:
        show_status(given["addresses"] or (DEFAULT_ADDRESS,), as_json=as_json)
    elif stop or restart:
        if given["pid_file"] is None:
            option = "--stop" if stop else "--restart"
            raise click.UsageError(f"{option} needs the --pid-file that the server has")
        (stop_server if stop else restart_server)(given["pid_file"])
    else:
        _run(ctx, given)


def _run(ctx: click.Context, given: dict[str, Any]) -> None:
    """Serve, until a signal ends it."""
    from objdb_zeo.pidfile import PidFile
    from objdb_zeo.systemd import bequeath

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    _raise_descriptors(given["clients"])
    with ExitStack() as opened:
        pid_file = None
        if given["pid_file"] is not None:
            pid_file = PidFile(given["pid_file"])
            opened.callback(pid_file.close)
        storages, autopack = _open(ctx, given, opened)
        sockets = None
        with contextlib.suppress(KeyboardInterrupt):
            sockets = _runner()(_serve(ctx, given, storages, autopack))
        if sockets is not None and pid_file is not None:
            pid_file.bequeath(above=_OTHER_DESCRIPTORS + len(sockets))
    if sockets is None:
        echo("stopped", err=True)
        return
    echo("restarting", err=True)
    for number in (signal.SIGHUP, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)  # until the next program handles them
    bequeath(sockets)
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def _runner() -> Callable[[Any], Any]:
    """Return what runs the event loop: uvloop where it is installed, which is faster."""
    if find_spec("uvloop") is None:
        return asyncio.run
    run: Callable[[Any], Any] = import_module("uvloop").run
    return run


async def _serve(
    ctx: click.Context, given: dict[str, Any], storages: dict[str, Any], autopack: dict[str, Any]
) -> list[Listening] | None:
    from objdb_zeo.addresses import parse_address
    from objdb_zeo.listening import Access
    from objdb_zeo.server import Server
    from objdb_zeo.service import Service
    from objdb_zeo.systemd import inherited_sockets

    inherited = inherited_sockets()
    is_activated = any(not each.is_own for each in inherited)
    default = () if is_activated else (DEFAULT_ADDRESS,)
    server = Server(
        storages, [parse_address(each) for each in given["addresses"] or default],
        limits=_limits(given), pickles=given["pickle_clients"], read_only=given["read_only"],
        inherited=inherited, access=Access.named(given["owner"], given["group"], given["umask"]),
    )
    service = Service(
        server, reload=partial(_reload, ctx, given, server), ready=partial(_tell, storages),
        ready_file=given["ready_file"], autopack=autopack,
    )
    return await service.run()


def _limits(given: dict[str, Any]) -> Limits:
    return Limits(**{each.name: given[each.name] for each in fields(Limits)})


def _reload(ctx: click.Context, given: dict[str, Any], server: Any) -> bool:
    """Read the settings again, and return whether they are valid. Limits change at once, and the
    log says what takes a restart."""
    try:
        fresh = serve.make_context("serve", list(ctx.meta[_ARGUMENTS]), parent=ctx.parent).params
        server.set_limits(_limits(fresh))
    except (click.ClickException, ObjdbError, OSError) as error:
        logger.error("the settings stay as they were: %s", _sentence(error))
        return False
    limits = {each.name for each in fields(Limits)}
    options = {each.name: max(each.opts, key=len) for each in serve.params}
    others = [
        options[name] for name in given if name not in limits and given[name] != fresh[name]
    ]
    logger.info("the settings were read again: %s", server.limits)
    if others:
        logger.warning("%s changed, which takes a restart (SIGUSR2)", ", ".join(others))
    return True


def _sentence(error: Exception) -> str:
    return error.format_message() if isinstance(error, click.ClickException) else str(error)


def _open(
    ctx: click.Context, given: dict[str, Any], opened: ExitStack
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Open the storages; return them, and when they pack themselves, by name."""
    storages, autopack = {}, {}
    for name, (uri, folder) in _named(ctx, given, opened).items():
        storages[name], options = open_storage(uri, folder, read_only=given["read_only"])
        opened.callback(storages[name].close)
        setting = autopack_of(options.get("autopack") or given["autopack"])
        if setting is not None and not storages[name].isReadOnly():
            autopack[name] = setting
    return storages, autopack


def _named(
    ctx: click.Context, given: dict[str, Any], opened: ExitStack
) -> dict[str, tuple[str, str]]:
    """Return the URI of each storage, and the folder that it is relative to, by name."""
    found: dict[str, tuple[str, str]] = {}
    if given["storage"] is not None:
        found["1"] = given["storage"], _folder(ctx, given, "storage")
    for each in given["named"]:
        name, equals, uri = each.partition("=")
        if not (name and equals and uri):
            raise click.UsageError(f"--name {each!r} is not NAME=URI, such as main=file:cal.fs")
        if name in found:
            raise click.UsageError(f"there are two storages called {name!r}")
        found[name] = uri, _folder(ctx, given, "named")
    if not found:
        folder = opened.enter_context(tempfile.TemporaryDirectory(prefix="objdb-"))
        found["1"] = "temporary.fs", folder
        echo("No storage is named: what is committed is gone when the server stops.", err=True)
    return found


def _folder(ctx: click.Context, given: dict[str, Any], parameter: str) -> str:
    """Return the folder that what a parameter names is relative to."""
    is_in_file = ctx.get_parameter_source(parameter) is ParameterSource.DEFAULT_MAP
    return os.path.dirname(os.path.abspath(given["settings"])) if is_in_file else os.getcwd()


def _raise_descriptors(clients: int) -> None:
    """Let the process have a descriptor for each client, as far as it may; say if it may not."""
    needed = clients + _OTHER_DESCRIPTORS
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < needed:
        most = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, most), hard))
        if most < needed:
            echo(
                f"This process may have {most} descriptors: too few for {clients} clients. Raise "
                "the limit (ulimit -Hn, or systemd's LimitNOFILE=), or lower --clients.", err=True,
            )


def _tell(storages: dict[str, Any], addresses: list[str]) -> None:
    """Print what is served, and where."""
    for name, storage in storages.items():
        echo(f"{name}: {storage.getName()}", err=True)
    for address in addresses:
        uri = address.replace("unix:", "zeo://") if address[:5] == "unix:" else f"zeo://{address}"
        echo(f"listening at {address}: open it with {uri}", err=True)


COMMANDS = (serve,)
