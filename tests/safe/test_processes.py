"""Several processes with one safe: nothing is lost between them, whoever dies, and when."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from objdb.errors import StorageForkedError, StorageLockedError
from objdb.safe import Safe, open_safe
from objdb.safe.gate import Gate
from tests.safe.conftest import Open
from tests.safe.kills import campaign

ROOT = Path(__file__).parents[2]


def in_child(work: Callable[[], Any]) -> None:
    """Fork, call *work* in the child, and wait for it to end well."""
    assert _forked(work) == 0


def _forked(work: Callable[[], Any]) -> int:
    """Fork, call *work* in the child, and return how it ended."""
    pid = os.fork()
    if pid == 0:
        try:
            work()
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    return os.waitpid(pid, 0)[1]


def dies_inside(safe: Safe, action: Callable[[Any], Any] | None = None) -> None:
    """Fork a child that kills itself inside the environment of Berkeley DB, after *action*."""

    def die(table: Any) -> None:
        kept = action(table) if action else None  # a transaction that is dropped is aborted
        os.kill(os.getpid(), signal.SIGKILL)
        del kept

    table: Any = safe.table
    assert _forked(lambda: table._run(die, table)) == signal.SIGKILL


def generation(safe: Safe) -> bytes:
    """What the gate has: whether somebody is inside, and how often it was recovered."""
    return (safe.path / "gate").read_bytes()


@pytest.mark.abandons
@pytest.mark.timeout(300)
@pytest.mark.parametrize("times", [10])
def test_killed_while_writing(tmp_path: Path, shared_backend: str, times: int) -> None:
    """Processes that are killed at any moment have lost nothing that they acknowledged, and
    others write on."""
    seed = random.randrange(10**9)
    try:
        campaign(tmp_path / "safe", shared_backend, times, random.Random(seed))
    except AssertionError as error:
        raise AssertionError(f"seed {seed}: {error}") from error


def test_several_processes_count(opened: Open, shared_backend: str) -> None:
    """Processes that change the same value lose nothing."""
    safe = opened(shared_backend)
    script = (
        "import sys\nfrom objdb.safe import open_safe\nsafe = open_safe(sys.argv[1])\n"
        "for _ in range(100): safe.change('count', lambda count: count + 1, 0)\n"
    )
    processes = [
        subprocess.Popen([sys.executable, "-c", script, str(safe.path)], cwd=ROOT)
        for _ in range(4)
    ]
    for _ in range(100):
        safe.change("count", lambda count: count + 1, 0)
    assert [process.wait(60) for process in processes] == [0] * 4
    assert safe["count"] == 500


def _add(path: Path, count: int) -> None:
    with open_safe(path) as safe:
        for _ in range(count):
            safe.change("count", lambda count: count + 1, 0)


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_multiprocessing(opened: Open, shared_backend: str, method: Any) -> None:
    """Processes of multiprocessing go on with the safe, however they are started."""
    safe = opened(shared_backend)
    safe["count"] = 0
    context = multiprocessing.get_context(method)
    processes = [context.Process(target=_add, args=(safe.path, 20)) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0] * 3
    assert safe["count"] == 60


def test_fork(opened: Open, shared_backend: str) -> None:
    """The child of a fork goes on with the same safe, and so does its parent, whichever of them
    closes it."""
    safe = opened(shared_backend)
    safe["parent"] = 1

    in_child(lambda: None)

    def work() -> None:
        assert safe["parent"] == 1
        safe["child"] = 2
        in_child(lambda: safe.__setitem__("grandchild", 3))
        assert safe["grandchild"] == 3
        safe.close()

    in_child(work)
    safe["parent"] = 4
    assert safe == {"parent": 4, "child": 2, "grandchild": 3}


def test_parent_closes_first(opened: Open, shared_backend: str) -> None:
    """A child writes on when its parent has closed the safe, and nothing of it is lost."""
    safe = opened(shared_backend)
    safe["a"] = 1
    ready, go = multiprocessing.Pipe()

    def work() -> None:
        safe["b"] = 2
        go.send("written")
        go.recv()
        safe["c"] = 3

    def close() -> None:
        assert ready.poll(60) and ready.recv() == "written"
        safe.close()
        ready.send("closed")

    thread = threading.Thread(target=close)
    thread.start()
    in_child(work)
    thread.join(60)
    ready.close()
    go.close()
    assert opened() == {"a": 1, "b": 2, "c": 3}


def test_fork_in_the_middle(opened: Open, shared_backend: str) -> None:
    """A child that is forked while other threads write can write, too."""
    safe = opened(shared_backend)
    stop = threading.Event()

    def write() -> None:
        while not stop.is_set():
            safe.change("count", lambda count: count + 1, 0)

    threads = [threading.Thread(target=write) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        for number in range(10):
            in_child(lambda number=number: safe.__setitem__(("child", number), number))
    finally:
        stop.set()
        for thread in threads:
            thread.join(60)
    assert sorted(key[1] for key in safe if isinstance(key, tuple)) == list(range(10))


def test_child_that_exits(opened: Open, shared_backend: str) -> None:
    """A child that ends as programs do, not used or used, does no harm to its parent's safe."""
    script = (
        "import os, sys\nfrom objdb.safe import open_safe\n"
        "safe = open_safe(sys.argv[1])\nsafe['a'] = 1\n"
        "for use in (False, True):\n"
        "    pid = os.fork()\n"
        "    if not pid:\n"
        "        if use: safe['child'] = 2\n"
        "        sys.exit(0)\n"
        "    assert os.waitpid(pid, 0)[1] == 0\n"
        "    safe['a'] = safe['a'] + 1\n"
        "assert dict(safe) == {'a': 3, 'child': 2}\n"
    )
    safe = opened(shared_backend)
    subprocess.run([sys.executable, "-c", script, str(safe.path)], cwd=ROOT, check=True, timeout=60)
    assert safe == {"a": 3, "child": 2}


