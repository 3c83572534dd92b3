"""Transactions as blocks, and trying them again after a conflict."""

from __future__ import annotations

from typing import Any

import pytest
import transaction
from transaction.interfaces import TransientError

import objdb
from tests.conftest import Databases
from tests.models import Counter, Person


@pytest.fixture
def people(db: objdb.DB) -> objdb.DB:
    with db.transaction() as connection:
        connection.root()["p"], connection.root()["n"] = Person("p", value=0), Counter()
    return db


def interfere(db: objdb.DB) -> None:
    """Change the person in a transaction of its own: whoever has changed it meanwhile, loses."""
    with db.transaction("interference") as connection:
        connection.root()["p"].value += 100


def value(db: objdb.DB) -> int:
    with db.transaction() as connection:
        return connection.root()["p"].value


def last(db: objdb.DB) -> Any:
    return list(db.storage.iterator())[-1]


def test_committed_at_the_end(people: objdb.DB) -> None:
    """A block that ends is committed, with its note; its connection goes back."""
    with people.transaction("a note") as connection:
        connection.root()["p"].value = 1
        assert people.statistics().connections_out == 1
    assert value(people) == 1
    assert people.statistics().connections_out == 0
    assert last(people).description == b"a note"


@pytest.mark.parametrize("error", [RuntimeError, objdb.ConflictError, KeyboardInterrupt])
def test_aborted_by_any_exception(people: objdb.DB, error: type[BaseException]) -> None:
    """A block that raises is aborted, its exception comes through, its connection goes back;
    nothing is tried again."""
    entered = 0
    with pytest.raises(error), people.transaction() as connection:
        entered += 1
        connection.root()["p"].value = 1
        raise error("on purpose")
    assert entered == 1
    assert value(people) == 0
    assert people.statistics().connections_out == 0


def test_a_conflict_at_the_end_of_a_block(people: objdb.DB) -> None:
    """A block whose commit conflicts raises the conflict and gives its connection back."""
    with pytest.raises(objdb.ConflictError), people.transaction() as connection:
        connection.root()["p"].value += 1
        interfere(people)
    assert value(people) == 100
    assert people.statistics().connections_out == 0
    assert people.statistics().conflicts == 1


def test_blocks_are_transactions_of_their_own(people: objdb.DB) -> None:
    """A block has nothing to do with the thread's transaction, nor with a block around it."""
    mine = people.open()
    mine.root()["p"].value = 5
    with people.transaction() as outer:
        with people.transaction() as inner:
            assert inner is not outer
            inner.root()["n"].add(1)
        assert outer.root()["n"].value == 0
    transaction.abort()
    mine.close()
    assert value(people) == 0


def test_ending_the_transaction_inside(people: objdb.DB) -> None:
    """A block that aborted its transaction itself leaves no connection behind, and its own
    exception, if it raises one, is the one that comes through."""
    try:
        with people.transaction() as connection:
            connection.root()["p"].value = 1
            connection.transaction_manager.abort()
    except Exception:
        pass  # whether that is an error, is not said
    assert people.statistics().connections_out == 0
    with pytest.raises(LookupError, match="on purpose"), people.transaction() as connection:
        connection.transaction_manager.abort()
        raise LookupError("on purpose")
    assert people.statistics().connections_out == 0
    assert value(people) == 0


def test_run_returns_what_was_committed(people: objdb.DB) -> None:
    """run gives the function a connection, commits, and returns its result."""
    def add(connection: objdb.Connection) -> str:
        connection.root()["p"].value += 1
        return "done"

    assert people.run(add, note="by run") == "done"
    assert value(people) == 1
    assert [t.description for t in people.storage.iterator()][-1] == b"by run"


def test_run_tries_again(people: objdb.DB) -> None:
    """After a conflict the function runs again in a new transaction that sees the other's
    change; the result is that of the one that was committed."""
    seen: list[int] = []

    def add(connection: objdb.Connection) -> int:
        person = connection.root()["p"]
        seen.append(person.value)
        person.value += 1
        if len(seen) < 3:
            interfere(people)
        return len(seen)

    assert people.run(add) == 3
    assert seen == [0, 100, 200]
    assert value(people) == 201
    assert people.statistics().conflicts == 2
    assert people.statistics().connections_out == 0


def test_the_last_error_is_raised(people: objdb.DB) -> None:
    """When every try conflicts, the last try's error is raised, and nothing was stored."""
    seen: list[bytes] = []

    def add(connection: objdb.Connection) -> None:
        connection.root()["p"].value += 1
        seen.append(connection.root()["p"]._p_serial)
        interfere(people)

    with pytest.raises(objdb.ConflictError) as caught:
        people.run(add, tries=4)
    assert len(seen) == 4
    with people.transaction() as connection:
        person = connection.root()["p"]
        assert person.value == 400
        assert caught.value.serials == (person._p_serial, seen[-1])
    assert people.statistics().conflicts == 4


