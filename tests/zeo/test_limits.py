"""One client cannot hurt the others: each kind of bad client, on a server with low limits."""

from __future__ import annotations

import itertools
import logging
import resource
import struct
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from objdb.errors import UsageError
from objdb.ids import oid_from_int
from objdb_zeo.limits import (
    CALLS_IN_THREADS,
    ITERATORS,
    THREADS_OF_ONE,
    TRANSACTIONS,
    Limits,
    Sparing,
)
from tests.zeo.commanding import Command, commanded, wait_for
from tests.zeo.raw import NOW, Raw, begin, message
from tests.zeo.test_session import Client, served, stage

__all__ = ["served"]  # a fixture
MEGABYTE = 1_000_000
_numbers = itertools.count(1000)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Command]:
    """A server with low limits, which every test here uses."""
    with commanded(
        tmp_path_factory.mktemp("limits"), "file:data.fs?durability=os", "--address",
        "127.0.0.1:0", "--clients", "60", "--clients-per-address", "40", "--pending-bytes",
        "50000", "--staged-bytes", str(MEGABYTE), "--register-seconds", "1", "--vote-seconds",
        "1", "--frame-bytes", str(MEGABYTE),
    ) as command:
        yield command
        command.stop()


def oids(count: int) -> list[bytes]:
    """Return oids that no other test stores to."""
    return [oid_from_int(next(_numbers)) for _ in range(count)]


@pytest.fixture
def good(server: Command) -> Iterator[Raw]:
    """A client that keeps to the rules, and goes on."""
    with Raw(server.addresses[0]) as client:
        yield client
        assert client.call("ping") is None
        client.commit(*oids(1))


def test_it_reads_nothing(server: Command, good: Raw) -> None:
    """Calls of a client that reads nothing are taken in no more; when others' commits pile up for
    it, it is cut off."""
    [large] = oids(1)
    good.commit(large, record=b"x" * 500_000)
    before = server.peak_bytes
    with Raw(server.addresses[0]) as bad:
        bad.send(b"".join(message("loadBefore", large, NOW, id=i) for i in range(1, 1000)))
        for _ in range(10):
            good.commit(*oids(1000))
        written = server.says(f"127.0.0.1:{bad.port} is cut off: it does not read")
        assert "bytes wait to be sent" in written
    assert server.peak_bytes - before < 30 * MEGABYTE  # of 500


def test_it_floods_with_calls(server: Command, good: Raw) -> None:
    """Each call of a flood is answered, in order, and others are in between."""
    with Raw(server.addresses[0]) as bad:
        bad.send(b"".join(message("lastTransaction", id=i) for i in range(1, 3000)))
        for _ in range(10):
            assert good.call("ping") is None
        assert [bad.reply().id for _ in range(1, 3000)] == list(range(1, 3000))


def test_it_does_not_register(server: Command, good: Raw) -> None:
    """Who sends a byte now and then, and does not register, is cut off."""
    with Raw(server.addresses[0], register=False) as bad:
        bad.send(b"\0")
        assert bad.is_closed()
        server.says(f"127.0.0.1:{bad.port} is cut off: it did not register within 1 seconds")


def test_it_announces_much(server: Command, good: Raw) -> None:
    """Who announces 2 GiB is cut off before they arrive."""
    with Raw(server.addresses[0]) as bad:
        bad.send(struct.pack(">I", 1 << 31))
        assert bad.is_closed()
        server.says(f"127.0.0.1:{bad.port} is cut off: a frame of 2147483648 bytes")


def test_it_connects_too_often(server: Command, good: Raw) -> None:
    """Connections beyond the limit are closed at once; the log has a few lines about them."""
    host = "127.0.0.2"
    bad = [Raw(server.addresses[0], register=False, source=host) for _ in range(300)]
    for each in bad[-100:]:
        assert each.is_closed()
    for each in bad:
        each.close()
    lines = [line for line in server.log.splitlines() if "is turned away" in line]
    assert 0 < len(lines) <= 20 and "127.0.0.2 has 40 clients" in lines[0]
    assert any("are left out" in line for line in lines)

    def can_connect() -> bool:
        with Raw(server.addresses[0], register=False, source=host) as client:
            return bool(client.body())

    wait_for(can_connect, "nobody can connect any more")


def test_it_stores_without_end(server: Command, good: Raw) -> None:
    """What a client stages has a limit; its vote says so, and it can go on with less."""
    before = server.peak_bytes
    with Raw(server.addresses[0]) as bad:
        bad.send(begin(1))
        for part in range(20):
            bad.send(b"".join(
                message("storea", oid_from_int(part * 5000 + i), bytes(8), b"x" * 100, 1)
                for i in range(5000)
            ))
        assert "--staged-bytes" in str(bad.call("vote", 1))
        bad.commit(*oids(1))
        server.says(f"127.0.0.1:{bad.port}: what it has staged is dropped")
    assert server.peak_bytes - before < 20 * MEGABYTE


