"""Several processes on one server: what they do together, and what one costs the others."""

from __future__ import annotations

import multiprocessing
import resource
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median, quantiles
from time import perf_counter
from typing import Any

import psutil

from benchmarks.measurements.commits import batch_times
from benchmarks.sizes import Sizes
from benchmarks.systems import System
from benchmarks.systems.persistent_store import PersistentSystem
from benchmarks.systems.served import Served

CLIENTS = 4
CLIENT_COMMITS = 150
IDLE_CLIENTS = 1000
SAMPLE = 1000
CHANGED = 10_000
MICROSECONDS = 1e6
MILLISECONDS = 1e3
KIB = 1024


def commits(system: System, path: Path, sizes: Sizes) -> dict[str, float]:
    """Small commits by several processes, each changing an object of its own: commits per
    second."""
    elapsed = _together(system, path, sizes, _commit)
    return {"clients_per_second": CLIENTS * CLIENT_COMMITS / elapsed}


def contended(system: System, path: Path, sizes: Sizes) -> dict[str, float]:
    """Several processes that add to one `Length`: committed transactions per second."""
    from BTrees.Length import Length

    store: Any = system.open(path)
    store.root()["length"] = Length()
    store.commit()
    store.close()
    elapsed = _together(system, path, sizes, _contend)
    store = system.open(path)
    assert store.root()["length"]() == CLIENTS * CLIENT_COMMITS
    store.close()
    return {"contended_per_second": CLIENTS * CLIENT_COMMITS / elapsed}


