"""The server: sockets in an event loop, and threads for what may block."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import socket
import stat
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

from objdb_zeo.addresses import Address, format_address
from objdb_zeo.messages import MAX_FRAME_BYTES, Msgpack, Pickle
from objdb_zeo.protocol.driver import InThread
from objdb_zeo.protocol.served import Served
from objdb_zeo.protocol.session import Session

logger = logging.getLogger(__name__)
THREADS = 8
_HIGH_WATER = 1 << 20


class _Connection(asyncio.Protocol):
    """One connection, and the driver of its session: see `protocol.driver`."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._loop = asyncio.get_running_loop()
        self._thread = threading.get_ident()
        self._out: list[bytes] = []  # any thread appends
        self._is_flushing = self._is_lost = False
        self._writing = threading.Lock()  # covers the writing of `_out`, in order
        self._transport: Any = None
        self._session: Session | None = None

    # -- the event loop's side

    def connection_made(self, transport: Any) -> None:
        self._transport = transport
        peer = transport.get_extra_info("peername") or "a Unix socket"
        name = format_address(peer[:2]) if isinstance(peer, tuple) else str(peer)
        self._server.connections.add(self)
        self._session = Session(
            self._server.served, self, name, self._server.limit, self._server.codec()
        )

    def data_received(self, data: bytes) -> None:
        assert self._session is not None
        self._is_flushing = True  # when all of it is handled
        try:
            self._session.data_received(data)
        finally:
            self._flush()

    def connection_lost(self, error: BaseException | None) -> None:
        self._server.connections.discard(self)
        with self._writing:  # the socket is closed behind this
            self._is_lost = True
        if self._session is not None:
            self._session.closed()

    # -- the session's side

    def send(self, data: bytes) -> None:
        """See `Driver`."""
        self._out.append(data)
        if not self._is_flushing:
            self._is_flushing = True
            if threading.get_ident() == self._thread:
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
        with self._writing:
            out = self._out[:]
            if out:
                del self._out[: len(out)]
                if not self._transport.is_closing():
                    self._transport.write(b"".join(out))

    def close(self) -> None:
        """See `Driver`."""
        self.soon(self._close)

    def take_no_more(self) -> None:
        """Take in no more calls."""
        self._transport.pause_reading()

    def _close(self) -> None:
        self._flush()
        self._transport.close()

    def run(self, step: InThread, done: Callable[[Any, BaseException | None], None]) -> None:
        """See `Driver`."""
        threads = self._server.commits if step.is_commit else self._server.threads
        threads.submit(self._work, step.function, done)

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
    """Serves storages, by name, at *addresses*. *limit*: of a frame, in bytes. *pickles*: talk
    pickles, for ZEO clients without msgpack.

    `async with server:` listens; `addresses` then has the ports. The caller closes the storages.
    """

    def __init__(
        self, storages: Mapping[str, Any], addresses: Sequence[Address], *,
        limit: int = MAX_FRAME_BYTES, pickles: bool = False, read_only: bool = False,
        **options: Any,
    ) -> None:
        self.served = {
            name: Served(name, storage, read_only=read_only, **options)
            for name, storage in storages.items()
        }
        self.limit = limit
        self.codec: type[Msgpack] | type[Pickle] = Pickle if pickles else Msgpack
        self.codec()  # Unsupported now, rather than at the first connection
        self.addresses: list[Address] = list(addresses)
        self.connections: set[_Connection] = set()
        self.threads = ThreadPoolExecutor(THREADS, thread_name_prefix="objdb-serve")
        self.commits = ThreadPoolExecutor(THREADS, thread_name_prefix="objdb-commit")
        self._listening: list[Any] = []
        self._is_spreading = False

    async def __aenter__(self) -> Server:
        loop = asyncio.get_running_loop()
        for served in self.served.values():
            served.wake = partial(self._wake, loop)
        make = partial(_Connection, self)
        try:
            for number, address in enumerate(self.addresses):
                if isinstance(address, str):
                    listening = await loop.create_unix_server(make, sock=_bind(address))
                else:
                    listening = await loop.create_server(make, *address)
                    self.addresses[number] = listening.sockets[0].getsockname()[:2]
                self._listening.append(listening)
        except BaseException:
            await self.close()
            raise
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self.close()

    def _wake(self, loop: asyncio.AbstractEventLoop) -> None:
        """Tell clients what was announced; any thread calls it."""
        if not self._is_spreading:
            self._is_spreading = True
            loop.call_soon_threadsafe(self._spread, loop)

    def _spread(self, loop: asyncio.AbstractEventLoop) -> None:
        """Tell a few clients; calls that have arrived meanwhile are carried out before the next."""
        self._is_spreading = False  # what is announced from now on asks again
        are_more = [served.tell_some() for served in self.served.values()]
        if any(are_more):
            self._is_spreading = True
            loop.call_soon(self._spread, loop)

    async def close(self) -> None:
        """Stop listening, and close all connections. Finishes under way end first, and are
        answered."""
        for listening in self._listening:
            listening.close()
        for connection in list(self.connections):
            connection.take_no_more()
        loop = asyncio.get_running_loop()
        for served in self.served.values():
            await loop.run_in_executor(None, served.wait_for_finishes)
        for connection in list(self.connections):
            connection._close()
        while self.connections:
            await asyncio.sleep(0.01)
        for threads in (self.threads, self.commits):
            await loop.run_in_executor(None, threads.shutdown)
        for address in self.addresses:
            if isinstance(address, str) and os.path.exists(address):
                os.unlink(address)


def _bind(path: str) -> socket.socket:
    """Return a Unix socket, bound to a path, that only the user of this process may connect to."""
    _remove_stale(path)
    found = socket.socket(socket.AF_UNIX)
    try:
        os.fchmod(found.fileno(), 0o600)  # before it has a name: Linux takes the mode from here
        found.bind(path)
        os.chmod(path, 0o600)
    except BaseException:
        found.close()
        raise
    return found


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
