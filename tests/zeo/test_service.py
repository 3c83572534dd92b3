"""Operating a server: settings, status, restarts, stops, and what a service manager is told."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import stat
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

import objdb
from objdb.errors import PackError, UsageError
from objdb.ids import NO_TID, ROOT_OID
from objdb.storage.memory import MappingStorage
from objdb.testing.helpers import commit
from objdb.tools.main import main
from objdb_zeo.listening import Access, Listening, address_of, listen
from objdb_zeo.protocol.served import Served
from objdb_zeo.server import Server
from objdb_zeo.service import Service
from objdb_zeo.systemd import Notifier, inherited_sockets
from objdb_zeo.upkeep import packing
from tests.zeo.commanding import commanded, wait_for
from tests.zeo.raw import NOW, Raw, begin, message
from tests.zeo.serving import Serving


def run(*arguments: str, code: int = 0) -> str:
    """Run the command in this process; return what it prints."""
    result = CliRunner().invoke(main, list(arguments))
    assert result.exit_code == code, result.output
    return result.output


SETTINGS = """
[calendar]
storage = "memory:"

[server]
name = {main = "main.fs", other = "sqlite:other.sqlite?autopack=every_days:1"}
address = ["127.0.0.1:0", "unix:sock"]
group = "%d"
pid_file = "pid"
autopack = {growth_bytes = 1000000}
vote-seconds = 10
clients = %d
"""


def write_settings(folder: Path, clients: int, more: str = "") -> str:
    """Write a settings file; return its path."""
    path = folder / "objdb.toml"
    path.write_text(SETTINGS % (os.getgid(), clients) + more)
    return str(path)


def test_a_servers_life(tmp_path: Path) -> None:
    """A server with a settings file: status, reload, restart under load, stop."""
    path = write_settings(tmp_path, 50)
    with objdb.open_databases(path) as databases:
        assert list(databases) == ["calendar"]
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    with commanded(elsewhere, "--settings", path) as command:
        tcp, unix = command.addresses
        assert stat.S_IMODE((tmp_path / "sock").stat().st_mode) == 0o660
        assert (tmp_path / "main.fs").exists()
        status = json.loads(run("serve", "--status", "--address", tcp, "--json"))
        assert set(status[tcp]) == {"main", "other"}
        shown = run("serve", "--status", "--address", unix)
        assert "connections" in shown and "other" in shown
        told = run("serve", "--settings", path, code=1)
        assert f"a server runs already (process {command.process.pid})" in told

        for number, change, words in (
            (signal.SIGHUP, (51, "client = 3"), "has client, which there is not; did you mean "),
            (signal.SIGUSR2, (51, "client = 3"), "the server does not restart, since"),
            (signal.SIGHUP, (1,), "clients=1,"),
            (signal.SIGHUP, (52, "read_only = true"), "--read-only changed, which takes"),
        ):
            write_settings(tmp_path, *change)
            command.process.send_signal(number)
            command.says(words)
        assert "clients=52," in command.log

        write_settings(tmp_path, 53)
        with objdb.DB(f"zeo://{tcp}?storage=main&wait_seconds=30") as db:
            restart_under_load(command, db, tcp, path)
        told = run("serve", "--stop", "--settings", path)
        assert told == f"process {command.process.pid} has stopped\n"
        assert command.process.wait(20) == 0
        assert {each.name for each in tmp_path.iterdir()}.isdisjoint({"sock", "pid"})
        assert not (elsewhere / "ready").exists()
    assert "there is no such file" in run("serve", "--stop", "--settings", path, code=1)


def restart_under_load(command: Any, db: objdb.DB, address: str, settings: str) -> None:
    """Restart the server while one thread commits, and one connects."""
    goes_on, failures, counts = threading.Event(), [], [0, 0]

    def commits(connection: Any) -> None:
        root = connection.root()
        root["n"] = root.get("n", 0) + 1

    def repeat(work: Callable[[], object], number: int) -> None:
        try:
            while not goes_on.is_set():
                work()
                counts[number] += 1
        except BaseException as error:
            failures.append(error)

    where = address.rpartition(":")
    threads = [
        threading.Thread(target=repeat, args=(lambda: db.run(commits), 0)),
        threading.Thread(target=repeat, args=(
            lambda: socket.create_connection((where[0], int(where[2])), 30).close(), 1)),
    ]
    for thread in threads:
        thread.start()
    wait_for(lambda: failures or min(counts) > 10, "there is no load")
    assert not failures
    told = run("serve", "--restart", "--settings", settings)
    assert f"process {command.process.pid} restarts" in told
    command.says("restarting")
    wait_for(lambda: command.log.count("listening at") == 4, "it did not come back", 30)
    before = list(counts)
    wait_for(lambda: failures or min(map(int.__sub__, counts, before)) > 10, "nothing goes on")
    goes_on.set()
    for thread in threads:
        thread.join(30)
    assert not failures
    with db.transaction() as connection:
        assert connection.root()["n"] == counts[0]


def test_a_stale_pid_file(tmp_path: Path) -> None:
    """A pid file that nobody has locked stops nobody, whatever number is in it."""
    path = tmp_path / "pid"
    path.write_text(f"{os.getpid()}\n")
    told = run("serve", "--stop", "--pid-file", str(path), code=1)
    assert "was left by a server that is gone" in told and not path.exists()
    assert "needs the --pid-file" in run("serve", "--stop", code=2)


# Puts descriptors where a service manager does, and runs Python.
ACTIVATE = """
import fcntl, os, sys
given = [fcntl.fcntl(int(each), fcntl.F_DUPFD, 50) for each in sys.argv[1].split(",")]
for number, each in enumerate(given, 3):
    os.dup2(each, number)