def loads(system: System, path: Path, sizes: Sizes) -> dict[str, float]:
    """Several processes that load the items of one quarter each, cold: loads per second."""
    elapsed = _together(system, path, sizes, _load)
    return {"client_loads_per_second": sizes.objects // CLIENTS * CLIENTS / elapsed}


def _together(system: System, path: Path, sizes: Sizes, work: Callable[..., None]) -> float:
    """Let several processes do *work* on one server; return the seconds that it takes."""
    assert isinstance(system, Served)
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(CLIENTS + 1)
    with system.serving(path):
        running = [
            context.Process(
                target=_client, args=(index, system.name, str(path), sizes, barrier, work)
            )
            for index in range(CLIENTS)
        ]
        for process in running:
            process.start()
        barrier.wait()
        started = perf_counter()
        barrier.wait()
        elapsed = perf_counter() - started
        for process in running:
            process.join()
            assert process.exitcode == 0
    return elapsed


def _client(
    index: int, name: str, path: str, sizes: Sizes, barrier: Any, work: Callable[..., None]
) -> None:
    from benchmarks.systems import SYSTEMS

    store = SYSTEMS[name].open(Path(path))
    work(store, SYSTEMS[name], index, sizes, barrier.wait)
    barrier.wait()
    store.close()


def _commit(store: Any, system: System, index: int, sizes: Sizes, start: Any) -> None:
    key = index * (sizes.objects // CLIENTS)
    item = store.item(key)
    item.number += 1
    store.save(key, item)
    start()
    for _ in range(CLIENT_COMMITS):
        item.number += 1
        store.save(key, item)


def _contend(store: Any, system: System, index: int, sizes: Sizes, start: Any) -> None:
    assert isinstance(system, PersistentSystem)
    store.root()["length"]()
    with system.retrying(store.database) as run:
        start()
        for _ in range(CLIENT_COMMITS):
            run(_add_one)


def _add_one(root: Any) -> None:
    root["length"].change(1)


def _load(store: Any, system: System, index: int, sizes: Sizes, start: Any) -> None:
    count = sizes.objects // CLIENTS
    start()
    store.read_by_key(range(index * count, (index + 1) * count))


def beside_commits(system: System, path: Path, sizes: Sizes) -> dict[str, float]:
    """Loads of items, one by one, while another process commits without pause."""
    assert isinstance(system, Served)
    context = multiprocessing.get_context("spawn")
    is_over, has_begun = context.Event(), context.Event()
    with system.serving(path):
        writer = context.Process(
            target=_commit_on, args=(system.name, str(path), has_begun, is_over)
        )
        writer.start()
        store: Any = system.open(path)
        items = list(store.root()["items"].values(min=sizes.objects // 2))[:SAMPLE]
        has_begun.wait()
        times = []
        for item in items:
            started = perf_counter()
            item.number  # noqa: B018  loads it
            times.append(perf_counter() - started)
        is_over.set()
        store.close()
        writer.join()
        assert writer.exitcode == 0
    half, last = median(times), quantiles(times, n=100)[-1]
    return {
        "beside_us": half * MICROSECONDS, "beside_99_us": last * MICROSECONDS,
        "beside_99_times": last / half,
    }


def _commit_on(name: str, path: str, has_begun: Any, is_over: Any) -> None:
    from benchmarks.systems import SYSTEMS

    store = SYSTEMS[name].open(Path(path))
    item = store.item(0)
    while not is_over.is_set():
        item.number += 1
        store.save(0, item)
        has_begun.set()
    store.close()


def above_round_trip(system: System, path: Path, sizes: Sizes) -> dict[str, float]:
    """Loads of items, one by one, beside what goes there and back between two bare sockets, in
    turns."""
    store: Any = system.open(path)
    items = list(store.root()["items"].values())[:SAMPLE]
    with _echo() as there_and_back:
        trips, times = [], []
        for item in items:
            started = perf_counter()
            there_and_back()
            trips.append(perf_counter() - started)
            started = perf_counter()
            item.number  # noqa: B018  loads it
            times.append(perf_counter() - started)
    store.close()
    trip, load = median(trips) * MICROSECONDS, median(times) * MICROSECONDS
    return {"round_trip_us": trip, "alone_us": load, "above_us": load - trip}


@contextmanager
def _echo() -> Iterator[Callable[[], object]]:
    """Give a function that sends 60 bytes to another process, and takes 200 back."""
    context = multiprocessing.get_context("spawn")
    listening = socket.create_server(("127.0.0.1", 0))
    process = context.Process(target=_answer, args=(listening,))
    process.start()
    with listening, socket.create_connection(listening.getsockname()) as client:
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

        def there_and_back() -> None:
            client.sendall(b"q" * 60)
            client.recv(4096)

        there_and_back()
        yield there_and_back
    process.join()


def _answer(listening: socket.socket) -> None:
    client, _ = listening.accept()
    client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    with client:
        while client.recv(4096):
            client.sendall(b"a" * 200)


def idle_clients(system: System, path: Path, sizes: Sizes) -> dict[str, float]:
    """Small commits without, and with, a thousand clients that do nothing; and what these take in
    the server."""
    assert isinstance(system, Served)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    with system.serving(path) as pid:
        store: Any = system.open(path)
        server = psutil.Process(pid)
        alone = _small_us(store)
        before = server.memory_info().rss
        port = int((path / "port").read_text())
        idle = [_register(port) for _ in range(IDLE_CLIENTS)]
        _small_us(store)
        resident = server.memory_info().rss
        beside = _small_us(store)
        for each in idle:
            each.close()
        store.close()
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return {
        "alone_commit_us": alone, "beside_idle_us": beside, "idle_times": beside / alone,
        "idle_resident_mib": resident / KIB / KIB,
        "idle_kib": (resident - before) / IDLE_CLIENTS / KIB,
    }


def _small_us(store: Any) -> float:
    item, times = store.item(0), []
    for _ in range(60):
        started = perf_counter()
        item.number += 1
        store.save(0, item)
        times.append(perf_counter() - started)
    return median(times) * MICROSECONDS


def _register(port: int) -> socket.socket:
    """Connect and register, as ZEO's clients do, and never read again."""
    from objdb_zeo.messages import CALL, Frames, Message, Msgpack, frame

    client = socket.create_connection(("127.0.0.1", port))
    codec, frames = Msgpack(), Frames(1 << 20)
    client.sendall(frame(codec.greeting))
    client.sendall(frame(codec.encode(Message(1, CALL, "register", ("1", False)))))
    found = 0
    while found < 2:  # the greeting, and the reply
        found += len(list(frames.feed(client.recv(4096))))
    return client


def reconnection(system: System, path: Path, sizes: Sizes) -> dict[str, float]:
    """How long a client takes to go on that was cut off while another one changed 10,000 objects,
    and how many of the unchanged it has to load again."""
    import transaction

    from objdb.testing.relay import Relay
    from objdb_zeo.transport import DisconnectedError

    assert isinstance(system, Served)
    with system.serving(path):
        port = int((path / "port").read_text())
        direct: Any = system.open(path)
        batch_times(direct, sizes.objects, CHANGED // 100)
        with Relay(("127.0.0.1", port)) as relay:
            import objdb

            database = objdb.DB(system.connect(relay.address), cache_size=10 * CHANGED)
            manager = transaction.TransactionManager()
            connection = database.open(transaction_manager=manager)
            items = list(connection.root()["items"].values())
            for item in items:
                item.number  # noqa: B018  loads it
            relay.target = ("127.0.0.1", 1)
            relay.cut()
            for item in direct.root()["items"].values(min=len(items) - CHANGED):
                item.number += 1
            direct.commit()
            relay.target = ("127.0.0.1", port)
            started = perf_counter()
            for _ in range(100):
                try:
                    connection.sync()
                    break
                except DisconnectedError:
                    time.sleep(0.001)
            else:
                raise AssertionError("the client does not come back")
            elapsed = perf_counter() - started
            ghosts = sum(item._p_changed is None for item in items)
            connection.close()
            database.close()
        direct.close()
    return {"reconnection_ms": elapsed * MILLISECONDS, "dropped": ghosts - CHANGED}


def iteration(system: System, path: Path, sizes: Sizes) -> dict[str, float]:
    """Iterating over all transactions through the wire, and copying them into a file, per
    record."""
    assert isinstance(system, Served) and isinstance(system, PersistentSystem)
    with system.serving(path):
        client = system.connect(("127.0.0.1", int((path / "port").read_text())))
        started = perf_counter()
        records = sum(1 for each in client.iterator() for record in each if record.data)
        iterated = perf_counter() - started
        with system.unsynced(str(path / "copy.fs")) as copy:
            started = perf_counter()
            copy.copyTransactionsFrom(client)
            copied = perf_counter() - started
        client.close()
    return {
        "iterated_us": iterated / records * MICROSECONDS,
        "copied_us": copied / records * MICROSECONDS,
    }
