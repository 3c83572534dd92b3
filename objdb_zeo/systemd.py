"""What a service manager and a server tell each other, by environment variables and a socket.

    LISTEN_FDS, LISTEN_PID          listening sockets, from descriptor 3 on; LISTEN_FDNAMES: their
                                    names
    NOTIFY_SOCKET                   READY=1, RELOADING=1, STOPPING=1, STATUS=…, WATCHDOG=1
    WATCHDOG_USEC, WATCHDOG_PID     how often WATCHDOG=1 has to come

See sd_listen_fds(3), sd_notify(3) and sd_watchdog_enabled(3). A server that restarts gives its
listening sockets to its successor in the same way.
"""

from __future__ import annotations

import fcntl
import logging
import os
import socket
import time
from collections.abc import MutableMapping, Sequence

from objdb.errors import UsageError
from objdb_zeo.listening import Listening

logger = logging.getLogger(__name__)
_FIRST = 3
_OWN = "objdb.own"  # the name of a socket that a server made, before its restart


def inherited_sockets(environ: MutableMapping[str, str] = os.environ) -> list[Listening]:
    """Return the listening sockets that were given to this process, once: the variables are
    removed. `UsageError` for descriptors that are no listening sockets."""
    pid, count = environ.pop("LISTEN_PID", ""), environ.pop("LISTEN_FDS", "")
    names = environ.pop("LISTEN_FDNAMES", "").split(":")
    if pid != str(os.getpid()) or not count.isdecimal():
        return []
    names += [""] * (int(count) - len(names))
    return [
        Listening(_listening(number), is_own=names[number - _FIRST] == _OWN)
        for number in range(_FIRST, _FIRST + int(count))
    ]


def _listening(number: int) -> socket.socket:
    try:
        os.set_inheritable(number, False)
        found = socket.socket(fileno=number)
    except OSError as error:
        raise UsageError(
            f"descriptor {number}, which LISTEN_FDS counts, is no socket ({error.strerror})"
        ) from error
    is_stream = found.type == socket.SOCK_STREAM
    if not is_stream or not found.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
        found.detach()
        raise UsageError(
            f"descriptor {number}, which LISTEN_FDS counts, does not listen. Use ListenStream= "
            "and Accept=no in the socket unit"
        )
    return found


def bequeath(sockets: Sequence[Listening]) -> None:
    """Prepare listening sockets for the program that replaces this one, by `exec`, in this
    process."""
    above = _FIRST + len(sockets)
    copies = [fcntl.fcntl(each.socket.fileno(), fcntl.F_DUPFD_CLOEXEC, above) for each in sockets]
    for number, copy in enumerate(copies, _FIRST):
        os.dup2(copy, number, inheritable=True)
    names = ":".join(_OWN if each.is_own else "inherited" for each in sockets)
    os.environ.update(
        LISTEN_FDS=str(len(sockets)), LISTEN_PID=str(os.getpid()), LISTEN_FDNAMES=names
    )


class Notifier:
    """Tells the service manager, if there is one."""

    def __init__(self, environ: MutableMapping[str, str] = os.environ) -> None:
        where = environ.get("NOTIFY_SOCKET", "")
        self._where = "\0" + where[1:] if where.startswith("@") else where
        wanted = environ.get("WATCHDOG_USEC", "") if self._where else ""
        is_mine = environ.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
        # How often `WATCHDOG=1` has to come, in seconds; None: never.
        self.watchdog_seconds = (
            int(wanted) / 1e6 if wanted.isdecimal() and int(wanted) and is_mine else None
        )

    def tell(self, *lines: str) -> None:
        """Tell lines, such as `READY=1`."""
        if not self._where:
            return
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as telling:
                telling.connect(self._where)
                telling.sendall("\n".join(lines).encode())
        except OSError as error:
            logger.warning("the service manager could not be told %s: %s", lines[0], error)

    def reloading(self) -> None:
        """Tell that settings are being read again; `READY=1` ends it."""
        self.tell("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")