os.environ.update(LISTEN_FDS=str(len(given)), LISTEN_PID=str(os.getpid()))
os.execv(sys.executable, [sys.executable, *sys.argv[2:]])
"""


def activated(sockets: list[Any], *arguments: str) -> list[str]:
    """Return the command that runs Python with these descriptors from 3 on."""
    given = ",".join("0" if each is sys.stdin else str(each.fileno()) for each in sockets)
    return [sys.executable, "-c", ACTIVATE, given, *arguments]


def test_what_a_service_manager_gives_and_is_told(tmp_path: Path) -> None:
    """Sockets are inherited, and go on; readiness, reloads, stops and the watchdog are told."""
    notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    notify.bind(str(tmp_path / "notify"))
    notify.settimeout(20)
    tcp, unix = socket.create_server(("127.0.0.1", 0)), socket.socket(socket.AF_UNIX)
    unix.bind(str(tmp_path / "sock"))
    unix.listen()
    environment = {
        **os.environ, "NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "100000",
    }
    log = tmp_path / "log"
    with log.open("wb") as writing:
        process = subprocess.Popen(
            activated([tcp, unix], "-m", "objdb", "serve", "data.fs"),
            cwd=tmp_path, stderr=writing, env=environment,
            pass_fds=[tcp.fileno(), unix.fileno()],
        )

    def told(words: str) -> str:
        while words not in (found := notify.recv(1000).decode()):
            assert process.poll() is None, log.read_text()
        return found

    try:
        port = tcp.getsockname()[1]
        status = told("READY=1")
        assert f"127.0.0.1:{port}" in status and f"unix:{tmp_path}/sock" in status
        for address in (f"127.0.0.1:{port}", f"unix:{tmp_path}/sock"):
            with Raw(address) as client:
                assert client.call("ping") is None
        told("WATCHDOG=1")
        process.send_signal(signal.SIGHUP)
        assert "MONOTONIC_USEC=" in told("RELOADING=1")
        told("READY=1")
        process.send_signal(signal.SIGUSR2)
        told("RELOADING=1")
        with Raw(f"127.0.0.1:{port}") as client:  # accepted by the next program
            told("READY=1")
            assert client.call("ping") is None
            process.terminate()
            told("STOPPING=1")
        assert process.wait(20) == 0
        assert (tmp_path / "sock").exists()  # it is the service manager's
    finally:
        process.kill()
        process.wait()
        for each in (notify, tcp, unix):
            each.close()


def test_the_watchdog_is_not_told_of_failures(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The watchdog is told no more once a storage fails; the log has the error."""
    storage = MappingStorage()

    def fail() -> Any:
        raise OSError("the disk is gone")

    async def watch() -> None:
        server = Server({"1": storage}, [str(tmp_path / "sock")])
        storage.lastTransaction = fail  # type: ignore[method-assign]
        service = Service(server, reload=lambda: True, ready=lambda addresses: None)
        service._notifier.watchdog_seconds = 0.02
        await service._watch()
        await server.close()

    asyncio.run(watch())
    assert "the storage '1' fails" in caplog.text and "the disk is gone" in caplog.text
    storage.close()


