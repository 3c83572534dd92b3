"""Steps several transactions through an interleaving, one step after the other, in one thread.

    schedule = Schedule(db, {"x": 0, "y": 0})
    a, b = schedule.begin("A"), schedule.begin("B")
    a.write("y", a.read("x") + 1)
    b.write("x", b.read("y") + 1)
    assert a.commit() and not b.commit()
    print(schedule)          # what happened, a line for each step
"""

from __future__ import annotations

from typing import Any

import transaction
from BTrees.OOBTree import OOBTree
from persistent import Persistent

from objdb.errors import ConflictError

_ROOT_KEY = "objdb.testing.schedule"


class Register(Persistent):
    """A persistent object with one value."""

    def __init__(self, value: Any) -> None:
        self.value = value


class Participant:
    """One transaction of a schedule, with a connection of its own.

    `root` is the database's root object, where registers are too simple. `error` is the
    conflict that a commit ended in, if it did.
    """

    def __init__(self, schedule: Schedule, name: str, **options: Any) -> None:
        self.name = name
        self._schedule = schedule
        self._manager = transaction.TransactionManager()
        self.connection = schedule.db.open(transaction_manager=self._manager, **options)
        self._manager.begin()
        self.root = self.connection.root()
        self.error: ConflictError | None = None

    @property
    def tree(self) -> Any:
        """The tree of all registers, by key."""
        return self.root[_ROOT_KEY]

    def read(self, key: str) -> Any:
        """Return the register's value; None if there is none."""
        register = self.tree.get(key)
        value = None if register is None else register.value
        self._note(f"reads {key} = {value!r}")
        return value

    def read_range(self, first: str, last: str) -> dict[str, Any]:
        """Return the values of the registers from *first* to *last*, by key."""
        values = {key: register.value for key, register in self.tree.items(first, last)}
        self._note(f"reads {first} to {last} = {values!r}")
        return values

    def write(self, key: str, value: Any) -> None:
        """Give a register a value; make it if there is none."""
        self._note(f"writes {key} = {value!r}")
        register = self.tree.get(key)
        if register is None:
            self.tree[key] = Register(value)
        else:
            register.value = value

    def commit(self) -> bool:
        """Commit; return whether that went well. After a conflict the transaction is aborted."""
        try:
            self._manager.commit()
        except ConflictError as error:
            self.error = error
            self._manager.abort()
            self._note(f"cannot commit: {type(error).__name__}")
            return False
        self._note("commits")
        return True

    def abort(self) -> None:
        """Abort."""
        self._manager.abort()
        self._note("aborts")

    def begin(self) -> None:
        """Begin the next transaction."""
        self._manager.begin()

    def close(self) -> None:
        """Abort what is open, and close the connection."""
        self._manager.abort()
        self.connection.close()

    def _note(self, what: str) -> None:
        self._schedule.history.append(f"{self.name} {what}")


class Schedule:
    """Several transactions on the registers of one database.

    *values* are the registers to begin with, by key; *options* are those of `DB.open`, such as
    the isolation. `history` has a line for each step.
    """

    def __init__(self, db: Any, values: dict[str, Any], **options: Any) -> None:
        self.db = db
        self.history: list[str] = []
        self._options = options
        self._participants: list[Participant] = []
        with db.transaction() as connection:
            registers = {key: Register(value) for key, value in values.items()}
            connection.root()[_ROOT_KEY] = OOBTree(registers)

    def begin(self, name: str) -> Participant:
        """Begin a transaction that is called *name* in the history."""
        participant = Participant(self, name, **self._options)
        self._participants.append(participant)
        return participant

    def values(self) -> dict[str, Any]:
        """Return what the registers are now."""
        with self.db.transaction() as connection:
            tree = connection.root()[_ROOT_KEY]
            return {key: register.value for key, register in tree.items()}

    def close(self) -> None:
        """End all transactions."""
        for participant in self._participants:
            participant.close()

    def __enter__(self) -> Schedule:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def __str__(self) -> str:
        return "\n".join(self.history)
