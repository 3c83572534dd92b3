"""objdb_zeo: one storage for several processes and machines, over ZEO's protocol.

    objdb serve file:cal.fs --address 127.0.0.1:9100            in one terminal
    objdb.DB("zeo://127.0.0.1:9100")                            in any process

`ClientStorage` is a storage; `Server` serves any. ZEO's clients can use the server, and the client
a ZEO server.
"""

# The house, in the order in which a call goes through it:
#
#   objdb_zeo/
#     client           1  a storage: what the caller sees of the server
#                         work (a transaction of the client) · listing (histories, undo logs)
#                         scheme (zeo: URIs)
#     link             2  connecting, verifying, the snapshot · cache (what was read)
#     transport        3  the only module of the client that waits: a socket, which callers read
#                         wires (the socket and the clock; a simulation has its own)
#                         shapes (what a server may answer)
#     messages         4  bytes to messages and back · errors (on the wire) · addresses · limits
#     protocol/        5  the server's side of a connection: bytes in, bytes and events out; no
#                         sockets, threads or clock
#                         session · calls (ZEO's) · extension (ours) · questions (to the client)
#                         served (a storage, who commits, who is told) · staging · outcomes
#                         driver
#     server           6  sockets of the server, in asyncio, and threads for what may block
#                         listening (sockets, made or inherited)
#     service          7  a server that runs until a signal says otherwise
#                         systemd (what a service manager is told) · pidfile · upkeep (packs)
#
# Imports go one way: client → link → transport → wires, messages; service → server → protocol →
# messages. The command is `objdb serve`, in objdb/tools/serving.

from __future__ import annotations

from importlib import import_module
from typing import Any

_HOME = {"ClientStorage": "client", "Server": "server"}
__all__ = ["ClientStorage", "Server"]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(f"objdb_zeo.{_HOME[name]}"), name)
    raise AttributeError(f"module 'objdb_zeo' has no attribute {name!r}")