def test_the_watchdog_wants_an_answer(tmp_path: Path) -> None:
    """The watchdog is told nothing while a storage does not answer."""
    storage = MappingStorage()
    asked, answers = threading.Event(), threading.Event()
    last = storage.lastTransaction

    def slow() -> Any:
        asked.set()
        assert answers.wait(20)
        return last()

    async def serve() -> None:
        server = Server({"1": storage}, [str(tmp_path / "sock")])
        service = Service(server, reload=lambda: True, ready=lambda addresses: None)
        service._notifier.watchdog_seconds = 0.02
        said: list[str] = []
        service._notifier.tell = lambda *lines: said.append(lines[0])  # type: ignore[method-assign]
        storage.lastTransaction = slow  # type: ignore[method-assign]
        running = asyncio.ensure_future(service.run())
        while not asked.is_set():
            await asyncio.sleep(0.01)
        assert said == ["READY=1"]
        answers.set()
        while said.count("WATCHDOG=1") < 3:
            await asyncio.sleep(0.01)
        os.kill(os.getpid(), signal.SIGTERM)
        assert await running is None
        assert said[-1] == "STOPPING=1"

    asyncio.run(serve())
    storage.close()


def test_nobody_is_told() -> None:
    """Without a service manager nothing is told; one that is gone is logged, and harms nothing."""
    Notifier({}).tell("READY=1")
    gone = Notifier({"NOTIFY_SOCKET": "@objdb-nobody", "WATCHDOG_USEC": "5", "WATCHDOG_PID": "1"})
    gone.tell("READY=1")
    assert gone.watchdog_seconds is None


def test_addresses_and_inherited_sockets(tmp_path: Path) -> None:
    """A restarted server keeps the sockets of its addresses, and closes its others; those of the
    service manager stay. `localhost` and port 0 are covered by what they once led to."""
    path, other = str(tmp_path / "sock"), str(tmp_path / "other")
    first = listen([path, other, ("localhost", 0)])
    ports = {each.socket.getsockname()[1] for each in first[2:]}
    assert len(ports) == 1 and all(each.is_own for each in first)
    given = Listening(socket.create_server(("127.0.0.1", 0)), is_own=False)
    second = listen([path, ("localhost", 0)], [*first, given])
    assert [address_of(each.socket) for each in second] == [
        path, *(address_of(each.socket) for each in first[2:]), address_of(given.socket)
    ]
    assert os.path.exists(path) and not os.path.exists(other)
    with pytest.raises(UsageError, match="the address is in use"):
        listen([other, path])
    assert not os.path.exists(other)
    for each in second:
        each.close()
    assert not os.path.exists(path)


def test_descriptors_that_do_not_listen() -> None:
    """Descriptors for another process are left alone; those that do not listen are refused."""
    assert inherited_sockets({"LISTEN_PID": "1", "LISTEN_FDS": "1"}) == []
    code = (
        "import os, sys, socket\n"
        "from objdb_zeo.systemd import inherited_sockets\n"
        "inherited_sockets({'LISTEN_PID': str(os.getpid()), 'LISTEN_FDS': '1'})"
    )
    with socket.socket() as silent:
        for given, words in ((silent, "does not listen"), (sys.stdin, "is no socket")):
            done = subprocess.run(
                activated([given], "-c", code), pass_fds=[silent.fileno()],
                stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60,
            )
            assert done.returncode == 1 and words in done.stderr