def test_file_is_for_one_process(opened: Open) -> None:
    """The backend file has one process: another one, and a forked child, is told so."""
    safe = opened("file")
    safe["a"] = 1
    script = (
        "import sys\nfrom objdb.safe import open_safe\n"
        "try: open_safe(sys.argv[1])\n"
        "except Exception as error: print(type(error).__name__)\n"
    )
    found = subprocess.run(
        [sys.executable, "-c", script, str(safe.path)], cwd=ROOT, check=True, timeout=60,
        capture_output=True, text=True,
    )
    assert found.stdout.strip() == StorageLockedError.__name__

    def work() -> None:
        with pytest.raises(StorageForkedError, match="parent process"):
            safe["a"] = 2

    in_child(work)
    assert safe["a"] == 1


@pytest.mark.abandons
def test_death_inside(opened: Open) -> None:
    """Who dies inside the environment, in the middle of a transaction even, leaves a mark, and the
    next one recovers: what was committed is there, what was not is not."""
    safe = opened("berkeley")
    safe["a"] = 1

    def half(table: Any) -> Any:
        txn = table._environment.txn_begin()
        for number in range(2000):
            table._table.put(b"shalf%d" % number, bytes(4) + b"x" * 100, txn=txn)
        return txn

    before = generation(safe)
    dies_inside(safe, half)
    assert generation(safe)[0] == 1
    assert safe == {"a": 1}
    assert generation(safe) > before and generation(safe)[0] == 0
    safe["b"] = 2
    in_child(lambda: safe.__setitem__("c", 3))
    assert safe == {"a": 1, "b": 2, "c": 3}


