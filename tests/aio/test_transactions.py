"""Transactions as asynchronous blocks, and trying them again."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest

import objdb
from tests.aio.staging import Log, add_one, assert_quiet, run, two_people, values
from tests.conftest import Databases


@pytest.fixture
def people(db: objdb.DB) -> objdb.DB:
    two_people(db)
    return db


def last(db: objdb.DB) -> Any:
    return list(db.storage.iterator())[-1]


def test_committed_at_the_end(people: objdb.DB) -> None:
    """An asynchronous block that ends is committed, with its note; its connection goes back."""
    async def main() -> None:
        async with people.transaction("a note") as connection:
            add_one(connection)
            await asyncio.sleep(0)
            assert people.statistics().connections_out == 1
            assert values(people) == (0, 0)
        assert_quiet(people)

    run(main())
    assert values(people) == (1, 1)
    assert last(people).description == b"a note"


@pytest.mark.parametrize("error", [RuntimeError, objdb.ConflictError, asyncio.CancelledError])
def test_aborted_by_any_exception(people: objdb.DB, error: type[BaseException]) -> None:
    """A block that raises is aborted, its exception comes through, its connection goes back."""
    async def main() -> None:
        with pytest.raises(error):
            async with people.transaction() as connection:
                add_one(connection)
                raise error("on purpose")
        assert_quiet(people)

    run(main())
    assert values(people) == (0, 0)


def test_a_conflict_at_the_end(people: objdb.DB) -> None:
    """A block whose commit conflicts raises the conflict, with its facts."""
    async def main() -> None:
        with pytest.raises(objdb.ConflictError) as caught:
            async with people.transaction() as connection:
                add_one(connection)
                people.run(add_one)
        assert caught.value.class_name == "tests.models.Person"
        assert caught.value.explain()["value"] == (0, 1, 1)
        assert_quiet(people)

    run(main())
    assert values(people) == (1, 1)


def test_a_block_is_entered_once(people: objdb.DB) -> None:
    """One block is one transaction: who enters it again, in whichever way, is told."""
    async def main() -> None:
        block = people.transaction()
        async with block:
            with pytest.raises(objdb.UsageError, match="entered before"):
                async with block:
                    pass
        with pytest.raises(objdb.UsageError, match="entered before"), block:
            pass

    run(main())
    assert_quiet(people)


def test_reading_needs_no_worker(people: objdb.DB) -> None:
    """A transaction that changed nothing ends without a thread."""
    async def main() -> None:
        before = threading.active_count()
        async with people.transaction() as connection:
            assert connection.root()["p"].value == 0
        assert threading.active_count() == before

    run(main())


def test_arun_takes_functions_of_both_kinds(people: objdb.DB) -> None:
    """arun calls a function, awaits what a coroutine function gives, and returns the result."""
    async def add(connection: objdb.Connection) -> str:
        await asyncio.sleep(0)
        add_one(connection)
        return "done"

    async def main() -> None:
        assert await people.arun(add, note="by arun") == "done"
        assert await people.arun(lambda connection: connection.root()["p"].value) == 1

    run(main())
    assert last(people).description == b"by arun"


def test_arun_tries_again(people: objdb.DB) -> None:
    """After a conflict the function runs again in a new transaction, in which user, note and
    extension are those of the first."""
    seen: list[int] = []

    async def add(connection: objdb.Connection) -> int:
        txn = connection.transaction_manager.get()
        if not seen:
            txn.user = "anna"
            txn.setExtendedInfo("ticket", 7)
        assert (txn.user, txn.description, txn.extension) == ("anna", "words", {"ticket": 7})
        seen.append(connection.root()["p"].value)
        add_one(connection)
        await asyncio.sleep(0)
        if len(seen) < 3:
            people.run(add_one)
        return len(seen)

    assert run(people.arun(add, note="words")) == 3
    assert seen == [0, 1, 2]
    assert values(people) == (3, 3)
    stored = last(people)
    assert (stored.user, stored.description) == (b"anna", b"words")
    assert stored.extension == {"ticket": 7}
    assert people.statistics().conflicts == 2
    assert_quiet(people)


def test_arun_gives_up(people: objdb.DB) -> None:
    """When every try conflicts, the last one's error is raised; other errors end the trying at
    once; no tries make no sense."""
    count = 0

    async def main() -> None:
        nonlocal count

        def interfered(connection: objdb.Connection) -> None:
            nonlocal count
            count += 1
            add_one(connection)
            people.run(add_one)

        with pytest.raises(objdb.ConflictError):
            await people.arun(interfered, tries=2)
        assert count == 2
        with pytest.raises(ZeroDivisionError):
            await people.arun(lambda connection: 1 / 0)
        with pytest.raises(ValueError, match="tries"):
            await people.arun(add_one, tries=0)

    run(main())
    assert values(people) == (2, 2)
    assert_quiet(people)


def test_attempts(people: objdb.DB) -> None:
    """`async for` gives attempts until one was committed."""
    async def main() -> int:
        count = 0
        async for attempt in people.attempts(5, note="by attempts"):
            async with attempt as connection:
                count += 1
                add_one(connection)
                if count < 3:
                    people.run(add_one)
        assert attempt.succeeded
        return count

    assert run(main()) == 3
    assert values(people) == (3, 3)
    assert last(people).description == b"by attempts"


def test_ending_the_transaction_inside(people: objdb.DB) -> None:
    """A block that ended its transaction itself, by whichever way, leaves nothing behind."""
    async def main() -> None:
        async with people.transaction() as connection:
            add_one(connection)
            connection.transaction_manager.commit()
        async with people.transaction() as connection:
            add_one(connection)
            connection.transaction_manager.abort()
        async with people.transaction() as connection:
            connection.transaction_manager.abort()
            connection.transaction_manager.begin()
            add_one(connection)
        assert_quiet(people)

    run(main())
    assert values(people) == (2, 2)


def test_another_data_manager(people: objdb.DB) -> None:
    """A data manager that joined is committed with the database, in the same two phases, and
    may wait there: the event loop goes on."""
    async def main() -> None:
        log = Log()
        async with people.transaction() as connection:
            connection.transaction_manager.get().join(log)
            add_one(connection)
        assert log.calls == ["tpc_begin", "commit", "tpc_vote", "tpc_finish"]
        failing = Log()
        failing.fail = "tpc_vote"
        with pytest.raises(RuntimeError, match="on purpose"):
            async with people.transaction() as connection:
                connection.transaction_manager.get().join(failing)
                add_one(connection)
        assert "tpc_abort" in failing.calls and "tpc_finish" not in failing.calls
        alone = Log()
        async with people.transaction() as connection:
            connection.transaction_manager.get().join(alone)
        assert alone.calls == log.calls
        assert_quiet(people)

    run(main())
    assert values(people) == (1, 1)


def test_what_comes_after_a_commit_finds_it_durable(people: objdb.DB) -> None:
    """A hook after the commit, and a participant whose turn is later, see what was committed."""
    seen: list[Any] = []

    class Later(Log):
        def tpc_finish(self, txn: Any) -> None:
            seen.append(values(people))

    async def main() -> None:
        async with people.transaction() as connection:
            add_one(connection)
            hook = connection.transaction_manager.get().addAfterCommitHook
            hook(lambda is_committed: seen.append(values(people)))
        async with people.transaction() as connection:
            add_one(connection)
            connection.transaction_manager.get().join(Later())

    run(main())
    assert seen == [(1, 1), (2, 2)]


def test_two_databases(databases: Databases) -> None:
    """A block over one database commits what was changed in another of its group, or neither."""
    group: dict[str, Any] = {}
    one = databases.open(None, databases=group, database_name="one")
    two = databases.open("two.fs", databases=group, database_name="two")

    async def main() -> None:
        async with one.transaction() as connection:
            connection.root()["n"] = 0
            connection.get_connection("two").root()["n"] = 0
        with pytest.raises(objdb.ConflictError):
            async with one.transaction() as connection:
                connection.root()["n"] = 1
                connection.get_connection("two").root()["n"] = 1
                async with two.transaction() as other:
                    other.root()["n"] = 2

    run(main())
    for db, expected in ((one, 0), (two, 2)):
        with db.transaction() as connection:
            assert connection.root()["n"] == expected


def test_serializable(databases: Databases) -> None:
    """A serializable database checks what an asynchronous transaction has read."""
    db = databases.open("data.fs", isolation="serializable")
    two_people(db)

    async def main() -> None:
        with pytest.raises(objdb.ReadConflictError):
            async with db.transaction() as connection:
                connection.root()["p"].value += connection.root()["q"].value
                async with db.transaction() as other:
                    other.root()["q"].value += 1

    run(main())
    assert values(db) == (0, 1)


def test_merged_changes_need_no_retry(people: objdb.DB) -> None:
    """A conflict that the class resolves is none, and the committed connection sees the merged
    state."""
    async def main() -> None:
        from tests.models import Counter

        async with people.transaction() as connection:
            connection.root()["n"] = Counter()
        async with people.transaction() as connection:
            connection.root()["n"].add(1)
            async with people.transaction() as other:
                other.root()["n"].add(1)
        async with people.transaction() as connection:
            assert connection.root()["n"].value == 2

    run(main())
    assert people.statistics().conflicts == 0
