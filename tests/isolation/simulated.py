"""Databases of a few lines, of several kinds, good and bad, and random transactions on them.

    serial          one transaction after the other
    serializable    snapshots; what was read must be current at the commit
    snapshot        snapshots; what was written must be current at the commit
    read committed  every read sees the last commit; appends go to the end of what is there then
    no checks       snapshots; the last commit wins
    dirty           everybody writes to the same values; who aborts takes his own back
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import Any

from objdb.testing.histories import History, Operation, Transaction, Value


@dataclass
class Running:
    """A transaction on its way."""

    name: str
    snapshot: dict[str, tuple[Any, int]]
    left: int
    operations: list[Operation] = field(default_factory=list)
    read: dict[str, int] = field(default_factory=dict)  # key: the version it saw
    written: dict[str, list[int]] = field(default_factory=dict)


class Simulated:
    """One database. Values are kept with their version, a number."""

    _SKEWS = {"G2", "G-single", "G-nonadjacent", "fuzzy read", "lost update"}
    ALLOWED: dict[str, set[str]] = {
        "serial": set(),
        "serializable": set(),
        "snapshot": {"G2"},
        "read committed": _SKEWS,
        "no checks": {
            "G2", "G-single", "G-nonadjacent", "lost update", "lost write", "incompatible",
        },
        "dirty": {*_SKEWS, "G0", "G1a", "G1b", "G1c", "internal", "incompatible", "lost write"},
    }

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.state: dict[str, tuple[Any, int]] = {}
        self.versions = 0

    def begin(self, name: str, steps: int) -> Running:
        return Running(name, dict(self.state), steps)

    def read(self, running: Running, key: str) -> None:
        """Read, with what the transaction wrote itself."""
        sees_now = self.kind in ("read committed", "dirty")
        where = self.state if sees_now else running.snapshot
        nothing = None if key.startswith("r") else ()
        value, version = where.get(key, (nothing, 0))
        running.read.setdefault(key, version)
        mine = running.written.get(key)
        if mine and self.kind != "dirty":
            value = mine[-1] if nothing is None else (*value, *mine)
        running.operations.append(Operation("read", key, value))

    def write(self, running: Running, key: str, number: int) -> None:
        """Append, or write a register."""
        action = "write" if key.startswith("r") else "append"
        running.operations.append(Operation(action, key, number))
        running.written.setdefault(key, []).append(number)
        # The version it is made from.
        running.read.setdefault(key, running.snapshot.get(key, (None, 0))[1])
        if self.kind == "dirty":
            self.put(key, [number], self.state)

    def put(self, key: str, numbers: list[int], onto: dict[str, tuple[Any, int]]) -> None:
        self.versions += 1
        if key.startswith("r"):
            self.state[key] = numbers[-1], self.versions
        else:
            self.state[key] = (*onto.get(key, ((), 0))[0], *numbers), self.versions

    def commit(self, running: Running) -> bool:
        """Commit, if nothing speaks against it."""
        checked = {
            "snapshot": running.written, "serializable": running.read if running.written else {}
        }.get(self.kind, {})
        if any(self.state.get(key, ((), 0))[1] != running.read[key] for key in checked):
            return False
        if self.kind != "dirty":
            onto = running.snapshot if self.kind == "no checks" else self.state
            for key, numbers in running.written.items():
                self.put(key, numbers, onto)
        return True

    def abort(self, running: Running) -> None:
        """Take back what others may have seen."""
        for key, numbers in running.written.items() if self.kind == "dirty" else ():
            if not key.startswith("r"):
                value = tuple(v for v in self.state[key][0] if v not in numbers)
                self.state[key] = value, self.versions
            elif self.state[key][0] in numbers:
                self.state[key] = running.snapshot.get(key, (None, 0))


def simulate(
    kind: str, chance: random.Random, *, transactions: int, keys: int = 4, keys_live: int = 10**9,
    reads_first: bool = False,
) -> History:
    """Run transactions, a few at a time, in a random order of their steps.

    After so many transactions as *keys_live*, others keys are used. With *reads_first*,
    everything is read before it is written.
    """
    db = Simulated(kind)
    running: list[Running] = []
    done: list[Transaction] = []
    number = begun = 0
    at_once = 1 if kind == "serial" else 4
    while len(done) < transactions:
        if len(running) < at_once and begun < transactions:
            running.append(db.begin(f"T{begun}", chance.randrange(1, 5)))
            begun += 1
        one = running[chance.randrange(len(running))]
        if one.left:
            one.left -= 1
            age = len(done) // keys_live
            key = f"{'lr'[chance.random() < 0.3]}{age * keys + chance.randrange(keys)}"
            is_read = chance.random() < 0.5
            if is_read or reads_first:
                db.read(one, key)
            if not is_read:
                number += 1
                db.write(one, key, number)
            continue
        running.remove(one)
        is_committed = chance.random() < 0.9 and db.commit(one)
        if not is_committed:
            db.abort(one)
        status = "committed" if is_committed else "aborted"
        done.append(Transaction(one.name, tuple(one.operations), status))
    final: dict[str, Value] = {key: value for key, (value, _) in db.state.items()}
    return History(tuple(done), final)
