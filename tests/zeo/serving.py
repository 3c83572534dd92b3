"""A server for tests, in a thread with an event loop of its own."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

from objdb_zeo.server import Server


class Serving:
    """Serves *storages* (by name) on loopback while the block runs; closes them behind it."""

    def __init__(self, storages: dict[str, Any], **options: Any) -> None:
        self._storages = storages
        self._options = options
        self._loop = asyncio.new_event_loop()
        self._stop = asyncio.Event()
        self._is_up = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._failure: BaseException | None = None
        self.server: Server | None = None

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_until_complete(self._serve())
        except BaseException as error:
            self._failure = error
        finally:
            self._is_up.set()
            self._loop.close()

    async def _serve(self) -> None:
        self.server = Server(self._storages, [("127.0.0.1", 0)], **self._options)
        async with self.server:
            self._is_up.set()
            await self._stop.wait()

    @property
    def address(self) -> tuple[str, int]:
        """Where it listens."""
        assert self.server is not None
        address = self.server.addresses[0]
        assert isinstance(address, tuple)
        return address

    def __enter__(self) -> Serving:
        self._thread.start()
        assert self._is_up.wait(20)
        if self._failure is not None:
            raise self._failure
        return self

    def __exit__(self, *exception: object) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(20)
        assert not self._thread.is_alive()
        for storage in self._storages.values():
            storage.close()
        if self._failure is not None:
            raise self._failure
