"""The server's side of one connection.

    bytes ─► frames ─► greeting ─► register ─► calls ─► replies
                                                 │
                                 steps that may block: votes, finishes, packs (see `driver`)

Calls are carried out and answered in the order in which they arrive, but for those with steps. A
client that breaks the protocol is cut off, and the log says why.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable, Mapping
from functools import partial
from types import GeneratorType
from typing import Any

from objdb.errors import ObjdbError, ReadOnlyError, StorageError, Unsupported
from objdb.ids import Tid
from objdb_zeo.errors import to_wire
from objdb_zeo.limits import CALLS_IN_THREADS, THREADS_OF_ONE, Limits, sparing_logger
from objdb_zeo.messages import (
    CALL,
    ERROR,
    KEEP_ALIVE,
    ONE_WAY,
    REPLY,
    STATUS_QUESTION,
    Codec,
    Frames,
    Message,
    Msgpack,
    ProtocolError,
    codec_for,
    frame,
    plain,
)
from objdb_zeo.protocol.calls import ANSWERED, READS, Calls, InOrder, InPlace, status_of
from objdb_zeo.protocol.driver import Done, Driver, InThread, Steps
from objdb_zeo.protocol.extension import Extension
from objdb_zeo.protocol.questions import ANSWER_SECONDS, AskedInVain, Question
from objdb_zeo.protocol.served import Served

logger = sparing_logger(__name__)
_ONE_WAY = frozenset({
    "set_client_label", "tpc_begin", "storea", "restorea", "deleteObject",
    "checkCurrentSerialInTransaction", "undoa", "iterator_gc", "storeBlobEnd", "storeBlobShared",
    "objdb.checkReads", "objdb.hello", "objdb.extension", "objdb.answer",
})
_BLOBS = frozenset({
    "sendBlob", "storeBlobStart", "storeBlobChunk", "storeBlobEnd", "storeBlobShared",
})
_BEFORE_REGISTER_BYTES = 1000  # the largest frame of who has not registered


class Session:
    """A connection of a client at *host*, *peer* in the log, to one of the storages *served*."""

    def __init__(
        self, served: Mapping[str, Served], driver: Driver, peer: str, limits: Limits,
        codec: Codec | None = None, host: str | None = None,
    ) -> None:
        self._choices = served
        self.driver = driver
        self.label, self.host = peer, host
        self.limits = limits
        self._frames = Frames(min(limits.frame_bytes, _BEFORE_REGISTER_BYTES))
        self.codec: Codec = codec or Msgpack()
        self._has_greeted = self.is_closed = False
        self._storage_name = ""
        self._served: Served | None = None
        self.is_read_only = False
        self._places: list[list[Any]] = []  # [tid or None, bytes or None]
        self.told = 0  # the number of the first one announced that was not put
        self.calls, self.extension = Calls(self), Extension(self)
        self.knows_extension = False
        self.client = b""  # its key, if it has one
        # Asks the client on behalf of the call that is carried out, and waits: in threads only.
        self.asks: Callable[..., Any] | None = None
        self._questions: dict[int, Question] = {}
        self._last_question = 0
        self._in_threads = 0  # steps under way that may block, commits aside
        self._slow: deque[tuple[InThread, Done]] = deque()  # those that wait for a thread
        driver.send(frame(self.codec.greeting))

    # -- bytes in

    def data_received(self, data: bytes) -> bool:
        """Take in what has arrived. Returns true if the driver takes no more now, though more may
        be there: it calls again, with no data, when it does."""
        try:
            for body in self._frames.feed(data):
                if self.is_closed:
                    return False
                if self._has_greeted:
                    self._take(self.codec.decode(body))
                else:
                    self._take_greeting(body)
                if not self.driver.takes_more():
                    return True
        except ProtocolError as error:
            self.cut_off(str(error))
        return False

    def _take_greeting(self, body: bytes) -> None:
        if body == STATUS_QUESTION:
            status = {name: status_of(served) for name, served in self._choices.items()}
            self.driver.send(frame(json.dumps(status).encode()))
            self.close()
            return
        if body != self.codec.greeting:
            codec_for(body)  # raises, for anything but the other codec
            raise ProtocolError(f"it speaks {body!r}, and was greeted with another")
        self._has_greeted = True

    def _take(self, message: Message) -> None:
        if message.id == KEEP_ALIVE:
            return
        if message.name == REPLY:
            raise ProtocolError("it sent a reply, and was asked nothing")
        arguments = message.arguments
        if not isinstance(arguments, (tuple, list)):
            raise ProtocolError(f"the arguments of {message.name} are not an array")
        if self._served is None and message.name != "register":
            raise ProtocolError(f"it called {message.name} before register")
        if message.name in _BLOBS:
            self._refuse_blobs(message)
            return
        method = self._method(message.name)
        if method is None:
            raise ProtocolError(f"it called {message.name[:60]!r}, which there is not")
        if (message.flag == ONE_WAY) != (message.name in _ONE_WAY):
            raise ProtocolError(f"it called {message.name} with the flag {message.flag}")
        if message.name in READS and message.flag != ONE_WAY:
            self._answer(message.id, partial(method, *arguments))
            return
        self.asks = partial(self._ask, message.id) if self.knows_extension else None
        try:
            result = method(*arguments)
        except ProtocolError:
            raise
        except Exception as error:
            if message.flag == ONE_WAY:
                raise ProtocolError(f"{message.name} failed: {error!r}") from error
            self._fail(message, error)
            return
        if message.flag == ONE_WAY:
            self.calls.limit_staged(self.limits.staged_bytes)
        if isinstance(result, GeneratorType):
            self._advance(message, result, None, None)
        elif message.flag != ONE_WAY and result is not ANSWERED:
            self._reply(message.id, result)

    def _method(self, name: str) -> Callable[..., Any] | None:
        if name.startswith("objdb."):
            found = getattr(self.extension, f"call_{name.removeprefix('objdb.')}", None)
        elif name in ("register", "set_client_label"):
            found = getattr(self, f"call_{name}")
        else:
            found = getattr(self.calls, f"call_{name}", None)
        return found

    def _refuse_blobs(self, message: Message) -> None:
        if message.flag != ONE_WAY:
            self._fail(message, Unsupported(f"{self.title} has no blobs"))

    # -- steps

    def _advance(
        self, message: Message, steps: Steps, value: Any, error: BaseException | None
    ) -> None:
        """Go on with the steps of a call."""
        go_on = partial(self._advance, message, steps)
        while True:
            try:
                step = steps.send(value) if error is None else steps.throw(error)
            except StopIteration as end:
                if isinstance(end.value, InPlace):
                    self._fill(message.id, end.value)
                elif isinstance(end.value, InOrder):
                    self._put_reply(message.id, end.value.result)
                elif end.value is not ANSWERED:
                    self._reply(message.id, end.value)
                return
            except Exception as failure:  # noqa: BLE001  the client's
                self._fail(message, failure)
                return
            if isinstance(step, InThread):
                try:
                    self.run(step, go_on)
                    return
                except StorageError as refused:
                    value, error = None, refused
                    continue
            soon = partial(self.driver.soon, partial(go_on, None, None))
            if not self.served.take_turn(step.transaction, soon):
                return
            value = error = None

    def run(self, step: InThread, done: Done) -> None:
        """Do a step that may block; then call *done*. Those of commits at once; of the others a few
        at a time, so that other clients find a thread free. `StorageError` if many wait."""
        if step.is_commit:
            self.driver.run(step, done)
        elif self._in_threads < THREADS_OF_ONE:
            self._in_threads += 1
            self.driver.run(step, partial(self._leave_thread, done))
        elif len(self._slow) < CALLS_IN_THREADS - THREADS_OF_ONE:
            self._slow.append((step, done))
        else:
            raise StorageError(
                f"{self.title}: this client has {CALLS_IN_THREADS} calls under way that take long. "
                "Wait for one of them to end"
            )

    def _leave_thread(self, done: Done, result: Any, error: BaseException | None) -> None:
        self._in_threads -= 1
        if self._slow and not self.is_closed:
            self.run(*self._slow.popleft())
        done(result, error)

    # -- bytes out

    def _send(self, message: Message) -> None:
        if not self.is_closed:
            self.driver.send(frame(self.codec.encode(message)))

    def _reply(self, id: Any, result: Any, *, is_error: bool = False) -> None:
        if not self.is_closed:
            self.driver.send(self._reply_frame(id, result, is_error))

    def _reply_frame(self, id: Any, result: Any, is_error: bool) -> bytes:
        """Return the frame of a reply; of an error, if the result cannot be sent."""
        try:
            message = Message(id, ERROR if is_error else CALL, REPLY, result)
            return frame(self.codec.encode(message))
        except (TypeError, ValueError, OverflowError, RecursionError) as error:
            wire = to_wire(StorageError(f"{self.title} has an answer that cannot be sent: {error}"))
            return frame(self.codec.encode(Message(id, ERROR, REPLY, plain(wire))))

    def _fail(self, message: Message, error: BaseException) -> None:
        if not isinstance(error, (ObjdbError, KeyError, TypeError, ValueError)):
            logger.exception("%s: %s failed", self.label, message.name, exc_info=error)
        self._reply(message.id, to_wire(error), is_error=True)

    def tell(self, method: str, *arguments: Any) -> None:
        """Call a method of the client, one-way."""
        self._send(Message(0, ONE_WAY, method, arguments))

    def tell_now(self, method: str, *arguments: Any) -> None:
        """Call a method of the client, one-way, from any thread; it has got it if this process is
        killed then, unless it has not read for long. May overtake what was sent before."""
        if not self.is_closed:
            self.driver.send_now(frame(self.codec.encode(Message(0, ONE_WAY, method, arguments))))

    # What depends on which transactions are visible is sent in their order: an own transaction has
    # its place before its reply is known, and what comes behind it waits. `order` is held.

    def _put(self, tid: Tid | None, data: bytes | None) -> None:
        if self._places or data is None:
            self._places.append([tid, data])
        elif not self.is_closed:
            self.driver.send(data)

    def catch_up(self) -> None:
        """Tell the client of others' transactions that it was not told of. `order` is held."""
        if self.is_closed:  # what it was not told of may be forgotten
            return
        served = self.served
        while self.told < served.log_end:
            announced = served.log[self.told - served.log_start]
            self.told += 1
            if announced.origin is not self:
                self._put(announced.tid, announced.frame(self.codec))

    def keep_place(self, tid: Tid) -> None:
        """Keep the place of the reply to an own transaction, behind those before. `order` is
        held."""
        self.catch_up()
        self._put(tid, None)

    def _put_reply(self, id: Any, result: Any, *, is_error: bool = False) -> None:
        """Reply behind all that is announced."""
        data = self._reply_frame(id, result, is_error)
        with self.served.order:
            self.catch_up()
            self._put(None, data)

    def _fill(self, id: Any, found: InPlace) -> None:
        """Reply in the place of the transaction *found.tid*."""
        data = self._reply_frame(id, found.result, found.is_error)
        if not found.is_error and not self.knows_extension:
            info = Message(0, ONE_WAY, "info", (self.served.info(),))
            data = frame(self.codec.encode(info)) + data
        with self.served.order:
            for place in self._places:
                if place[0] == found.tid and place[1] is None:
                    place[1] = data
                    break
            while self._places and self._places[0][1] is not None:
                data = self._places.pop(0)[1]
                if not self.is_closed:
                    self.driver.send(data)

    def _answer(self, id: Any, function: Callable[[], Any]) -> None:
        """Reply with what the storage says, so that it fits in between the invalidations: see
        `served`."""
        served = self.served
        while True:
            if served.poll is not None:
                served.poll()
            announced = served.announced
            if announced > served.storage.lastTransaction():
                self.driver.rest()  # another thread is making visible what it has announced
                continue
            try:
                result, is_error = function(), False
            except Exception as error:  # noqa: BLE001  the client's
                result, is_error = to_wire(error), True
            data = self._reply_frame(id, result, is_error)
            with served.order:
                if served.announced == announced:
                    self.catch_up()
                    self._put(None, data)
                    return

    # -- questions

    def _ask(
        self, id: Any, kind: str, *arguments: Any, seconds: float = ANSWER_SECONDS
    ) -> Any:
        """Ask the client whose call *id* is under way; return its answer. Raises `AskedInVain` if
        it has none in so many seconds, or is gone. Called in a thread that may wait. One that does
        not say how to resolve a conflict keeps others from committing, and is cut off."""
        with self.served.order:
            self._last_question += 1
            number = self._last_question
        question = self._questions[number] = Question()
        self.tell("objdb.ask", id, number, kind, arguments)
        if self.is_closed or not question.is_answered.wait(seconds):
            question.is_known = False
            if kind == "resolve" and not self.is_closed:
                why = f"it was asked to resolve a conflict, and did not answer for {seconds:.0f} s"
                self.driver.soon(partial(self.cut_off, why))
        self._questions.pop(number, None)
        if not question.is_known:
            raise AskedInVain(f"the client did not answer ({kind})")
        return question.answer

    def answer(self, number: int, is_known: bool, answer: Any) -> None:
        """Take the client's answer."""
        question = self._questions.get(number)
        if question is not None:
            question.is_known, question.answer = bool(is_known), answer
            question.is_answered.set()

    # -- the end

    def close(self) -> None:
        """Close the connection, from this side."""
        self.is_closed = True
        self.driver.close()

    def cut_off(self, why: str) -> None:
        """Close the connection, and say why in the log."""
        logger.warning("%s is cut off: %s", self.label, why, extra={"host": self.host})
        self.close()

    def closed(self) -> None:
        """Drop all that the client has begun: the connection is closed."""
        self.is_closed = True
        if self._served is not None:
            self._served.leave(self)
        for question in list(self._questions.values()):
            question.is_answered.set()
        self.calls.drop_all()

    # -- calls: who is there

    @property
    def is_registered(self) -> bool:
        """Whether the client has registered for a storage."""
        return self._served is not None

    def set_limits(self, limits: Limits) -> None:
        """Go by other limits from now on."""
        self.limits = limits
        self._frames.limit = limits.frame_bytes
        if not self.is_registered:
            self._frames.limit = min(limits.frame_bytes, _BEFORE_REGISTER_BYTES)

    @property
    def served(self) -> Served:
        """The storage that the client registered for."""
        assert self._served is not None
        return self._served

    @property
    def title(self) -> str:
        """The name of the storage, for messages."""
        return f"the storage {self._storage_name!r}"

    def call_register(self, name: Any, read_only: Any = False) -> Tid:
        """Register for a storage; return the last tid that the client is not told of."""
        if self._served is not None:
            raise ProtocolError("it registered a second time")
        if isinstance(name, bytes):
            name = name.decode("utf-8", "replace")
        served = self._choices.get(name)
        if served is None:
            there = ", ".join(map(repr, self._choices))
            raise ValueError(f"there is no storage {name!r} here; there are {there}")
        if served.is_read_only and not read_only:
            raise ReadOnlyError(f"the storage {name!r} is served for reading only")
        self._storage_name, self.is_read_only = name, bool(read_only)
        self._served = served
        self.set_limits(self.limits)
        return served.join(self)

    def call_set_client_label(self, label: Any) -> None:
        """Name the client in the log."""
        self.label = f"{self.label} {str(label)[:80]!r}"
