"""The client's socket, read by those who wait for an answer.

    caller ─► send ─► reads itself, until its answer has come ─► …
                            │
                            ╰── what comes for others on the way is handed to them

No other thread takes part in a call. Of several callers that wait, one reads for all. Messages are
handled strictly as they arrive, by whoever reads: the order of replies and invalidations is what
the cache rests on.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable
from typing import Any

from objdb.errors import StorageError, TransientError, UsageError
from objdb_zeo.addresses import Address, format_address
from objdb_zeo.errors import from_wire
from objdb_zeo.messages import (
    CALL,
    ERROR,
    MAX_FRAME_BYTES,
    ONE_WAY,
    REPLY,
    Codec,
    Frames,
    FrameTooLargeError,
    Message,
    ProtocolError,
    codec_for,
    frame,
)
from objdb_zeo.shapes import ANSWERS, QUESTIONS, TOLD, Shape
from objdb_zeo.wires import SOCKETS, Wire, Wires

_CHUNK = 1 << 18
_MOMENT_SECONDS = 0.01


class DisconnectedError(StorageError, TransientError):
    """The connection to the server was lost, or could not be made. What the call was about may be
    tried again."""


class Pending:
    """A call under way. *taken* is called with its result, in the order in which messages arrive,
    before the caller goes on. *asked(kind, *arguments)* answers what the server asks meanwhile, in
    the caller's thread."""

    __slots__ = ("asked", "error", "is_done", "name", "questions", "result", "taken", "woken")

    def __init__(
        self, taken: Callable[[Any], Any] | None = None, asked: Callable[..., Any] | None = None
    ) -> None:
        self.taken = taken
        self.asked = asked
        self.questions: deque[tuple[int, str, tuple[Any, ...]]] = deque()
        self.name = ""  # of the method
        self.is_done = False
        self.woken: threading.Condition | None = None  # where its caller waits for another to read
        self.result: Any = None
        self.error: BaseException | None = None