def test_it_votes_and_falls_silent(server: Command, good: Raw) -> None:
    """Who has voted, and does nothing, is cut off; the next one commits."""
    with Raw(server.addresses[0]) as bad:
        bad.send(begin(1) + message("storea", oids(1)[0], bytes(8), b"x", 1))
        assert bad.call("vote", 1) == ()
        good.commit(*oids(1))
        assert bad.is_closed()
        server.says(f"127.0.0.1:{bad.port} is cut off: its transaction has voted")


def test_no_descriptors_are_left(tmp_path: Path) -> None:
    """A server without descriptors says so (libuv does not, and closes what it cannot take), and
    goes on when there are some again."""
    with commanded(tmp_path, "--address", f"unix:{tmp_path}/sock") as command:
        with Raw(command.addresses[0]) as good:
            process = command.process.pid
            resource.prlimit(process, resource.RLIMIT_NOFILE, (40, 40))
            bad = [Raw(command.addresses[0], register=False) for _ in range(50)]
            if find_spec("uvloop") is None:
                command.says("descriptors left")
            assert good.call("ping") is None
            for each in bad:
                each.close()
            with Raw(command.addresses[0]) as another:
                assert another.call("ping") is None
        command.stop()


def test_staged_by_several(served: dict[str, Any]) -> None:
    """The largest of a client's transactions is dropped; the other one is committed."""
    client = Client(served, staged_bytes=50_000)
    client.register()
    stage(client, "small", oid_from_int(5), bytes(8))
    stage(client, "large", oid_from_int(6), bytes(8), b"x" * 9000)
    for i in range(100):
        client.send(oid_from_int(7 + i), bytes(8), b"x" * 1000, "large", name="storea")
    assert "50,000 bytes" in str(client.call("vote", "large"))
    assert "there is no transaction" in str(client.call("vote", "large"))
    assert client.call("vote", "small") == ()
    client.call("tpc_finish", "small")
    assert client.call("loadBefore", oid_from_int(5), NOW)[0] == b"new"


@pytest.mark.parametrize(("name", "arguments", "count"), [
    ("tpc_begin", ({}, None, " "), TRANSACTIONS), ("iterator_start", (None, None), ITERATORS),
])
def test_things_begun(
    served: dict[str, Any], name: str, arguments: tuple[Any, ...], count: int
) -> None:
    """Who begins things without end, and ends none, is cut off."""
    client = Client(served).register()
    one_way = name == "tpc_begin"
    for i in range(count + 1):
        assert not client.driver.is_closed
        given = (i, b"", b"", *arguments) if one_way else arguments
        client.send(*given, flag=int(one_way), id=0 if one_way else i + 9, name=name)
    assert client.driver.is_closed


def test_calls_in_threads(served: dict[str, Any]) -> None:
    """Of the calls that take long, a client has a few at work; many wait, and more are refused."""
    client = Client(served).register()
    waiting: list[Any] = []
    run, client.driver.run = client.driver.run, (  # type: ignore[method-assign]
        lambda step, done: waiting.append((step, done)))
    for i in range(CALLS_IN_THREADS + 1):
        client.send(bytes(8), None, flag=0, id=i + 1, name="objdb.iterate")
    [refused] = client.messages()
    assert refused.flag == 2 and "calls under way" in str(refused.arguments)
    assert len(waiting) == THREADS_OF_ONE
    while waiting:
        run(*waiting.pop())
    assert len(client.messages()) == CALLS_IN_THREADS
    client.send(0.0, False, flag=0, id=1, name="pack")
    assert len(waiting) == 1
    run(*waiting.pop())


def test_lines_are_left_out() -> None:
    """A logger writes ten lines of a kind about one address in ten seconds, and counts the rest."""
    sparing = Sparing()

    def written(created: float, host: str = "a", why: str = "9 bytes") -> str | None:
        record = logging.LogRecord("x", logging.WARNING, "", 1, "%s fails: %s", (host, why), None)
        record.created, record.host = created, host
        return record.getMessage() if sparing.filter(record) else None

    lines = [written(100.0) for _ in range(50)]
    assert lines[:9] == ["a fails: 9 bytes"] * 9 and lines[10:] == [None] * 40
    assert lines[9] is not None and "left out for 10 s" in lines[9]
    assert written(105.0, why="calls 'x'") == "a fails: calls 'x'"
    assert written(105.0, "b") == "b fails: 9 bytes"
    assert written(111.0) == "a fails: 9 bytes (40 lines like this one were left out)"


def test_wrong_limits() -> None:
    """A limit is greater than nothing."""
    for wrong in ({"clients": 0}, {"vote_seconds": -1.0}, {"pending_bytes": float("nan")}):
        with pytest.raises(UsageError, match="greater than 0"):
            Limits(**wrong)  # type: ignore[arg-type]
    assert Limits(vote_seconds=None).vote_seconds is None
