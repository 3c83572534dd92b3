"""What a session asks of whatever runs it: an event loop with threads, or a simulation.

A call that has to wait is a generator of steps. It yields an `InThread`, whose function may block,
and is sent what that returns; or a `Turn`, and goes on when its transaction may vote.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import Any, NamedTuple, Protocol


class InThread(NamedTuple):
    """A step that may block. *is_commit*: others wait for it to end, so that it must not wait for a
    thread until a pack has ended."""

    function: Callable[[], Any]
    is_commit: bool = False


class Turn(NamedTuple):
    """A step that waits until no other transaction is between its vote and its end."""

    transaction: Any


Steps = Generator[Any, Any, Any]
Done = Callable[[Any, "BaseException | None"], None]


class Driver(Protocol):
    """Runs the steps of a session."""

    def send(self, data: bytes) -> None:
        """Send bytes to the client, in the order of the calls; any thread calls it."""

    def send_now(self, data: bytes) -> None:
        """Hand the bytes of a frame to the system before this returns, if that needs no waiting;
        else as `send`. They may overtake what was sent before; any thread calls it."""

    def takes_more(self) -> bool:
        """Return whether the session may take in another call now; if not, the driver calls it
        again. Asked behind each call."""

    def close(self) -> None:
        """Close the connection, when what was sent before is sent."""

    def run(self, step: InThread, done: Done) -> None:
        """Call the step's function; then *done* with its result or error."""

    def soon(self, function: Callable[[], object]) -> None:
        """Call *function* soon, in the session's own thread; any thread calls it."""

    def rest(self) -> None:
        """Let other threads go on, for a moment."""

    def later(self, seconds: float, function: Callable[[], object]) -> Callable[[], object]:
        """Call *function* after so many seconds; return a function that prevents it."""
