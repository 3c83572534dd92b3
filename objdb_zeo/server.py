"""The server: sockets in an event loop, and threads for what may block."""

from __future__ import annotations

import asyncio
import errno
import math
import os
import socket
import struct
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any

from objdb_zeo.addresses import Address, format_address
from objdb_zeo.limits import (
    ALONE_CALLS,
    COMPANY_SECONDS,
    HIGH_WATER_BYTES,
    TURN_CALLS,
    TURN_PAUSES,
    Limits,
    sparing_logger,
)
from objdb_zeo.listening import BACKLOG, Access, Listening, address_of, listen
from objdb_zeo.messages import Msgpack, Pickle
from objdb_zeo.protocol.driver import InThread
from objdb_zeo.protocol.served import Served
from objdb_zeo.protocol.session import Session

logger = sparing_logger(__name__)
THREADS = 8
_SPREAD_SECONDS = 0.002  # between a few clients that are told, and the next
_CLOSE_SECONDS = 5.0  # for what is to be sent before a connection is closed
_CLEANS_UP = sys.version_info >= (3, 13)  # asyncio removes Unix sockets, unless told not to
_ACCEPTS = 16  # connections that the event loop accepts before it does something else
_CREDENTIALS = struct.Struct("3i")


class _Connection(asyncio.Protocol):
    """One connection, and the driver of its session: see `protocol.driver`."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._loop = asyncio.get_running_loop()
        self._thread = threading.get_ident()
        self._out: list[bytes] = []  # any thread appends
        self._out_bytes = 0  # of what the event loop's thread has sent
        self._is_flushing = self._is_lost = False
        self._writing = threading.Lock()  # covers the writing of `_out`, in order
        self._transport: Any = None
        self.session: Session | None = None
        self.host = ""
        self._turn = 0  # calls that it may still make in this turn
        self._arrivals = 0  # those of the server, as far as it has seen
        self._company_until = 0.0  # others have called lately
        self._is_full = self._is_ending = False
        self._since_full = 0  # bytes written since it is full: others' commits, mostly
        self._register_timer: asyncio.TimerHandle | None = None

    # -- the event loop's side

    def connection_made(self, transport: Any) -> None:
        self._transport = transport
        transport.set_write_buffer_limits(high=HIGH_WATER_BYTES)
        name, self.host = peer_of(transport)
        full = self._server.is_full(self.host)
        if full:
            logger.warning("%s is turned away: %s", name, full, extra={"host": self.host})
            transport.abort()
            return
        self._server.add(self)
        self.session = Session(
            self._server.served, self, name, self._server.limits, self._server.codec(), self.host
        )
        seconds = self._server.limits.register_seconds
        self._register_timer = self._loop.call_later(seconds, self._require_registered, seconds)

    def _require_registered(self, seconds: float) -> None:
        if self.session is not None and not self.session.is_registered:
            self.session.cut_off(f"it did not register within {seconds:g} seconds")

    def data_received(self, data: bytes) -> None:
        if self.session is not None:
            self._take(data)

    def _take(self, data: bytes = b"") -> None:
        """Take in calls, until it is the next client's turn, or too much waits to be sent. Nothing
        is read while calls are left, so a flood of them waits in the client."""
        assert self.session is not None
        if self._is_ending or (self._is_full and not data):
            return
        began = self._loop.time()
        self._turn = TURN_CALLS if began < self._company_until else ALONE_CALLS
        self._is_flushing = True  # below, for all calls of this turn
        try:
            is_left = self.session.data_received(data)
        finally:
            self._flush()
        if data:
            self._arrivals += 1
            self._server.arrivals += 1
        if is_left:
            self._transport.pause_reading()
            self._go_on_soon(began)
        elif not self._is_full:
            self._transport.resume_reading()

    def _go_on_soon(self, began: float) -> None:
        """Take the next turn soon. While others call now and then, they find the loop free most of
        the time."""
        now = self._loop.time()
        if self._server.arrivals != self._arrivals:
            self._arrivals = self._server.arrivals
            self._company_until = now + COMPANY_SECONDS
        if now < self._company_until:
            self._loop.call_later(TURN_PAUSES * (now - began), self._take)
        else:
            self._loop.call_soon(self._take)

    def pause_writing(self) -> None:
        self._is_full = True
        self._since_full = 0

    def resume_writing(self) -> None:
        self._is_full = False
        self._take()

    def connection_lost(self, error: BaseException | None) -> None:
        self._server.discard(self)
        with self._writing:  # the socket is closed behind this
            self._is_lost = True
        if self._register_timer is not None:
            self._register_timer.cancel()
        if self.session is not None:
            self.session.closed()

    # -- the session's side

    def send(self, data: bytes) -> None:
        """See `Driver`."""
        self._out.append(data)
        is_here = threading.get_ident() == self._thread
        if is_here:
            self._out_bytes += len(data)
        if not self._is_flushing:
            self._is_flushing = True
            if is_here:
                self._loop.call_soon(self._flush)
            else:
                self._loop.call_soon_threadsafe(self._flush)

    def send_now(self, data: bytes) -> None:
        """See `Driver`."""
        with self._writing:
            if not self._is_lost and self._transport.get_write_buffer_size() == 0:
                file = self._transport.get_extra_info("socket").fileno()
                try:
                    data = data[os.write(file, data) :]
                except OSError:  # full, or closed by the other end, which the loop finds out
                    pass
                if data:
                    self._out.insert(0, data)
            else:
                self._out.append(data)
        if self._out:
            self.send(b"")

    def _flush(self) -> None:
        self._is_flushing = False  # before the queue is emptied: what comes now asks again
        self._out_bytes = 0
        with self._writing:
            out = self._out[:]
            del self._out[: len(out)]
            if not out or self._transport.is_closing():
                return
            data = b"".join(out)
            self._transport.write(data)
        if not self._is_full:
            return
        self._since_full += len(data)
        if self._since_full > self._server.limits.pending_bytes and self.session is not None:
            waiting = self._transport.get_write_buffer_size()
            self.session.cut_off(f"it does not read: {waiting:,} bytes wait to be sent to it")
            self._transport.abort()

    def takes_more(self) -> bool:
        """See `Driver`."""
        self._turn -= 1
        return self._turn > 0 and not self._is_full and self._out_bytes < HIGH_WATER_BYTES

    def close(self) -> None:
        """See `Driver`."""
        self.soon(self._close)

    def take_no_more(self) -> None:
        """Take in no more calls."""
        self._is_ending = True
        self._transport.pause_reading()

    def _close(self) -> None:
        self._flush()
        self._transport.close()
        self._loop.call_later(_CLOSE_SECONDS, self._transport.abort)  # if it does not read

    def run(self, step: InThread, done: Callable[[Any, BaseException | None], None]) -> None:
        """See `Driver`."""
        self._server.submit(partial(self._work, step.function, done), step.is_commit)

    def _work(
        self, function: Callable[[], Any], done: Callable[[Any, BaseException | None], None]
    ) -> None:
        try:
            result, error = function(), None
        except BaseException as failure:  # noqa: BLE001  the session's to handle
            result, error = None, failure
        self.soon(partial(done, result, error))

    def soon(self, function: Callable[[], object]) -> None:
        """See `Driver`."""
        self._loop.call_soon_threadsafe(self._do, function)

    def _do(self, function: Callable[[], object]) -> None:
        self._is_flushing = True
        try:
            function()
        finally:
            self._flush()

    def rest(self) -> None:
        """See `Driver`."""
        time.sleep(0)

    def later(self, seconds: float, function: Callable[[], object]) -> Callable[[], object]:
        """See `Driver`."""
        return self._loop.call_later(seconds, function).cancel


class Server:
    """Serves storages, by name, at *addresses*, and on listening sockets that are *inherited*.
    *access*: to Unix sockets. *pickles*: talk pickles, for ZEO clients without msgpack.

    `async with server:` listens; `addresses` then has the ports. The caller closes the storages.
    """

    def __init__(
        self, storages: Mapping[str, Any], addresses: Sequence[Address], *,
        limits: Limits | None = None, pickles: bool = False, read_only: bool = False,
        inherited: Sequence[Listening] = (), access: Access | None = None, **options: Any,
    ) -> None:
        self.served = {
            name: Served(name, storage, read_only=read_only, **options)
            for name, storage in storages.items()
        }
        self.connections: set[_Connection] = set()
        self._hosts: Counter[str] = Counter()
        self.arrivals = 0  # how often data have arrived, from any client
        self.set_limits(limits or Limits())
        self.codec: type[Msgpack] | type[Pickle] = Pickle if pickles else Msgpack
        self.codec()  # Unsupported now, rather than at the first connection
        self.addresses: list[Address] = list(addresses)
        self._named = list(addresses)
        self._inherited, self._access = inherited, access
        self.threads = ThreadPoolExecutor(THREADS, thread_name_prefix="objdb-serve")
        self.commits = ThreadPoolExecutor(THREADS, thread_name_prefix="objdb-commit")
        self._under_way: set[Future[None]] = set()  # steps in threads, commits aside
        self._sockets: list[Listening] = []
        self._listening: list[Any] = []
        self._is_spreading = False

    def set_limits(self, limits: Limits) -> None:
        """Go by other limits from now on."""
        self.limits = limits
        for served in self.served.values():
            served.vote_seconds = limits.vote_seconds
        for connection in self.connections:
            if connection.session is not None:
                connection.session.set_limits(limits)

    def is_full(self, host: str) -> str:
        """Return why another client at *host* is too many; "" if it is not."""
        if len(self.connections) >= self.limits.clients:
            return f"there are {len(self.connections)} clients, the limit (--clients)"
        there = self._hosts[host]
        if there >= self.limits.clients_per_address:
            return f"{host} has {there} clients, the limit (--clients-per-address)"
        return ""

    def add(self, connection: _Connection) -> None:
        """Count a connection."""
        self.connections.add(connection)
        self._hosts[connection.host] += 1

    def discard(self, connection: _Connection) -> None:
        """Count a connection no more, if it was counted."""
        if connection in self.connections:
            self.connections.discard(connection)
            self._hosts[connection.host] -= 1
            if not self._hosts[connection.host]:
                del self._hosts[connection.host]

    async def __aenter__(self) -> Server:
        loop = asyncio.get_running_loop()
        for served in self.served.values():
            served.wake = partial(self._wake, loop)
        make = partial(_Connection, self)
        try:
            self._sockets = listen(self._named, self._inherited, self._access)
            sockets = [each.socket for each in self._sockets]
            self.addresses = list(dict.fromkeys(map(address_of, sockets)))
            for each in sockets:
                is_unix = each.family == socket.AF_UNIX
                create: Any = loop.create_unix_server if is_unix else loop.create_server
                options = {"cleanup_socket": False} if is_unix and _CLEANS_UP else {}
                # A copy: it is closed when the server takes no more, and may be inherited then.
                copy = each.dup()
                self._listening.append(await create(make, sock=copy, backlog=_ACCEPTS, **options))
                each.listen(BACKLOG)
        except BaseException:
            await self.close()
            raise
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self.close()

    def submit(self, work: Callable[[], None], is_commit: bool) -> None:
        """Do work in a thread."""
        if is_commit:
            self.commits.submit(work)
            return
        future = self.threads.submit(work)
        self._under_way.add(future)
        future.add_done_callback(self._under_way.discard)

    def _wake(self, loop: asyncio.AbstractEventLoop) -> None:
        """Tell clients what was announced; any thread calls it."""
        if not self._is_spreading:
            self._is_spreading = True
            loop.call_soon_threadsafe(self._spread, loop)

    def _spread(self, loop: asyncio.AbstractEventLoop) -> None:
        """Tell a few clients, and soon some more: of several transactions by then. Calls that
        arrive meanwhile are carried out."""
        self._is_spreading = False  # what is announced from now on asks again
        are_more = [served.tell_some() for served in self.served.values()]
        if any(are_more):
            self._is_spreading = True
            loop.call_later(_SPREAD_SECONDS, self._spread, loop)

    async def close(self) -> None:
        """Take no more connections and votes, and close all when what has voted has ended."""
        for each in await self.hand_over():
            each.close()

    async def hand_over(self) -> list[Listening]:
        """As `close`, but return the sockets, which go on listening: who connects now waits for
        whoever accepts next. Clients that have voted may finish, for as long as they could have
        anyway, and load meanwhile; who would vote is not answered, so that it tries again with the
        next server. Packs are cancelled."""
        for listening in self._listening:
            listening.close()
        for served in self.served.values():
            served.stop()
        patience = self.limits.vote_seconds or _CLOSE_SECONDS
        await _until(lambda: all(each.is_idle for each in self.served.values()), patience)
        for connection in list(self.connections):
            connection.take_no_more()
        loop = asyncio.get_running_loop()
        for served in self.served.values():  # who has not finished is dropped below
            await loop.run_in_executor(None, served.wait_for_finishes)
        for connection in list(self.connections):
            connection._close()
        await _until(lambda: not self.connections, None)
        self.threads.shutdown(wait=False, cancel_futures=True)
        if not await _until(lambda: not self._under_way, _CLOSE_SECONDS):
            logger.warning("calls are under way that take long: they end with the storage")
        await loop.run_in_executor(None, self.commits.shutdown)
        sockets, self._sockets = self._sockets, []
        return sockets


async def _until(is_so: Callable[[], bool], seconds: float | None) -> bool:
    """Return true when something is so; false if it is not within so many seconds."""
    loop = asyncio.get_running_loop()
    deadline = math.inf if seconds is None else loop.time() + seconds
    while not is_so():
        if loop.time() > deadline:
            return False
        await asyncio.sleep(0.01)
    return True


def explain(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """Handle errors of the event loop: say in a sentence that descriptors are used up."""
    error = context.get("exception")
    if isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE):
        logger.error(
            "new clients wait: the process has no descriptors left (%s). Raise the limit with "
            "ulimit -n, or systemd's LimitNOFILE=, or lower --clients", error.strerror,
        )
    else:
        loop.default_exception_handler(context)


def peer_of(transport: Any) -> tuple[str, str]:
    """Return who is at the other end of a connection, for the log, and the host that is counted as
    one: an IP address, or the user of a Unix socket."""
    connected = transport.get_extra_info("socket")
    if connected.family != socket.AF_UNIX:
        connected.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)  # its machine may be gone
        peer = transport.get_extra_info("peername") or ("a client that is gone", 0)
        return format_address(peer[:2]), peer[0]
    ids = connected.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    pid, uid, _ = _CREDENTIALS.unpack(ids)
    return f"process {pid} of user {uid}", f"user {uid}"