@pytest.mark.parametrize(("arguments", "words"), [
    (["--owner", "no-such-user"], "there is no such user"),
    (["--group", "no-such-group"], "there is no such group"),
    (["--umask", "9"], "octal"), (["--autopack", "days:1"], "autopack needs"),
    (["--address", "unix:FOLDER/none/sock"], "no such directory"),
    (["--address", "unix:FOLDER/file"], "a file that is no socket"),
    (["--address", "192.0.2.1:9100"], "no such address"),
    (["--address", "no-such-host.invalid:9100"], "no-such-host.invalid:9100: "),
    (["--status", "--address", "unix:FOLDER/none"], "no server answers"),
    (["--settings", "FOLDER/file"], "has no table [server]"),
    (["--settings", "FOLDER/wrong.toml"], "[server] clients: 'many' is not a valid integer"),
    (["--settings", "FOLDER/worse.toml"], "[server] clients: True is not valid"),
    (["--settings", "FOLDER/none.toml"], "No such file"),
])
def test_wrong_usage(tmp_path: Path, arguments: list[str], words: str) -> None:
    """What cannot be done is told, and what to do."""
    (tmp_path / "file").touch()
    (tmp_path / "wrong.toml").write_text('[server]\nclients = "many"\n')
    (tmp_path / "worse.toml").write_text("[server]\nclients = true\n")
    given = [each.replace("FOLDER", str(tmp_path)) for each in arguments]
    code = 2 if arguments[0] in ("--umask", "--autopack") else 1
    assert words in run("serve", "memory:", *given, code=code)


def test_access() -> None:
    """Owners and groups are names or numbers; with a group, the group may connect."""
    assert Access.named(None, None, None) == Access(-1, -1, 0o177)
    assert Access.named("root", "0", None) == Access(0, 0, 0o117)
    assert Access.named(None, None, 0) == Access(-1, -1, 0)
    with pytest.raises(UsageError):
        Access.named("", None, None)


def test_a_stop_lets_votes_end() -> None:
    """A server that stops lets who has voted finish, and others load; who votes then is not
    answered, and can try again elsewhere."""
    storage = MappingStorage()
    serial = commit(storage, {ROOT_OID: (NO_TID, b"root")})
    serving = Serving({"1": storage}).__enter__()
    host, port = serving.address
    voted, late = Raw(f"{host}:{port}"), Raw(f"{host}:{port}")
    for client in (voted, late):
        client.send(begin(1) + message("storea", ROOT_OID, serial, b"new", 1))
    assert voted.call("vote", 1) == ()
    stopping = threading.Thread(target=serving.__exit__)
    stopping.start()
    [served] = serving.server.served.values()  # type: ignore[union-attr]
    wait_for(lambda: served._is_stopping, "it does not stop")
    late.send(message("vote", 1, id=5))
    assert late.call("loadBefore", ROOT_OID, NOW)[1] == serial
    tid = voted.call("tpc_finish", 1)
    assert tid > serial
    assert late.is_closed() and voted.is_closed()
    stopping.join(20)
    assert not stopping.is_alive()
    for client in (voted, late):
        client.close()


def test_a_stop_cancels_packs() -> None:
    """A pack under way ends when the server stops."""
    storage = MappingStorage()
    served = Served("1", storage)

    def pack(until: Any, references: Any, *, gc: bool, progress: Any) -> None:
        while True:
            progress("copy", 1, 2)
            served.stop()

    storage.pack = pack  # type: ignore[assignment, method-assign]
    with pytest.raises(PackError, match="the server stops"):
        served.pack(NO_TID)
    storage.close()


def test_a_storage_packs_itself(tmp_path: Path) -> None:
    """A served storage that has grown is packed, and its clients are told."""
    storage = objdb.FileStorage(tmp_path / "data.fs")
    serial = commit(storage, {ROOT_OID: (NO_TID, b"x")})
    setting = objdb.AutoPack(growth_bytes=50_000, days=0)
    with Serving({"1": storage}) as serving:
        assert serving.server is not None
        thread = packing(serving.server.served["1"], setting)
        for i in range(20):
            serial = commit(storage, {ROOT_OID: (serial, b"%d" % i * 5000)})
        with Raw(f"127.0.0.1:{serving.address[1]}") as client:
            before = storage.getSize()
            assert thread.look()
            assert storage.getSize() < before / 5
            assert client.call("loadBefore", ROOT_OID, NOW)[1] == serial
