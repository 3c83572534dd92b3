"""The client's end of a connection: what an interrupt, a bad argument, or a fork leaves behind."""

from __future__ import annotations

import os
import resource
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from objdb.errors import UsageError
from objdb.ids import NO_TID, ROOT_OID
from objdb.storage.memory import MappingStorage
from objdb.testing.helpers import commit
from objdb_zeo.transport import Channel, DisconnectedError, Pending
from tests.zeo.serving import Serving


@pytest.fixture
def served() -> Iterator[Serving]:
    """A server with one record."""
    storage = MappingStorage()
    commit(storage, {ROOT_OID: (NO_TID, b"root")})
    with Serving({"1": storage}) as serving:
        yield serving


def connect(served: Serving, told: Any = lambda method, arguments: None) -> Channel:
    channel = Channel(served.address, told, seconds=20)
    channel.call("register", "1", False)
    return channel


def test_an_interrupt_while_an_answer_is_handled(served: Serving) -> None:
    """An interrupt in what a caller does with its answer closes the connection, so that nothing
    that has arrived is taken for handled; nobody waits for it in vain."""
    channel = connect(served)

    def interrupted(_: Any) -> Any:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        channel.call("ping", taken=interrupted)
    assert isinstance(channel.failure, KeyboardInterrupt)
    for _ in range(2):
        with pytest.raises(DisconnectedError):
            channel.call("ping")


def test_an_interrupt_while_an_invalidation_is_handled(served: Serving) -> None:
    """An invalidation that could not be handled is not passed over: the connection is closed."""

    def interrupted(method: str, arguments: Any) -> None:
        if method == "invalidateTransaction":
            raise KeyboardInterrupt

    channel = connect(served, interrupted)
    other = connect(served)
    serial = other.call("loadBefore", ROOT_OID, b"\x7f" * 8)[1]
    begin: tuple[Any, ...] = (1, b"", b"", {}, None, " ")
    other.send([("tpc_begin", begin, None), ("storea", (ROOT_OID, serial, b"new", 1), None)])
    other.call("vote", 1)
    other.call("tpc_finish", 1)
    with pytest.raises(KeyboardInterrupt):
        channel.call("ping")
    with pytest.raises(DisconnectedError):
        channel.take_in()
        channel.call("ping")
    other.close()


@pytest.mark.parametrize("where", ["_read", "_begin_to_read", "_has_arrived"])
def test_an_interrupted_reader_lets_others_read(
    served: Serving, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A thread that is interrupted while it reads leaves the reading to others."""
    channel = connect(served)
    step = getattr(channel, where)

    def interrupted(*arguments: Any) -> Any:
        step(*arguments)
        monkeypatch.undo()
        raise KeyboardInterrupt

    monkeypatch.setattr(channel, where, interrupted)
    with pytest.raises(KeyboardInterrupt):
        channel.take_in() if where == "_has_arrived" else channel.call("ping")
    done: list[Any] = []
    other = threading.Thread(target=lambda: done.append(channel.call("ping")), daemon=True)
    other.start()
    other.join(10)
    assert done == [None]
    channel.close()


def test_an_interrupt_in_the_middle_of_a_write(
    served: Serving, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half a frame is not followed by another one."""
    channel = connect(served)
    real = channel._wire

    class Interrupted:
        """Sends half, and is interrupted."""

        def sendall(self, data: bytes) -> None:
            real.sendall(data[: len(data) // 2])
            raise KeyboardInterrupt

        def __getattr__(self, name: str) -> Any:
            return getattr(real, name)

    monkeypatch.setattr(channel, "_wire", Interrupted())
    with pytest.raises(KeyboardInterrupt):
        channel.call("ping")
    with pytest.raises(DisconnectedError):
        channel.call("ping")


@pytest.mark.parametrize("bad", [object(), {1, 2}, 1 << 70, "\udc80"])
def test_an_argument_that_messages_cannot_carry(served: Serving, bad: Any) -> None:
    """What cannot be sent is refused by name, and nothing of it is left behind."""
    channel = connect(served)
    with pytest.raises(UsageError, match="an argument of history"):
        channel.call("history", ROOT_OID, bad)
    assert channel.call("ping") is None and not channel._pending
    channel.close()


def test_many_open_files(served: Serving) -> None:
    """A connection works behind 1,024 open files, more than `select` can wait for."""
    limit, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    if most not in (-1, resource.RLIM_INFINITY) and most < 2000:
        pytest.fail(f"this machine allows only {most} open files")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(limit, 2000), most))
    opened: list[int] = []
    try:
        while not opened or opened[-1] < 1100:
            opened.append(os.open(os.devnull, os.O_RDONLY))
        channel = connect(served)
        assert channel._wire.fileno() > 1024
        assert channel.call("loadBefore", ROOT_OID, b"\x7f" * 8)[0] == b"root"
        channel.close()
    finally:
        for number in opened:
            os.close(number)
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, most))


def test_closed_in_a_child(served: Serving) -> None:
    """A forked child closes its socket without waiting for locks that other threads held; the
    parent's connection goes on."""
    channel = connect(served)
    channel._pending["of another thread"] = Pending()
    with channel._lock:
        child = os.fork()
        if not child:
            os._exit(_fail_in_a_thread(channel))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert channel.call("ping") is None
    channel.close()


def _fail_in_a_thread(channel: Channel) -> int:
    """Fail it in a thread that does not hold the lock; return 0 if that came to its end."""
    thread = threading.Thread(target=channel.fail, args=(OSError("forked"),), daemon=True)
    thread.start()
    thread.join(10)
    return int(thread.is_alive())


def test_an_answer_that_comes_as_the_time_is_over(served: Serving) -> None:
    """A thread whose time is over, just as another handles its answer, lets that end its work."""
    channel = connect(served)
    channel._seconds, channel._reader = 0.05, 1  # another thread reads
    pending = Pending()  # which has taken it out of those that wait

    def done() -> None:
        while channel.failure is None:  # until the time is over
            is_over.wait(0.01)
        pending.result = "the answer"
        channel._done(pending)

    is_over, found = threading.Event(), []
    reader = threading.Thread(target=done, daemon=True)
    waiting = threading.Thread(target=lambda: found.append(channel.wait(pending)), daemon=True)
    reader.start()
    waiting.start()
    waiting.join(20)
    assert found == ["the answer"]
    reader.join(20)
