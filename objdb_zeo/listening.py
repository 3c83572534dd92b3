"""Listening sockets: made here, or inherited from systemd or from the server that restarts.

    addresses ─► inherited already? ─► make ─► bind ─► owner, group, mode (Unix sockets)
"""

from __future__ import annotations

import errno
import grp
import os
import pwd
import socket
import stat
from collections.abc import Sequence
from typing import NamedTuple

from objdb.errors import UsageError
from objdb_zeo.addresses import Address, format_address

BACKLOG = 1024  # connections that wait to be accepted, also while a server restarts
# What to do, by the number of the error.
_ADVICE = {
    errno.EADDRINUSE: "the address is in use. Stop what listens there (objdb serve --stop "
                      "--pid-file FILE, if it is a server), or choose another --address",
    errno.EADDRNOTAVAIL: "this machine has no such address. Use one that `ip address` lists, or "
                         "0.0.0.0 for all",
    errno.EACCES: "this user may not listen there. Use a port above 1023, or a directory that the "
                  "user can write to",
    errno.EEXIST: "there is a file that is no socket. Choose another path, or remove it",
    errno.ENOENT: "there is no such directory. Make it, or choose another path",
}


class Access(NamedTuple):
    """Who may connect to a Unix socket: owner and group (numbers; -1: those of the process), and
    the mode's bits that are *not* set."""

    owner: int = -1
    group: int = -1
    umask: int = 0o177

    @classmethod
    def named(cls, owner: str | None, group: str | None, umask: int | None) -> Access:
        """Return the access for names, or numbers as text; `UsageError` for unknown ones. With a
        group, and no umask, the group may connect."""
        user, group_id = -1, -1
        if owner is not None:
            try:
                user = int(owner) if owner.isdecimal() else pwd.getpwnam(owner).pw_uid
            except KeyError:
                raise UsageError(
                    f"--owner {owner}: there is no such user. `getent passwd` lists them"
                ) from None
        if group is not None:
            try:
                group_id = int(group) if group.isdecimal() else grp.getgrnam(group).gr_gid
            except KeyError:
                raise UsageError(
                    f"--group {group}: there is no such group. `getent group` lists them"
                ) from None
        if umask is None:
            umask = 0o177 if group is None else 0o117
        return cls(user, group_id, umask)


class Listening(NamedTuple):
    """A listening socket. *is_own*: a server made it; else a service manager did."""

    socket: socket.socket
    is_own: bool

    def close(self) -> None:
        """Listen no more; remove the path of an own Unix socket."""
        path = address_of(self.socket)
        self.socket.close()
        if self.is_own and isinstance(path, str) and os.path.exists(path):
            os.unlink(path)


def listen(
    addresses: Sequence[Address], inherited: Sequence[Listening] = (),
    access: Access | None = None,
) -> list[Listening]:
    """Return listening sockets: those *inherited*, and one or several for each address that they do
    not cover. Inherited ones of a server, before its restart, at other addresses are closed.
    `UsageError`, which says what to do, for an address that cannot be had."""
    free = list(inherited)
    found: list[Listening] = []
    try:
        for address in addresses:
            same = [each for each in free if _covers(each.socket, address)]
            free = [each for each in free if each not in same]
            made = [] if same else _bound(address, access or Access())
            found += same + [Listening(each, is_own=True) for each in made]
    except BaseException:
        for each in (*found, *free):
            each.close()
        raise
    for each in free:
        if each.is_own:
            each.close()
        else:
            found.append(each)
    for each in found:
        each.socket.listen(BACKLOG)
    return found


def address_of(listening: socket.socket) -> Address:
    """Return where a socket listens."""
    name = listening.getsockname()
    return str(name) if listening.family == socket.AF_UNIX else (name[0], name[1])


def _covers(listening: socket.socket, address: Address) -> bool:
    there = address_of(listening)
    if isinstance(there, str) or isinstance(address, str):
        return there == address
    if address[1] not in (0, there[1]):
        return False
    if not address[0]:
        return there[0] in ("0.0.0.0", "::")
    infos = socket.getaddrinfo(*address, type=socket.SOCK_STREAM)
    return any(where[0] == there[0] for *_, where in infos)


def _bound(address: Address, access: Access) -> list[socket.socket]:
    try:
        return [_bind_unix(address, access)] if isinstance(address, str) else _bind_ip(*address)
    except OSError as error:  # gaierror, too
        advice = _ADVICE.get(error.errno or 0, error.strerror or str(error))
        raise UsageError(f"{format_address(address)}: {advice}") from error


def _bind_ip(host: str, port: int) -> list[socket.socket]:
    """Bind to each IP address of a host: `localhost` has two."""
    found: list[socket.socket] = []
    infos = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    try:
        for family, kind, protocol, _, where in dict.fromkeys(infos):
            made = socket.socket(family, kind, protocol)
            found.append(made)
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            made.bind((where[0], port, *where[2:]))
            port = made.getsockname()[1]  # one for all of them
    except BaseException:
        for made in found:
            made.close()
        raise
    return found


def _bind_unix(path: str, access: Access) -> socket.socket:
    """Bind to a path. Nobody can connect before owner, group and mode are as they should be."""
    _remove_stale(path)
    found = socket.socket(socket.AF_UNIX)
    try:
        os.fchmod(found.fileno(), 0o600)  # before it has a name: Linux takes the mode from here
        found.bind(path)
        try:
            if (access.owner, access.group) != (-1, -1):
                _give(path, access)
            os.chmod(path, 0o666 & ~access.umask)
        except BaseException:
            os.unlink(path)
            raise
    except BaseException:
        found.close()
        raise
    return found


def _give(path: str, access: Access) -> None:
    try:
        os.chown(path, access.owner, access.group)
    except PermissionError as error:
        raise UsageError(
            f"unix:{path}: this user may not give the socket to another owner, or to a group that "
            "it does not belong to. Leave out --owner and --group, or start the server as root"
        ) from error


def _remove_stale(path: str) -> None:
    """Remove a Unix socket at which nobody listens; OSError if somebody does."""
    try:
        if not stat.S_ISSOCK(os.stat(path).st_mode):
            raise OSError(errno.EEXIST, "there is something else", path)
    except FileNotFoundError:
        return
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            os.unlink(path)
            return
    raise OSError(errno.EADDRINUSE, "the address is in use", path)