class Channel:
    """A connection to a server at *address*, greeted and not registered. *told(method, arguments)*
    is called for what the server says by itself. *seconds*: how long a call may take. *wires*: the
    clock and the network.

    Raises `DisconnectedError` if there is no server, `ProtocolError` for one of another kind.
    """

    def __init__(
        self, address: Address, told: Callable[[str, Any], None], *, seconds: float,
        limit: int = MAX_FRAME_BYTES, wires: Wires = SOCKETS,
    ) -> None:
        self.name = format_address(address)
        self._now = wires.now
        self._told = told
        self._pid = os.getpid()
        self._seconds = seconds
        self._frames = Frames(limit)
        self._pending: dict[Any, Pending] = {}
        self._last_id = 0
        self._writing = threading.Lock()
        self._lock = threading.RLock()
        self._waiting: list[Pending] = []  # whose callers wait for another to read
        self._arrived: deque[bytes] = deque()  # bodies that are not handled yet
        self._reader = 0  # the thread that reads
        self.most_bytes = MAX_FRAME_BYTES  # that the server takes in one message
        self._handled: Pending | None = None  # whose answer it handles
        self.failure: BaseException | None = None  # why it is closed
        self._wire = _connect(wires, address, seconds, self.name)
        try:
            self._codec: Codec = self._greet()
        except OSError as error:
            self._wire.close()
            raise DisconnectedError(
                f"{self.name} took the connection, and did not greet ({error}). It may be "
                "stopping, or be a server of another kind"
            ) from error
        except BaseException:
            self._wire.close()
            raise

    def _greet(self) -> Codec:
        body = self._first_frame()
        codec = codec_for(body)
        self._wire.sendall(frame(body))
        return codec

    def _first_frame(self) -> bytes:
        deadline = self._now() + self._seconds
        while True:
            data = self._receive(deadline)
            if not data:
                raise DisconnectedError(
                    f"{self.name} closed the connection without a greeting; it may have as many "
                    "clients as it takes (then its log says so), be of another kind, or want TLS"
                )
            if data[:4] in (b"HTTP", b"SSH-") or data[:1] == b"<":
                raise ProtocolError(f"{self.name} is not a ZEO server: it says {data[:40]!r}")
            for body in self._frames.feed(data):
                return body

    # -- calls

    def call(
        self, name: str, *arguments: Any, taken: Callable[[Any], Any] | None = None,
        asked: Callable[..., Any] | None = None,
    ) -> Any:
        """Call a method of the server; return its result, or raise its error."""
        pending = Pending(taken, asked)
        self.send([(name, arguments, pending)])
        return self.wait(pending)

    def send(self, calls: list[tuple[str, tuple[Any, ...], Pending | None]]) -> None:
        """Send calls in one write; those without a `Pending` are one-way. Sends nothing, and raises
        `UsageError` if an argument is something that messages cannot carry, `FrameTooLargeError`
        if the server does not take so large a message."""
        self._require_open()
        with self._writing:
            pendings: dict[Any, Pending] = {}
            data = bytearray()
            for name, arguments, pending in calls:
                if pending is None:
                    data += self._encoded(Message(0, ONE_WAY, name, arguments))
                else:
                    self._last_id += 1
                    pendings[self._last_id] = pending
                    pending.name = name
                    data += self._encoded(Message(self._last_id, CALL, name, arguments))
            try:
                self._pending.update(pendings)
                self._wire.sendall(data)
            except OSError as error:
                self.fail(error)
            except BaseException as error:  # an interrupt: half a frame may be out
                self.fail(error)
                raise
        self._require_open()

    def _encoded(self, message: Message) -> bytes:
        try:
            body = self._codec.encode(message)
            if len(body) > self.most_bytes:
                raise FrameTooLargeError(
                    f"{self.name} takes messages of {self.most_bytes:,} bytes at most; this one, "
                    f"{message.name}, has {len(body):,}. Store the data in smaller objects, or "
                    "raise the server's --frame-bytes", size=len(body), limit=self.most_bytes,
                )
            return frame(body)
        except (TypeError, ValueError, OverflowError) as error:
            raise UsageError(
                f"{self.name} cannot be sent an argument of {message.name}: {error}. Pass numbers, "
                "text, bytes, lists, tuples and dicts of them"
            ) from error

    def wait(self, pending: Pending) -> Any:
        """Return the result of a call, reading until it has come. Raises its error, or
        `DisconnectedError`."""
        me = threading.get_ident()
        is_nested = self._reader == me  # a call made while a message is handled
        deadline = self._now() + self._seconds
        try:
            while not pending.is_done:
                if pending.questions:
                    self._answer(pending)
                    deadline = self._now() + self._seconds
                elif self._begin_to_read(me, pending, deadline):
                    self._read(deadline)
        finally:
            if not is_nested:
                self._stop_reading(me)
        if pending.error is not None:
            raise pending.error
        return pending.result

    def _answer(self, pending: Pending) -> None:
        number, kind, arguments = pending.questions[0]
        is_known, answer = False, None
        try:
            answer = None if pending.asked is None else pending.asked(kind, *arguments)
            is_known = True
        finally:
            pending.questions.popleft()
            self.send([("objdb.answer", (number, is_known, answer), None)])

    def _begin_to_read(self, me: int, pending: Pending, deadline: float) -> bool:
        """Wait until there is something for the call, or nobody else reads; return whether to
        read."""
        with self._lock:
            while not (pending.is_done or pending.questions):
                if self._reader in (0, me):
                    self._reader = me
                    return True
                left = deadline - self._now()
                if left <= 0 or not self._sleep(pending, left):
                    self.fail(TimeoutError(f"no answer for {self._seconds} seconds"))
                    if not pending.is_done:  # another thread is about to say so
                        self._sleep(pending, _MOMENT_SECONDS)
            return False

    def _sleep(self, pending: Pending, seconds: float) -> bool:
        """Wait until `_wake` is called for the call; return whether it was. `_lock` is held."""
        if pending.woken is None:
            pending.woken = threading.Condition(self._lock)  # entered by its lock, in one step
        try:
            self._waiting.append(pending)
            return pending.woken.wait(seconds)
        finally:
            if pending in self._waiting:
                self._waiting.remove(pending)

    def _wake(self, pending: Pending) -> None:
        """Wake the caller of the call, if it waits. `_lock` is held."""
        if pending.woken is not None:
            pending.woken.notify()

    def _stop_reading(self, me: int) -> None:
        """Let another thread read, if this one did, or was to."""
        try:
            self._let_read(me)
        except BaseException:  # an interrupt
            self._let_read(me)
            raise

    def _let_read(self, me: int) -> None:
        if self._reader in (0, me):
            with self._lock:
                if self._reader in (0, me):
                    self._reader = 0
                    if self._waiting:
                        self._wake(self._waiting[0])

    def take_in(self) -> None:
        """Handle what has arrived, without waiting for more."""
        if self._reader:
            return  # who reads does it
        me = threading.get_ident()
        try:
            with self._lock:
                self._reader = self._reader or me
            while self._reader == me and self.failure is None and self._has_arrived():
                self._read(None)
        finally:
            self._stop_reading(me)

    def _has_arrived(self) -> bool:
        return bool(self._arrived or self._wire.poll(0))

    # -- reading

    def _receive(self, deadline: float | None) -> bytes:
        if deadline is not None:
            left = deadline - self._now()
            if left <= 0 or not self._wire.poll(left * 1000):
                raise TimeoutError(f"no answer for {self._seconds} seconds")
        return self._wire.recv(_CHUNK)

    def _read(self, deadline: float | None) -> None:
        """Handle the next message; receive some, if there is none. What cannot be handled, or is
        interrupted, closes the connection: the state is verified when it is made anew."""
        try:
            if not self._arrived:
                data = self._receive(deadline)
                if not data:
                    raise ConnectionResetError("the server closed it")
                self._arrived.extend(self._frames.feed(data))
            if self._arrived:
                self._handle(self._codec.decode(self._arrived.popleft()))
        except (OSError, ProtocolError, ValueError) as error:
            self.fail(error)
        except BaseException as error:
            self._handled = None
            self.fail(error)
            raise

    def _handle(self, message: Message) -> None:
        if message.name != REPLY:
            self._require_shape(TOLD, message.name, message.arguments)
            if message.name == "objdb.ask":
                kind, arguments = message.arguments[2:]
                self._require_shape(QUESTIONS, kind, arguments)
                self._note_question(*message.arguments)
            else:
                self._told(message.name, message.arguments)
            return
        pending = self._pending.get(message.id)
        if pending is None:  # nobody waits for it any more
            return
        self._handled = pending
        if message.flag != ERROR:
            try:
                self._require_shape(ANSWERS, pending.name, message.arguments)
            except ProtocolError as error:
                pending.error = error
                self._end(message.id, pending)
                raise
        if message.flag == ERROR:
            pending.error = from_wire(message.arguments, self.name)
        else:
            try:
                result = message.arguments
                pending.result = result if pending.taken is None else pending.taken(result)
            except Exception as error:  # noqa: BLE001  the caller's
                pending.error = error
        self._end(message.id, pending)

    def _end(self, id: Any, pending: Pending) -> None:
        self._pending.pop(id, None)
        self._handled = None
        self._done(pending)

    def _require_shape(self, shapes: dict[str, Shape], name: str, value: Any) -> None:
        shape = shapes.get(name)
        if shape is not None and not shape(value):
            raise ProtocolError(
                f"{self.name} is no ZEO server, or damages what it sends: it says, for {name}, "
                f"{value!r:.200}"
            )

    def _note_question(self, id: Any, number: int, kind: str, arguments: Any) -> None:
        pending = self._pending.get(id)
        if pending is not None:
            with self._lock:
                pending.questions.append((number, kind, tuple(arguments)))
                self._wake(pending)

    def _done(self, pending: Pending) -> None:
        with self._lock:
            pending.is_done = True
            self._wake(pending)

    # -- the end

    def _require_open(self) -> None:
        if self.failure is not None:
            raise DisconnectedError(f"the connection to {self.name} is lost ({self.failure})")

    def fail(self, error: BaseException) -> None:
        """Close it; every call under way raises `DisconnectedError`. In a forked child, whose locks
        may be held by threads that are not there, only the child's socket is closed."""
        if self.failure is None:
            self.failure = error
        self.close()
        for id, pending in list(self._pending.items()) if os.getpid() == self._pid else ():
            if pending is self._handled:
                continue  # it has its answer
            self._pending.pop(id, None)
            pending.error = DisconnectedError(f"the connection to {self.name} was lost ({error})")
            self._done(pending)

    def close(self) -> None:
        """Close the socket; in a forked child, that of the child only."""
        if os.getpid() == self._pid:
            self._wire.shut_down()
        self._wire.close()


def _connect(wires: Wires, address: Address, seconds: float, name: str) -> Wire:
    try:
        return wires.connect(address, seconds)
    except OSError as error:
        raise DisconnectedError(
            f"there is no server at {name} ({error.strerror or error}). Start one with: "
            f"objdb serve URI --address {name}"
        ) from error
