"""A history: what transactions read and wrote, to be printed, parsed and checked.

A history has a line for each transaction; the last line is what was there in the end, where that
is known. Keys hold lists, which are appended to, or registers, which are written:

    T1 committed: append x 1, write r 5
    T2 committed: read x [1], append x 2, read x [1 2], read r 5
    T3 aborted: read r none, append x 3
    T4 unknown: append x 4
    finally: x [1 2 4], r 5

Lists are empty to begin with, and registers `none`. Values are whole numbers, each written to a
key once only: so what was read tells who wrote it. Of a transaction whose outcome is unknown, it
is only known that it may have committed.

`objdb.testing.anomalies` checks histories, `objdb.testing.recording` makes them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import NamedTuple

COMMITTED, ABORTED, UNKNOWN = "committed", "aborted", "unknown"
APPEND, WRITE, READ = "append", "write", "read"
FINALLY = "finally"

# What a key holds: a list, or a register's value.
Value = tuple[int, ...] | int | None

_VALUE = r"(\[[-\d ]*\]|none|-?\d+)"
_LINE = re.compile(rf"(\S+) ({COMMITTED}|{ABORTED}|{UNKNOWN}):(.*)|{FINALLY}:(.*)")
_OPERATION = re.compile(rf"({APPEND}|{WRITE}|{READ}) (\S+) {_VALUE}")
_FINAL = re.compile(rf"(\S+) {_VALUE}")


class Operation(NamedTuple):
    """One step of a transaction: an append or a write of a number, or a read of what a key
    holds."""

    action: str
    key: str
    value: Value

    def __str__(self) -> str:
        return f"{self.action} {self.key} {format_value(self.value)}"


@dataclass(frozen=True)
class Transaction:
    """A transaction: its name, what it did, in order, and how it ended."""

    name: str
    operations: tuple[Operation, ...]
    status: str = COMMITTED

    def __str__(self) -> str:
        return f"{self.name} {self.status}: {', '.join(map(str, self.operations))}".rstrip()


@dataclass(frozen=True)
class History:
    """Transactions, in any order, and what was there when all had ended (None: not known).

    A key that is missing in `final` was empty, or `none`. ValueError for a history that is none:
    two transactions of one name, a key that is both a list and a register, or a value that is
    written twice.
    """

    transactions: tuple[Transaction, ...]
    final: Mapping[str, Value] | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "transactions", tuple(self.transactions))
        if self.final is not None:
            object.__setattr__(self, "final", MappingProxyType(dict(self.final)))
        self._require_sound()

    def keys(self) -> dict[str, bool]:
        """Return all keys, each with whether it holds a list."""
        return {key: is_list for key, is_list, _ in self._uses()}

    def __str__(self) -> str:
        lines = [str(transaction) for transaction in self.transactions]
        if self.final is not None:
            values = (f"{key} {format_value(value)}" for key, value in self.final.items())
            lines.append(f"{FINALLY}: {', '.join(values)}".rstrip())
        return "\n".join(lines)

    @classmethod
    def parse(cls, text: str) -> History:
        """Return the history that *text* tells; empty lines do not count. ValueError with the
        number of a line that makes no sense."""
        transactions: list[Transaction] = []
        final: dict[str, Value] | None = None
        for number, line in enumerate(text.splitlines(), 1):
            if not line.strip():
                continue
            match = _LINE.fullmatch(line.strip())
            if match is None or final is not None:
                raise ValueError(f"line {number} is not a transaction: {line.strip()!r}")
            name, status, operations, values = match.groups()
            try:
                if name is None:
                    final = {key: _value(text) for key, text in _parts(_FINAL, values)}
                else:
                    found = _parts(_OPERATION, operations)
                    steps = tuple(Operation(step, key, _value(text)) for step, key, text in found)
                    transactions.append(Transaction(name, steps, status))
            except ValueError as error:
                raise ValueError(f"line {number}: {error}") from None
        return cls(tuple(transactions), final)

    def _uses(self) -> Iterator[tuple[str, bool, str]]:
        """Yield (key, whether it is used as a list, by whom)."""
        for transaction in self.transactions:
            for action, key, value in transaction.operations:
                is_list = action == APPEND or (action == READ and isinstance(value, tuple))
                yield key, is_list, transaction.name
        for key, value in (self.final or {}).items():
            yield key, isinstance(value, tuple), FINALLY

    def _require_sound(self) -> None:
        names = [transaction.name for transaction in self.transactions]
        if len(set(names)) < len(names) or FINALLY in names:
            twice = next(name for name in names if name == FINALLY or names.count(name) > 1)
            raise ValueError(f"two transactions are called {twice}")
        lists: dict[str, bool] = {}
        for key, is_list, name in self._uses():
            if lists.setdefault(key, is_list) is not is_list:
                kind = "list" if is_list else "register"
                raise ValueError(f"{name} uses {key} as a {kind}, and others do not")
        written: set[tuple[str, Value]] = set()
        for transaction in self.transactions:
            for action, key, value in transaction.operations:
                if action == READ:
                    continue
                if not isinstance(value, int):
                    raise ValueError(f"{transaction.name}: {action} {key} needs a number")
                if (key, value) in written:
                    raise ValueError(f"{value} is written to {key} twice")
                written.add((key, value))


def format_value(value: Value) -> str:
    """Return a value as histories write it: `[1 2]`, `5` or `none`."""
    if isinstance(value, tuple):
        return f"[{' '.join(map(str, value))}]"
    return "none" if value is None else str(value)


def _value(text: str) -> Value:
    if text.startswith("["):
        return tuple(map(int, text[1:-1].split()))
    return None if text == "none" else int(text)


def _parts(pattern: re.Pattern[str], text: str) -> Iterator[tuple[str, ...]]:
    for part in text.split(",") if text.strip() else ():
        match = pattern.fullmatch(part.strip())
        if match is None:
            raise ValueError(f"{part.strip()!r} is not understood")
        yield match.groups()
