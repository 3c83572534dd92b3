"""Where servers listen."""

from __future__ import annotations

from typing import Any

from objdb.errors import UsageError

Address = tuple[str, int] | str  # host and port, or the path of a Unix socket


def parse_address(text: str) -> Address:
    """Return the address that `HOST:PORT`, `PORT` or `unix:PATH` names; `UsageError`."""
    if text.startswith("unix:"):
        return text.removeprefix("unix:")
    if text.startswith("/"):
        return text
    host, colon, port = text.rpartition(":")
    if not port.isdecimal() or int(port) > 0xFFFF:
        raise UsageError(f"{text!r} is not an address: write HOST:PORT or unix:PATH")
    return (host.strip("[]") if colon else "127.0.0.1"), int(port)


def format_address(address: Address) -> str:
    """Return an address as `parse_address` takes it."""
    if isinstance(address, str):
        return f"unix:{address}"
    host, port = address
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def addresses(given: Any) -> list[Address]:
    """Return the addresses that a caller gives: one, or a list; `UsageError` for anything else."""
    if isinstance(given, str):
        return [parse_address(given)]
    if isinstance(given, tuple) and len(given) == 2 and isinstance(given[1], int):
        return [given]
    if isinstance(given, (list, tuple)) and given:
        return [address for each in given for address in addresses(each)]
    raise UsageError(
        f"{given!r} is not an address: give (host, port), HOST:PORT, or the path of a Unix socket"
    )
