"""The command that serves the application."""

from __future__ import annotations

import socket
from pathlib import Path

import click
import uvicorn

from .app import make_app


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--file", type=click.Path(path_type=Path), default="guests.fs", show_default=True,
    help="The file of the database; made if it does not exist.",
)
@click.option("--host", default="127.0.0.1", show_default=True)
@click.option(
    "--port", type=click.IntRange(0, 65535), default=8000, show_default=True,
    help="0: any that is free.",
)
def main(file: Path, host: str, port: int) -> None:
    """Serve a guest list, until Ctrl-C.

    The address is printed; open it in a browser. One process serves everybody: a database file is
    written by one process at a time.
    """
    try:
        listening = socket.create_server((host, port))
    except OSError as error:
        raise click.ClickException(f"{host}:{port}: {error}") from error
    host, port = listening.getsockname()[:2]
    click.echo(f"http://{host}:{port}/")
    config = uvicorn.Config(make_app(file), log_level="warning")
    uvicorn.Server(config).run(sockets=[listening])
