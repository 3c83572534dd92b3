"""The threads that wait in place of coroutines."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest

from objdb.connection import workers as workers_module
from objdb.connection.workers import Job, Workers
from objdb.errors import StorageClosedError
from tests.aio.staging import reached, run
from tests.conftest import ROOT
from tests.database.staging import Gate, Worker


@pytest.fixture
def workers() -> Iterator[Workers]:
    made = Workers("test", 2)
    yield made
    made.close()


def threads() -> int:
    return sum(thread.name == "test worker" for thread in threading.enumerate())


def test_results_and_errors(workers: Workers) -> None:
    """A job returns what its call returned, or raises what it raised, in another thread."""
    async def main() -> None:
        ident = await workers.submit(Job(threading.get_ident)).outcome()
        assert ident != threading.get_ident()
        with pytest.raises(ZeroDivisionError):
            await workers.submit(Job(lambda: 1 / 0)).outcome()
        with pytest.raises(SystemExit):
            await workers.submit(Job(sys.exit)).outcome()

    run(main())


def test_as_many_threads_as_needed(workers: Workers) -> None:
    """There are as many threads as jobs, up to the limit; the rest waits in line."""
    async def main() -> None:
        assert threads() == 0
        gates = [Gate() for _ in range(4)]
        jobs = [workers.submit(Job(gate.pass_through)) for gate in gates]
        await reached(gates[0])
        await reached(gates[1])
        assert threads() == 2
        assert not gates[2].look(0.01)
        for gate in gates:
            gate.open()
        await asyncio.gather(*(job.outcome() for job in jobs))

    run(main())


def test_idle_threads_end(workers: Workers, monkeypatch: pytest.MonkeyPatch) -> None:
    """A thread without anything to do ends; another is started when there is something again."""
    monkeypatch.setattr(workers_module, "_IDLE_SECONDS", 0.01)

    async def main() -> None:
        for _ in range(3):
            assert await workers.submit(Job(lambda: 7)).outcome() == 7
            while threads():
                await asyncio.sleep(0.005)

    run(main())


def test_closing_while_a_thread_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """Closing waits for a thread that is just about to end by itself, too."""
    monkeypatch.setattr(workers_module, "_IDLE_SECONDS", 0.001)
    gate = Gate()

    class Slow(Workers):
        def _work(self) -> None:
            super()._work()
            gate.pass_through()

    made = Slow("test", 1)

    async def main() -> None:
        await made.submit(Job(lambda: None)).outcome()

    run(main())
    gate.wait_until_reached()
    closing = Worker(made.close)
    closing.join(0.05)
    assert closing.is_alive()
    gate.open()
    closing.finish()
    assert threads() == 0


def test_many_short_jobs(workers: Workers, monkeypatch: pytest.MonkeyPatch) -> None:
    """No job is lost while threads come and go."""
    monkeypatch.setattr(workers_module, "_IDLE_SECONDS", 0.0001)
    together = Workers("test", 1, together=3)

    async def main() -> None:
        for number in range(500):
            pool = (workers, together)[number % 2]
            jobs = [pool.submit(Job(lambda n=n: n)) for n in range(number % 5)]
            for expected, job in enumerate(jobs):
                assert await job.outcome() == expected

    run(main())
    together.close()


def test_closing(workers: Workers) -> None:
    """Closing waits for what was given, and refuses what comes later."""
    async def main() -> None:
        gate = Gate()
        jobs = [workers.submit(Job(gate.pass_through)) for _ in range(3)]
        await reached(gate)
        closing = asyncio.create_task(asyncio.to_thread(workers.close))
        gate.open()
        await closing
        assert threads() == 0
        await asyncio.gather(*(job.outcome() for job in jobs))
        with pytest.raises(StorageClosedError):
            workers.submit(Job(lambda: 1))

    run(main())


def test_closing_in_a_worker(workers: Workers) -> None:
    """A call may close its own workers: it does not wait for itself."""
    run_in_loop = workers

    async def main() -> None:
        await run_in_loop.submit(Job(run_in_loop.close)).outcome()

    run(main())
    for thread in threading.enumerate():
        if thread.name == "test worker":
            thread.join()


FORGOTTEN = """
import asyncio, objdb
db = objdb.DB(None)

async def main():
    async with db.transaction() as connection:
        connection.root()["n"] = 1
    print("done")

asyncio.run(main())
"""


def test_a_database_that_is_not_closed() -> None:
    """A program that forgets to close its database comes to an end."""
    done = subprocess.run(
        [sys.executable, "-c", FORGOTTEN], capture_output=True, text=True, timeout=30,
        env=os.environ | {"PYTHONPATH": str(ROOT)}, check=True,
    )
    assert (done.stdout, done.stderr) == ("done\n", "")


FORKED = """
import asyncio, os, objdb
db = objdb.DB(objdb.MappingStorage)

async def main():
    async with db.transaction() as connection:
        connection.root()["n"] = objdb.PersistentMapping(a=1)
    db.cacheMinimize()

async def read():
    async with db.transaction() as connection:
        count = await connection.prefetch(connection.root(), depth=1)
        os.write(1, b"%d\\n" % count)

asyncio.run(main())
pid = os.fork()
asyncio.run(read())
if pid:
    os.waitpid(pid, 0)
db.close()
"""


def test_after_a_fork() -> None:
    """A child gets threads of its own, and here, an empty storage of its own."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", FORKED], capture_output=True, text=True, timeout=30,
        env=os.environ | {"PYTHONPATH": str(ROOT)}, check=True,
    )
    assert sorted(done.stdout) == sorted("1\n2\n"), done.stderr
