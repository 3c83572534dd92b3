"""The scheme `zeo:` of URIs: `zeo://HOST:PORT?storage=NAME`, `zeo:///PATH/OF/SOCKET`."""

from __future__ import annotations

from typing import Any

from objdb.database.schemes import Scheme, boolean
from objdb.errors import UsageError


def _make(address: str, parameters: dict[str, Any]) -> Any:
    from objdb_zeo.client import ClientStorage

    if not address:
        raise UsageError(
            "a zeo: URI names a server, as in zeo://localhost:9100 or zeo:///run/objdb.sock"
        )
    return ClientStorage(address, **parameters)


ZEO = Scheme(_make, {
    "storage": str, "cache_bytes": int, "call_seconds": float, "wait_seconds": float,
    "read_only": boolean, "frame_bytes": int, "server_sync": boolean,
}, has_path=False, has_host=True)
