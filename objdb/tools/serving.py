"""The subcommand that serves storages to other processes and machines."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import resource
import signal
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import click

from objdb.database.opening import open_storage
from objdb.tools.terminal import echo
from objdb_zeo.limits import Limits

DEFAULT_ADDRESS = "127.0.0.1:9100"
_OTHER_DESCRIPTORS = 100  # besides those of the clients


def _limit(name: str, help: str, least: int = 1) -> Callable[[Any], Any]:
    """Return the option for a field of `Limits`."""
    default = getattr(Limits, name)
    is_time = isinstance(default, float)
    return click.option(
        f"--{name.replace('_', '-')}", default=default, show_default=True, help=help,
        type=click.FloatRange(min=0, min_open=True) if is_time else click.IntRange(min=least),
    )


@click.command(
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
    f"{DEFAULT_ADDRESS}.",
)
@click.option("--read-only", is_flag=True, help="Let nobody commit.")
@_limit("vote_seconds", "Cut off a client that keeps others from committing for longer.")
@_limit("register_seconds", "Cut off a client that has not said what it wants after so long.")
@_limit("clients", "How many clients can be connected at once.")
@_limit("clients_per_address", "How many of one IP address, or of one user of a Unix socket.")
@_limit("frame_bytes", "The largest message.", least=1024)
@_limit("pending_bytes", "Cut off a client that does not read, when more waits for it.")
@_limit("staged_bytes", "How much a client can change before it votes.")
@click.option(
    "--pickle-clients", is_flag=True, help="Talk pickles, for ZEO clients without msgpack."
)
@click.option(
    "--ready-file", type=click.Path(dir_okay=False),
    help="Write the addresses and the process's number here, once it listens.",
)
def serve(
    storage: str | None, named: tuple[str, ...], addresses: tuple[str, ...], read_only: bool,
    pickle_clients: bool, ready_file: str | None, **limits: Any,
) -> None:
    """Serve STORAGE, a path or URI, to clients on this machine and others, until Ctrl-C or SIGTERM.

    Clients open it with zeo://HOST:PORT; those of ZEO can use it, too. Without STORAGE, an empty
    one in a temporary directory is served. There is no authentication: whoever can connect can
    read and write everything, so listen where only your own programs are.
    """
    from objdb_zeo.addresses import parse_address
    from objdb_zeo.server import Server

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    _raise_descriptors(limits["clients"])
    where = [parse_address(address) for address in addresses or (DEFAULT_ADDRESS,)]
    with ExitStack() as opened:
        storages = {}
        for name, uri in _named(storage, named, opened).items():
            storages[name] = open_storage(uri, os.getcwd(), read_only=read_only)[0]
            opened.callback(storages[name].close)
        server = Server(
            storages, where, limits=Limits(**limits), pickles=pickle_clients, read_only=read_only,
        )
        with contextlib.suppress(KeyboardInterrupt):
            asyncio.run(_serve(server, storages, ready_file))


def _named(storage: str | None, named: tuple[str, ...], opened: ExitStack) -> dict[str, str]:
    found = {} if storage is None else {"1": storage}
    for each in named:
        name, equals, uri = each.partition("=")
        if not (name and equals and uri):
            raise click.UsageError(f"--name {each!r} is not NAME=URI, such as main=file:cal.fs")
        if name in found:
            raise click.UsageError(f"there are two storages called {name!r}")
        found[name] = uri
    if not found:
        folder = opened.enter_context(tempfile.TemporaryDirectory(prefix="objdb-"))
        found["1"] = os.path.join(folder, "temporary.fs")
        echo("No storage is named: what is committed is gone when the server stops.", err=True)
    return found


def _raise_descriptors(clients: int) -> None:
    """Let the process have a descriptor for each client, as far as it may."""
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


async def _serve(server: Any, storages: dict[str, Any], ready_file: str | None) -> None:
    from objdb_zeo.addresses import format_address
    from objdb_zeo.server import explain

    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(explain)
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    async with server:
        addresses = [format_address(address) for address in server.addresses]
        for name, storage in storages.items():
            echo(f"{name}: {storage.getName()}", err=True)
        for address in addresses:
            uri = address.replace("unix:", "zeo://") if address[:5] == "unix:" else f"zeo://{address}"
            echo(f"listening at {address}: open it with {uri}", err=True)
        if ready_file is not None:
            _write_ready(ready_file, addresses)
        try:
            await stop.wait()
        finally:
            if ready_file is not None:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(ready_file)
    echo("stopped", err=True)


def _write_ready(path: str, addresses: list[str]) -> None:
    """Write the file at once as a whole."""
    folder = os.path.dirname(path) or "."
    with tempfile.NamedTemporaryFile("w", dir=folder, delete=False, encoding="utf-8") as file:
        file.write("\n".join([*addresses, str(os.getpid())]) + "\n")
    os.replace(file.name, path)


COMMANDS = (serve,)
