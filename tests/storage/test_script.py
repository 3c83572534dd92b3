"""The reader of scripts: a script that says what does not hold fails, at the step that says so."""

from __future__ import annotations

from typing import Any

import pytest

from objdb.ids import NO_TID, ROOT_OID
from objdb.storage.commit import TransactionMetaData
from objdb.storage.memory import MappingStorage
from objdb.storage.storage import Storage
from objdb.testing import script
from objdb.testing.helpers import commit
from objdb.testing.script import Run, Script, scripts

BEGINNING = ["1: x = one", "2: x = two, y = new -> x", "3: x = in in plan"]


def run(*steps: str, storage: Storage | None = None) -> None:
    """Run a script with these steps in memory."""
    storage = storage or MappingStorage()
    commit(storage, {ROOT_OID: (NO_TID, b"root")})
    Run(Script("test", "What is tried.", [*BEGINNING, *steps]), storage).all()


@pytest.mark.parametrize("step", [
    "x is two (2)", "x at 1 is one (1) until 2", "x is two (2) until now", "packed to: nothing",
    "x in plan is in (3)", "x in another is two", "x at 1 is one (1)", "x of 1 is one",
    "y is new -> x", "z is gone", "x at 0 is gone", "versions: plan", "objects in plan: x",
    "version of x: plan", "version of y: none", "transactions: 0, 1, 2, 3", "objects of 2: x y",
    "objects of 2: y x", "objects: root x y", "history of x: 3 plan, 2, 1", "undo log: 3 2 1 0",
    "4: x = late on 1 in plan ! ConflictError", "4: x = late ! VersionLockError: plan",
])
def test_what_holds(step: str) -> None:
    """What is true passes."""
    run(step)


@pytest.mark.parametrize("step", [
    "x is one", "x at 1 is one (1) until 3", "x is two (2) until 3", "packed to: 1", "x is two (1)",
    "x in plan is two", "x is gone", "x at 1 is two", "x at 1 is one (2)", "x of 1 is two",
    "x of 1 is gone", "y is new", "y is new -> y", "z is there", "versions: none",
    "versions: plan more", "objects in plan: none", "objects in plan: x y", "version of x: none",
    "version of y: plan", "transactions: 1, 2, 3", "transactions: 0, 1 packed, 2, 3",
    "objects of 2: x", "objects: root x", "history of x: 3, 2, 1", "undo log: 3 2 1",
    "x of 2 has the data of 1", "4: y = y ! ConflictError", "4: x = late ! ConflictError",
    "4: x = late", "4: x = late ! VersionLockError: more", "4: makes x", "makes", "A votes",
    "x is two (9)",
])
def test_what_does_not_hold(step: str) -> None:
    """What is not true, and what is no step, fails, and is shown where it stands."""
    with pytest.raises(AssertionError) as caught:
        run(step, "x is two")
    assert f"==> {step}\n    x is two\n" in str(caught.value)


def test_what_holds_in_the_copy_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """What holds at the end is looked at in a copy."""

    class Forgetful(MappingStorage):
        def copyTransactionsFrom(self, other: Any, progress: Any = None) -> int:
            return 0

    monkeypatch.setattr(script, "MappingStorage", Forgetful)
    with pytest.raises(AssertionError, match="in a copy"):
        run("x in plan is in")


def test_what_holds_when_opened_again() -> None:
    """And in the storage that is opened again."""
    storage = MappingStorage()
    commit(storage, {ROOT_OID: (NO_TID, b"root")})
    made = Run(Script("test", "What is tried.", ["1: x = one", "x is one"]), storage)
    with pytest.raises(AssertionError, match="opened again"):
        made.all(MappingStorage)


def test_refused_transactions_are_aborted() -> None:
    """A transaction that is refused leaves nothing open."""
    storage = MappingStorage()
    run("4: x = late ! VersionLockError", storage=storage)
    transaction = TransactionMetaData()
    storage.tpc_begin(transaction)
    storage.tpc_vote(transaction)
    storage.tpc_abort(transaction)


def test_names() -> None:
    """Each script has a name of its own, says what it shows in a sentence, and has steps."""
    for about in ("undo", "versions", "packing"):
        found = scripts(about)
        assert len({each.name for each in found}) == len(found) > 15
        for each in found:
            assert each.shows.endswith(".") and all(each.steps), each
