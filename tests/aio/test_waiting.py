"""The event loop goes on while the database waits. Told by the order of events, not by clocks."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path
from typing import Any

import pytest

import objdb
from objdb import task_manager
from tests.aio.staging import Log, add_one, assert_quiet, reached, run, two_people, values
from tests.conftest import Databases
from tests.database.staging import Gate, Worker
from tests.database.test_closing import GatedFiles


class Stopping(objdb.Persistent):
    """Stops while it is stored."""

    gate: Gate

    def __getstate__(self) -> Any:
        self.gate.pass_through()
        return super().__getstate__()


@pytest.fixture
def files() -> GatedFiles:
    return GatedFiles()


@pytest.fixture
def people(databases: Databases, tmp_path: Path, files: GatedFiles) -> objdb.DB:
    storage = objdb.FileStorage(tmp_path / "data.fs", files=files)
    db = databases.open(storage, pool_size=3)
    two_people(db)
    return db


def test_while_a_commit_syncs(people: objdb.DB, files: GatedFiles) -> None:
    """While a commit waits for the disk, other tasks run, and nobody sees it; then everybody
    does."""
    async def main() -> None:
        gate = files.gates["sync"] = Gate()
        commit = asyncio.create_task(people.arun(add_one))
        await reached(gate)
        assert not commit.done()
        async with people.transaction() as connection:
            assert connection.root()["p"].value == 0
        gate.open()
        await commit
        assert values(people) == (1, 1)

    run(main())
    assert_quiet(people)


def test_commits_share_a_sync(people: objdb.DB, files: GatedFiles) -> None:
    """Commits that come while another one syncs wait together for the next sync."""
    async def change(name: str) -> None:
        async with people.transaction() as connection:
            connection.root()[name].value += 1

    async def main() -> None:
        gate = files.gates["sync"] = Gate()
        first = asyncio.create_task(change("p"))
        await reached(gate)
        second = files.gates["sync"] = Gate()
        others = [asyncio.create_task(change("q"))]
        with people.transaction() as connection:
            connection.root()["new"] = 1
            commit = connection.transaction_manager
            worker = Worker(commit.commit)
            gate.open()
            await first
            await reached(second)
            second.open()
            await asyncio.gather(*others)
            await asyncio.to_thread(worker.finish)

    run(main())
    assert values(people) == (1, 1)


def test_acommit_too(people: objdb.DB, files: GatedFiles) -> None:
    """`task_manager.acommit` leaves the event loop alone as well."""
    async def main() -> None:
        connection = await people.aopen()
        add_one(connection)
        gate = files.gates["sync"] = Gate()
        commit = asyncio.create_task(task_manager.acommit())
        await reached(gate)
        gate.open()
        await commit
        connection.close()

    run(main())
    assert values(people) == (1, 1)


def test_while_another_participant_waits(people: objdb.DB) -> None:
    """While a data manager waits in its vote, other tasks run; those that commit wait for it,
    which leaves the loop alone too."""
    async def main() -> None:
        log = Log()
        gate = log.gates["tpc_vote"] = Gate()

        async def slow() -> None:
            async with people.transaction() as connection:
                connection.root()["slow"] = 1
                connection.transaction_manager.get().join(log)

        voting = asyncio.create_task(slow())
        await reached(gate)  # the database has voted, and holds the commit slot
        other = asyncio.create_task(people.arun(add_one))
        async with people.transaction() as connection:
            assert "slow" not in connection.root()
        gate.open()
        await asyncio.gather(voting, other)

    run(main())
    assert values(people) == (1, 1)


def test_a_thread_does_not_wait_for_the_next_commits(people: objdb.DB, files: GatedFiles) -> None:
    """A thread that commits is not kept by commits of tasks that are decided and not synced: it
    syncs for them, if it comes first."""
    stopped = Stopping.gate = Gate()

    async def main() -> None:
        async def first() -> None:
            async with people.transaction() as connection:
                connection.root()["p"].value = 1

        async def second() -> None:
            async with people.transaction() as connection:
                connection.add(Stopping())

        # Both wait behind a commit that syncs, and are then committed back to back.
        gate = files.gates["sync"] = Gate()
        before = asyncio.create_task(people.arun(lambda c: c.root().update(a=1)))
        await reached(gate)
        tasks = [asyncio.create_task(first()), asyncio.create_task(second())]
        while people.committer._jobs.qsize() < 2:
            await asyncio.sleep(0.001)
        gate.open()
        await before
        await reached(stopped)  # the first is decided
        assert not tasks[0].done()
        await asyncio.to_thread(people.run, lambda c: c.root().update(b=2))
        assert values(people)[0] == 1
        stopped.open()
        await asyncio.gather(*tasks)

    run(main())


def test_between_tries(people: objdb.DB, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between tries the loop goes on: the wait is asyncio's."""
    monkeypatch.setattr("time.sleep", lambda seconds: 1 / 0)
    tries: list[int] = []

    async def main() -> None:
        def interfered(connection: objdb.Connection) -> None:
            tries.append(1)
            add_one(connection)
            if len(tries) < 3:
                people.run(add_one)

        await people.arun(interfered)

    run(main())
    assert values(people) == (3, 3)


def test_closing_waits_for_commits(people: objdb.DB, files: GatedFiles) -> None:
    """`close` lets the commits that were handed over come to their end, and stops the threads;
    tasks that come later are told."""
    async def main() -> None:
        gate = files.gates["sync"] = Gate()
        commit = asyncio.create_task(people.arun(add_one))
        await reached(gate)
        in_block, go_on = asyncio.Event(), asyncio.Event()

        async def late() -> None:
            async with people.transaction() as connection:
                add_one(connection)
                in_block.set()
                await go_on.wait()

        later = asyncio.create_task(late())
        await in_block.wait()
        closing = asyncio.create_task(asyncio.to_thread(people.close))
        gate.open()
        await closing
        await commit
        go_on.set()
        with pytest.raises(objdb.StorageClosedError):
            await later
        assert not [t for t in threading.enumerate() if "worker" in t.name]

    run(main())
    with objdb.DB(people.storage.getName()) as db:
        assert values(db) == (1, 1)


def test_closing_in_the_loop(databases: Databases) -> None:
    """The loop itself may close the database in the middle of commits: they are finished."""
    db = databases.open("data.fs", pool_size=5)
    with db.transaction() as connection:
        connection.root().update({f"p{number}": 0 for number in range(20)})

    async def main() -> int:
        async def change(name: str) -> None:
            async with db.transaction() as connection:
                connection.root()[name] = 1

        tasks = [asyncio.create_task(change(f"n{number}")) for number in range(20)]
        await asyncio.sleep(0)
        db.close()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        for result in results:
            assert result is None or isinstance(result, objdb.ObjdbError), result
        return sum(result is None for result in results)

    done = run(main())
    with databases.open("data.fs").transaction() as connection:
        assert sum(name[0] == "n" for name in connection.root()) >= done
