"""A periodic action, in a thread."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

logger = logging.getLogger("objdb.storage")


class Clock:
    """Calls *action* every *seconds*, from being started until it is stopped; never, if they are
    too many to wait for. `error` is what the last call raised; the first of several in a row is
    logged."""

    def __init__(self, seconds: float, action: Callable[[], None], name: str) -> None:
        self._seconds = min(seconds, threading.TIMEOUT_MAX)
        self._action = action
        self.error: Exception | None = None
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def _run(self) -> None:
        while not self._stopping.wait(self._seconds):
            try:
                self._action()
                self.error = None
            except Exception as error:  # noqa: BLE001  the next call may succeed
                if self.error is None:
                    logger.warning("%s: %s", self._thread.name, error)
                self.error = error

    def stop(self, seconds: float | None = None) -> None:
        """Prevent further calls, and wait, at most *seconds*, until the current one has ended."""
        self._stopping.set()
        if self._thread.ident is not None:
            self._thread.join(seconds)