def test_conflicts_raised_by_the_function_are_tried_again(people: objdb.DB) -> None:
    """Any transient error counts, also one that the function raises, of whatever package."""
    tries = []

    def sometimes(connection: objdb.Connection) -> str:
        tries.append(connection)
        connection.root()["p"].value += 1
        if len(tries) == 1:
            raise TransientError("a mail server is busy")
        if len(tries) == 2:
            raise objdb.ReadConflictError("seen too late")
        return "done"

    assert people.run(sometimes) == "done"
    assert len(tries) == 3
    assert value(people) == 1


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, objdb.POSKeyError])
def test_other_errors_are_not_tried_again(people: objdb.DB, error: type[BaseException]) -> None:
    """Any other exception aborts, comes through, and ends the trying."""
    tries = []

    def fail(connection: objdb.Connection) -> None:
        tries.append(connection)
        connection.root()["p"].value += 1
        raise error("on purpose")

    with pytest.raises(error, match="on purpose"):
        people.run(fail, tries=5)
    assert len(tries) == 1
    assert value(people) == 0
    assert people.statistics().connections_out == 0


@pytest.mark.parametrize("tries", [0, -1])
def test_no_tries_make_no_sense(people: objdb.DB, tries: int) -> None:
    """Fewer tries than one is an error, before anything runs."""
    with pytest.raises(ValueError, match="tries"):
        people.run(lambda connection: 1 / 0, tries=tries)
    with pytest.raises(ValueError, match="tries"):
        list(people.attempts(tries))


def test_attempts(people: objdb.DB) -> None:
    """attempts yields until one attempt's block was committed."""
    numbers = []
    for attempt in people.attempts(5, note="by attempts"):
        with attempt as connection:
            numbers.append(len(numbers))
            connection.root()["p"].value += 1
            if len(numbers) < 3:
                interfere(people)
    assert numbers == [0, 1, 2]
    assert attempt.succeeded
    assert value(people) == 201
    assert last(people).description == b"by attempts"
    assert people.statistics().connections_out == 0


def test_the_last_attempt_raises(people: objdb.DB) -> None:
    """When no attempt is left, the block's conflict is raised."""
    count = 0
    with pytest.raises(objdb.ConflictError):
        for attempt in people.attempts(2):
            with attempt as connection:
                count += 1
                connection.root()["p"].value += 1
                interfere(people)
    assert count == 2
    assert people.statistics().connections_out == 0


def test_user_note_and_extension_are_kept(people: objdb.DB) -> None:
    """What was said about a transaction is said about its next try as well, once."""
    count = 0
    for attempt in people.attempts(3, note="first words"):
        with attempt as connection:
            txn = connection.transaction_manager.get()
            if count == 0:
                txn.setUser("anna", "/office")
                txn.note("more words")
                txn.setExtendedInfo("ticket", 7)
            expected = "first words\nmore words"
            assert (txn.description, txn.extension) == (expected, {"ticket": 7})
            assert txn.user == "/office anna"
            connection.root()["p"].value += 1
            if count < 2:
                interfere(people)
            count += 1
    stored = last(people)
    assert stored.user == b"/office anna"
    assert stored.description == b"first words\nmore words"
    assert stored.extension == {"ticket": 7}


def test_merged_changes_need_no_retry(people: objdb.DB) -> None:
    """A conflict that the class can resolve is none."""
    tries = []

    def add(connection: objdb.Connection) -> None:
        tries.append(1)
        connection.root()["n"].add(1)
        if len(tries) == 1:
            people.run(add)

    people.run(add)
    with people.transaction() as connection:
        assert connection.root()["n"].value == 2
    assert tries == [1, 1]
    assert people.statistics().conflicts == 0


def test_a_retry_begins_afresh(people: objdb.DB) -> None:
    """Objects that a failed try created are unsaved again, and can be stored by the next."""
    made: list[Person] = []

    def store(connection: objdb.Connection) -> bytes:
        person = made[0] if made else Person("made once")
        if made:
            assert person._p_jar is None and person._p_oid is None
        made.append(person)
        connection.root()["new"] = person
        connection.root()["p"].value += 1
        if len(made) == 1:
            interfere(people)
        connection.add(person)
        return person._p_oid

    oid = people.run(store)
    with people.transaction() as connection:
        assert connection.root()["new"]._p_oid == oid
        assert connection.root()["new"].name == "made once"


def test_two_databases_in_one_block(databases: Databases) -> None:
    """A block over one database commits what was changed in another of its group; a conflict in
    either drops both."""
    group: dict[str, Any] = {}
    one = databases.open(None, databases=group, database_name="one")
    two = databases.open("two.fs", databases=group, database_name="two")
    with one.transaction() as connection:
        connection.root()["n"] = 0
        connection.get_connection("two").root()["n"] = 0
    with pytest.raises(objdb.ConflictError), one.transaction() as connection:
        connection.root()["n"] = 1
        connection.get_connection("two").root()["n"] = 1
        with two.transaction() as other:
            other.root()["n"] = 2
    for db, expected in ((one, 0), (two, 2)):
        with db.transaction() as connection:
            assert connection.root()["n"] == expected
