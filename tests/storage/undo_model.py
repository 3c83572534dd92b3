"""A plain model of a storage that can undo: what each transaction changed.

Values are whole numbers, which merge (the changes add up), and text, which does not. None: the
object does not exist.
"""

from __future__ import annotations

from typing import Any

from objdb.errors import ConflictError

Value = int | str | None
Changes = dict[str, Value]


class Impossible(Exception):
    """The model says that this cannot be done; the argument has the names in the way."""


class Model:
    """`transactions` has the changes of each, oldest first; numbers count from 0."""

    def __init__(self) -> None:
        self.transactions: list[Changes] = []

    def commit(self, changes: Changes) -> None:
        """Add a transaction."""
        self.transactions.append(dict(changes))

    def last_change(self, name: str) -> int | None:
        """The number of the last transaction that changed the object."""
        for number in range(len(self.transactions) - 1, -1, -1):
            if name in self.transactions[number]:
                return number
        return None

    def value(self, name: str, upto: int | None = None) -> Value:
        """The value after the first *upto* transactions (None: all)."""
        for changes in reversed(self.transactions[:upto]):
            if name in changes:
                return changes[name]
        return None

    def state(self) -> Changes:
        """All values."""
        found: Changes = {}
        for changes in self.transactions:
            found.update(changes)
        return found

    def store(self, name: str, base: int | None, new: Value) -> Value:
        """What storing *new*, made from the revision of transaction *base*, leads to."""
        last = self.last_change(name)
        if base == last:
            return new
        committed = self.value(name)
        old = None if base is None else self.transactions[base][name]
        if isinstance(old, int) and isinstance(committed, int) and isinstance(new, int):
            return committed + new - old
        raise Impossible(name)

    def undo(self, numbers: list[int]) -> Changes:
        """What undoing these transactions, in this order, changes."""
        staged: Changes = {}
        for number in numbers:
            results, obstacles = {}, []
            for name, undone in self.transactions[number].items():
                before = self.value(name, number)
                current = staged[name] if name in staged else self.value(name)
                is_last = name not in staged and self.last_change(name) == number
                if is_last or current == undone:
                    results[name] = before
                elif all(isinstance(value, int) for value in (undone, current, before)):
                    results[name] = current + before - undone  # type: ignore[operator]
                else:
                    obstacles.append(name)
            if obstacles:
                raise Impossible(*obstacles)
            staged.update(results)
        return staged


def record_of(value: int | str) -> bytes:
    """The record that stands for a value."""
    return (f"number {value}" if isinstance(value, int) else f"text {value}").encode()


def value_of(record: bytes | None) -> Value:
    """The value that a record stands for."""
    if record is None:
        return None
    kind, _, text = record.decode().partition(" ")
    return int(text) if kind == "number" else text


class Adding:
    """A database whose resolver adds up the changes of numbers."""

    def resolve(
        self, oid: bytes, old: bytes | None, committed: bytes, new: bytes, serials: Any
    ) -> bytes:
        values = [value_of(record) for record in (old, committed, new)]
        if not all(isinstance(value, int) for value in values):
            raise ConflictError(oid=oid, serials=serials)
        first, second, third = values
        return record_of(second + third - first)  # type: ignore[operator]
