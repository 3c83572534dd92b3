"""Operating a server that runs: its status, and stopping it."""

from __future__ import annotations

import json
import socket
from typing import Any

from objdb.errors import UsageError
from objdb.tools.terminal import echo, show_json, show_table, show_tid

STOP_SECONDS = 120.0
_ANSWER_SECONDS = 10.0
_COLUMNS = ("connections", "waiting", "loads", "stores", "commits", "aborts", "conflicts")


def show_status(addresses: tuple[str, ...], *, as_json: bool) -> None:
    """Print the status of the servers at addresses; `UsageError` if one does not answer."""
    found = {address: ask_status(address) for address in addresses}
    if as_json:
        show_json(found)
        return
    for address, status in found.items():
        echo(address)
        show_table(
            ["storage", *_COLUMNS, "last transaction"],
            ([name, *(facts.get(each, "") for each in _COLUMNS), _last(facts)]
             for name, facts in status.items()),
        )


def _last(facts: dict[str, Any]) -> str:
    try:
        return show_tid(bytes.fromhex(str(facts.get("last-transaction", ""))))
    except ValueError:
        return ""


def ask_status(address: str) -> dict[str, dict[str, Any]]:
    """Return the status of each storage, as the server at *address* tells it; `UsageError` if none
    does."""
    from objdb_zeo.addresses import parse_address
    from objdb_zeo.messages import STATUS_QUESTION, Frames, ProtocolError, frame

    where = parse_address(address)
    frames = Frames()
    bodies: list[bytes] = []
    try:
        with socket.socket(socket.AF_UNIX) if isinstance(where, str) else (
            socket.create_connection(where, _ANSWER_SECONDS)
        ) as asking:
            if isinstance(where, str):
                asking.settimeout(_ANSWER_SECONDS)
                asking.connect(where)
            asking.sendall(frame(STATUS_QUESTION))
            while len(bodies) < 2 and (data := asking.recv(1 << 16)):
                bodies += frames.feed(data)
    except (OSError, ProtocolError) as error:
        raise UsageError(
            f"{address}: no server answers ({error}). Start one with: objdb serve STORAGE "
            f"--address {address}; or name another --address"
        ) from error
    try:
        found: dict[str, dict[str, Any]] = json.loads(bodies[1])
        return {str(name): dict(facts) for name, facts in found.items()}
    except (IndexError, ValueError, TypeError, AttributeError):
        raise UsageError(
            f"{address}: something answers that is no server, or one that has as many clients as "
            "it takes; then its log says so"
        ) from None


def stop_server(pid_file: str) -> None:
    """Stop the server of a pid file, and wait until it is gone."""
    from objdb_zeo.pidfile import stop

    number = stop(pid_file, STOP_SECONDS)
    echo(f"process {number} has stopped")


def restart_server(pid_file: str) -> None:
    """Let the server of a pid file restart."""
    from objdb_zeo.pidfile import restart

    echo(f"process {restart(pid_file)} restarts; its log says when it listens")