@pytest.mark.abandons
def test_death_with_others_there(opened: Open) -> None:
    """Everybody who has the safe open goes on after a death: the one that recovers it, and those
    that had nothing to do with it."""
    safe = opened("berkeley")
    safe["a"] = 1
    script = (
        "import sys\nfrom objdb.safe import open_safe\n"
        "safe = open_safe(sys.argv[1])\n"
        "for line in sys.stdin:\n"
        "    safe[line.strip()] = True\n"
        "    print(sorted(safe), flush=True)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script, str(safe.path)], cwd=ROOT, text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    ) as other:
        assert other.stdin and other.stdout

        def tell(word: str) -> str:
            print(word, file=other.stdin, flush=True)
            return other.stdout.readline().strip()  # type: ignore[union-attr]

        assert tell("b") == "['a', 'b']"
        dies_inside(safe)
        assert tell("c") == "['a', 'b', 'c']"  # the other one recovers
        safe["d"] = True
        dies_inside(safe)
        safe["e"] = True  # this one recovers
        assert tell("f") == "['a', 'b', 'c', 'd', 'e', 'f']"
        other.stdin.close()
        assert other.wait(60) == 0
    assert len(safe) == 6


@pytest.mark.abandons
def test_interrupted(opened: Open) -> None:
    """An access that is interrupted is either done or not, and the next one goes on."""
    safe = opened("berkeley")
    safe["a"] = 1

    def interrupt(table: Any) -> None:
        raise KeyboardInterrupt

    table: Any = safe.table
    with pytest.raises(KeyboardInterrupt):
        table._run(interrupt, table)
    assert generation(safe)[0] == 1
    in_child(lambda: safe.__setitem__("b", 2))
    assert safe == {"a": 1, "b": 2}


@pytest.mark.abandons
def test_closing_is_interrupted(opened: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever is interrupted while waiting to close a safe leaves its environment alone: others
    may be in it."""
    safe = opened("berkeley")
    safe["a"] = 1

    def interrupt(gate: Gate) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Gate, "lock", interrupt)
        with pytest.raises(KeyboardInterrupt):
            safe.close()
    table: Any = safe.table
    assert table._environment is None and table._table is None
    assert opened() == {"a": 1}


def test_the_first_one_recovers(opened: Open) -> None:
    """Who finds a safe that nobody has open does not trust what is there: a loss of power may
    have left the memory of back then."""
    safe = opened("berkeley")
    safe["a"] = 1
    before = generation(safe)
    safe.close()
    for region in safe.path.glob("__db.*"):
        region.write_bytes(b"\xff" * region.stat().st_size)
    again = opened()
    assert again == {"a": 1} and generation(again) > before
    now = generation(again)
    in_child(lambda: again["a"])
    assert generation(again) == now


@pytest.mark.abandons
def test_who_recovers_is_not_overlooked(opened: Open) -> None:
    """Who opens a safe in which somebody died recovers it, and counts as one who has it open: the
    next ones do not recover it again."""
    safe = opened("berkeley")
    safe["a"] = 1
    dies_inside(safe)
    safe.close()
    again = opened()
    assert again == {"a": 1}
    now = generation(again)
    for _ in range(2):
        in_child(lambda: again["a"])
    assert generation(again) == now


def test_the_log_is_bounded(opened: Open) -> None:
    """However much is written, old log files go."""
    safe = opened("berkeley")
    for number in range(60):
        safe["key"] = os.urandom(1 << 20) + bytes([number])
    assert safe["key"][-1] == 59
    assert sum(file.stat().st_size for file in safe.path.glob("log.*")) < 30 << 20


def test_many_in_one_transaction(opened: Open, shared_backend: str) -> None:
    """A transaction may be larger than the cache and the log's files."""
    safe = opened(shared_backend)
    safe.update((number, bytes(500)) for number in range(30_000))
    assert len(safe) == 30_000
    safe.clear()
    assert len(safe) == 0


def test_threads_run_meanwhile(opened: Open) -> None:
    """While one thread waits for the gate, which another process keeps, others run."""
    import fcntl

    safe = opened("berkeley")
    with open(safe.path / "gate", "rb") as gate:
        fcntl.flock(gate, fcntl.LOCK_EX)
        thread = threading.Thread(target=safe.__setitem__, args=("a", 1))
        thread.start()
        assert sum(range(1000)) and thread.is_alive()
        fcntl.flock(gate, fcntl.LOCK_UN)
        thread.join(60)
    assert safe == {"a": 1}
