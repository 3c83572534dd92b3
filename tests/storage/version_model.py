"""A plain model of a storage with versions that can undo.

What an object is, after any transaction, is (value, version, outside): the last value written,
the version that is in ("" for none), and the value that is seen outside. Values are whole numbers,
which merge, and text or bytes, which do not; None: there is no object.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

Value = int | str | bytes | None
Name = str | bytes


class Blocked(Exception):
    """The model says that this cannot be done, for the object named."""


class State(NamedTuple):
    """An object after a transaction."""

    value: Value = None
    version: str = ""
    outside: Value = None

    def seen(self, version: str) -> Value:
        """The value that who works in *version* sees."""
        return self.value if self.version in ("", version) else self.outside


NOTHING = State()


class VersionModel:
    """`transactions` has what each made of the objects it changed."""

    def __init__(self, transactions: Iterable[dict[Name, State]] = ()) -> None:
        self.transactions = list(transactions)

    def state(self, name: Name, upto: int | None = None) -> State:
        """What the object is after the first *upto* transactions (None: all)."""
        for changes in reversed(self.transactions[:upto]):
            if name in changes:
                return changes[name]
        return NOTHING

    def last_change(self, name: Name) -> int | None:
        """The number of the last transaction that changed the object."""
        numbers = [n for n, changes in enumerate(self.transactions) if name in changes]
        return numbers[-1] if numbers else None

    def inside(self, version: str) -> list[Name]:
        """The objects that are in a version."""
        names = {name for changes in self.transactions for name in changes}
        return sorted(name for name in names if self.state(name).version == version)

    def stored(self, name: Name, value: Value, version: str) -> State:
        """What storing a value in a version makes of an object."""
        state = self.state(name)
        if state.version and state.version != version:
            raise Blocked(name)
        if not version:
            return State(value, "", value)
        return State(value, version, state.outside if state.version else state.value)

    def committed(self, source: str, destination: str) -> dict[Name, State]:
        """What committing a version makes of the objects."""
        states = {name: self.state(name) for name in self.inside(source)}
        return {
            name: State(s.value, destination, s.outside if destination else s.value)
            for name, s in states.items()
        }

    def aborted(self, version: str) -> dict[Name, State]:
        """What aborting a version makes of the objects."""
        states = {name: self.state(name) for name in self.inside(version)}
        return {name: State(s.outside, "", s.outside) for name, s in states.items()}

    def undone(self, numbers: list[int]) -> dict[Name, State]:
        """What undoing these transactions, in this order, makes of the objects."""
        staged: dict[Name, State] = {}
        for number in numbers:
            results = {}
            for name in self.transactions[number]:
                results[name] = self._undone(name, number, staged)
            staged.update(results)
        return staged

    def _undone(self, name: Name, number: int, staged: dict[Name, State]) -> State:
        undone, before = self.transactions[number][name], self.state(name, number)
        committed = self.state(name)
        current = staged.get(name, committed)
        if name in staged or self.last_change(name) != number:
            if current.version != undone.version:
                raise Blocked(name)
            if current.value != undone.value:
                values = (undone.value, current.value, before.value)
                if not all(isinstance(value, int) for value in values):
                    raise Blocked(name)
                if before.version not in ("", undone.version):
                    raise Blocked(name)
                if undone.version and committed.version != undone.version:
                    raise Blocked(name)
                merged = current.value + before.value - undone.value  # type: ignore[operator]
                outside = current.outside if current.version else merged
                return State(merged, current.version, outside)
        if before.value is None:
            return NOTHING
        if before.version and committed.version:
            return State(before.value, before.version, committed.outside)
        return before
