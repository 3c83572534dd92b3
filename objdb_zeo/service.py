"""A server as a service: it runs until a signal says otherwise.

    SIGTERM, SIGINT   stop: what has voted is finished
    SIGUSR2           restart: the same, and the listening sockets go on to the next program
    SIGHUP            read the settings again

It tells the service manager, if there is one, when it is ready, reloads and stops; and that it is
well, as long as its event loop turns and its storages answer.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import tempfile
from collections.abc import Callable, Mapping

from objdb.database.packing import AutoPack
from objdb_zeo.addresses import format_address
from objdb_zeo.listening import Listening
from objdb_zeo.server import Server, explain
from objdb_zeo.systemd import Notifier
from objdb_zeo.upkeep import packing

logger = logging.getLogger(__name__)


class Service:
    """Runs *server*. *reload()*, which returns whether the settings are valid, is called at SIGHUP
    and before a restart; *ready(addresses)* once it listens. While it runs, *ready_file* has the
    addresses and the process's number. *autopack*: when a storage packs itself, by its name."""

    def __init__(
        self, server: Server, *, reload: Callable[[], bool], ready: Callable[[list[str]], object],
        ready_file: str | None = None, autopack: Mapping[str, AutoPack] | None = None,
    ) -> None:
        self._server = server
        self._reload = reload
        self._ready = ready
        self._ready_file = ready_file
        self._packing = [
            packing(server.served[name], setting) for name, setting in (autopack or {}).items()
        ]
        self._notifier = Notifier()
        self._end = asyncio.Event()
        self._restarts = False

    async def run(self) -> list[Listening] | None:
        """Run until a signal comes; return the listening sockets if it is to restart."""
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(explain)
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._end.set)
        loop.add_signal_handler(signal.SIGUSR2, self._restart)
        loop.add_signal_handler(signal.SIGHUP, self._read_again)
        async with self._server:
            addresses = [format_address(address) for address in self._server.addresses]
            self._ready(addresses)
            if self._ready_file is not None:
                _write_ready(self._ready_file, addresses)
            self._notifier.tell("READY=1", f"STATUS=listening at {', '.join(addresses)}")
            for thread in self._packing:
                thread.start()
            watching = asyncio.ensure_future(self._watch())
            try:
                await self._end.wait()
            finally:
                watching.cancel()
                for thread in self._packing:
                    await loop.run_in_executor(None, thread.close)
                if self._ready_file is not None:
                    with contextlib.suppress(FileNotFoundError):
                        os.unlink(self._ready_file)
            if self._restarts:
                self._notifier.reloading()
                return await self._server.hand_over()
            self._notifier.tell("STOPPING=1")
        return None

    def _restart(self) -> None:
        if not self._reload():  # the next program would not start
            logger.error("the server does not restart, since its settings are not valid")
            return
        self._restarts = True
        self._end.set()

    def _read_again(self) -> None:
        self._notifier.reloading()
        self._reload()
        self._notifier.tell("READY=1")

    async def _watch(self) -> None:
        """Tell the service manager that the server is well, twice in the time that it allows; not
        while a storage does not answer."""
        seconds = self._notifier.watchdog_seconds
        loop = asyncio.get_running_loop()
        while seconds is not None:
            for served in self._server.served.values():
                try:
                    await loop.run_in_executor(None, served.storage.lastTransaction)
                except Exception:
                    name = served.name
                    logger.exception("the storage %r fails; the watchdog is told no more", name)
                    return
            self._notifier.tell("WATCHDOG=1")
            await asyncio.sleep(seconds / 2)


def _write_ready(path: str, addresses: list[str]) -> None:
    """Write the file at once as a whole."""
    folder = os.path.dirname(path) or "."
    with tempfile.NamedTemporaryFile("w", dir=folder, delete=False, encoding="utf-8") as file:
        file.write("\n".join([*addresses, str(os.getpid())]) + "\n")
    os.replace(file.name, path)
