"""Commits of tasks that wait for the medium together: what was acknowledged is there after a
loss of power, and a failing disk is told to everybody."""

from __future__ import annotations

import asyncio
import errno
import itertools
from typing import Any

import pytest

import objdb
from objdb.check import check
from objdb.storage.durability import GroupCommit, Ticket
from objdb.testing.faults import SURVIVALS, FaultyFiles
from tests.aio.staging import assert_quiet, run
from tests.database.staging import Gate, Worker

PATH = "disk.fs"


def open_on(files: FaultyFiles) -> objdb.DB:
    storage = objdb.FileStorage(
        PATH, files=files, preallocate_bytes=700, checkpoint_records=6
    )
    return objdb.DB(storage, pool_size=4)


def test_power_is_lost_anywhere() -> None:
    """Tasks commit, and power is lost after each operation on the disk: every commit that a task
    had been told of is there, and none is half there."""
    files = FaultyFiles()
    acknowledged: list[tuple[int, str]] = []

    async def main(db: objdb.DB) -> None:
        async def store(name: str) -> None:
            async with db.transaction() as connection:
                connection.root()[f"{name} a"] = 1
                connection.root()[f"{name} b"] = 1
            acknowledged.append((len(files.operations), name))

        async def several(number: int) -> None:
            for count in range(3):
                # The root is one object: one at a time changes it.
                for _ in range(100):
                    try:
                        await store(f"{number} {count}")
                    except objdb.ConflictError:
                        await asyncio.sleep(0)
                        continue
                    break

        await asyncio.gather(*map(several, range(4)))

    with open_on(files) as db:
        run(main(db))
    assert len(acknowledged) == 12
    for count, survival in itertools.product(range(len(files.operations) + 1), SURVIVALS):
        with open_on(files.crashed(count, survival)) as db:
            check(db.storage).raise_if_damaged()
            names = set(db.run(lambda connection: list(connection.root())))
            for seen_at, name in acknowledged:
                present = {f"{name} a", f"{name} b"} & names
                assert len(present) in (0, 2), (count, survival)
                assert seen_at > count or len(present) == 2, (count, survival, name)


def test_a_sync_that_fails() -> None:
    """When the sync of several commits fails, each task is told that the outcome is unknown, and
    no connection goes on with what may not have happened."""
    files = FaultyFiles()
    with open_on(files) as db:
        with db.transaction() as connection:
            connection.root()["p"] = objdb.PersistentMapping()
            connection.root()["q"] = objdb.PersistentMapping()

        async def change(name: str) -> Any:
            async with db.transaction() as connection:
                connection.root()[name]["n"] = 1

        async def main() -> None:
            sync = db.storage.engine.generation.file.sync

            def fail() -> None:
                raise OSError(errno.EIO, "the disk is broken")

            db.storage.engine.generation.file.sync = fail
            results = await asyncio.gather(change("p"), change("q"), return_exceptions=True)
            assert {type(result) for result in results} == {objdb.StorageFailedError}
            async with db.transaction() as connection:
                assert dict(connection.root()["p"]) == dict(connection.root()["q"]) == {}
            with pytest.raises(objdb.StorageFailedError):
                await change("p")
            db.storage.engine.generation.file.sync = sync
            assert_quiet(db)

        run(main())


def test_nobody_waits_for_who_does_not_wait_yet() -> None:
    """A decided commit whose thread has more to decide does not lead: who waits does, and makes
    it durable too."""
    gates = [Gate(), Gate()]
    coming, published = iter(gates), []
    group = GroupCommit(lambda: next(coming).pass_through(), lambda t: published.append(t.tid))
    first, later, last = (
        Ticket(bytes([number]) * 8, lambda tid: None)
        for number in range(3)
    )
    group.join(first)
    leading = Worker(lambda: group.wait(first))
    gates[0].wait_until_reached()
    group.join(later, waits_at_once=False)
    group.join(last)
    waiting = Worker(lambda: group.wait(last))
    gates[0].open()
    gates[1].wait_until_reached()  # `last` leads, though `later` came before
    leading.finish()
    assert published == [first.tid]
    gates[1].open()
    waiting.finish()
    assert published == [first.tid, later.tid, last.tid]
    assert group.unpublished == ()
    group.wait(later)  # is settled: there is no third sync


def test_alone_it_leads_when_it_waits() -> None:
    """A commit that waits later leads then, if nobody else has come; one that comes while
    another leads is woken."""
    gates = [Gate(), Gate()]
    coming, published = iter(gates), []
    group = GroupCommit(lambda: next(coming).pass_through(), lambda t: published.append(t.tid))
    one, two = (
        Ticket(bytes([number]) * 8, lambda tid: None)
        for number in range(2)
    )
    group.join(one, waits_at_once=False)
    group.join(two, waits_at_once=False)
    workers = [Worker(lambda: group.wait(one)), Worker(lambda: group.wait(two))]
    gates[0].wait_until_reached()
    gates[0].open()
    for worker in workers:
        worker.finish()
    assert published == [one.tid, two.tid]
    assert not gates[1].look(0.01)
