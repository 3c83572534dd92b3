"""Runs random transactions on a database, and checks the history they make.

    report = check_isolation(db, threads=6, transactions=200)

raises AssertionError if transactions saw of one another what the database's isolation mode does
not allow. For authors of storages, and of whatever else stands between a transaction and the
disk. Where threads are too random:

    recorder = Recorder(db)
    interleave(recorder, plans, order)          steps transactions in one thread, in this order
    report = check(recorder.history(), is_opaque=True)

The first letter of a key tells where it is:

    root ─► m1, m2     lists that are values of one mapping
         ─► o1, o2     lists that are objects in a mapping
         ─► tree ─► t1, t2     lists that are values of a BTree
                 ─► b1, b2     attributes of objects in the BTree
         ─► r1, r2     registers: attributes of objects, two in each

Lists are not there before somebody appends to them.
"""

from __future__ import annotations

import random
import sys
import threading
import time
import traceback
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import count
from typing import Any, NamedTuple

import transaction
from BTrees.OOBTree import OOBTree
from persistent import Persistent
from persistent.list import PersistentList
from persistent.mapping import PersistentMapping

from objdb.errors import ConflictError
from objdb.testing.anomalies import Report, check
from objdb.testing.histories import (
    ABORTED,
    APPEND,
    COMMITTED,
    READ,
    UNKNOWN,
    WRITE,
    History,
    Operation,
    Transaction,
    Value,
)

REGISTERS = 4
# What a plan may have besides operations. Clutter is a key that nobody reads, beside one that
# others do, put in or taken out.
MINIMIZE, COLLECT, CHECK, CLUTTER = "minimize", "collect", "readCurrent", "clutter"
SAVEPOINT, ROLLBACK = "savepoint", "rollback"
EXTRAS = (MINIMIZE, COLLECT, CHECK, CLUTTER, SAVEPOINT, ROLLBACK)
CHANGE = "change"  # an append or a write, as the key has it

_ROOT_KEY = "objdb.testing.recording"
_CLUTTER_KEYS = 40  # for each key of the tree: more than go into a bucket
# How often threads take turns: often enough to meet in the middle of things.
_SWITCH_SECONDS = 1e-5


class Step(NamedTuple):
    """One step of a transaction: it reads or changes a key, or does one of `EXTRAS`."""

    action: str
    key: str = ""
    number: int = 0


class Plan(NamedTuple):
    """A transaction before it is run. Without *begins*, its view is the one that began when the
    client's last transaction ended."""

    steps: tuple[Step, ...]
    is_aborted: bool = False
    begins: bool = True


class Holder(Persistent):
    """A persistent object, for attributes."""


class Recorder:
    """Runs transactions on *db* through its clients, and records them. *isolation* is another
    mode than the database's."""

    def __init__(self, db: Any, isolation: str | None = None) -> None:
        self.db = db
        self.isolation: str = db.isolation if isolation is None else isolation
        self.transactions: list[Transaction] = []  # those that have ended
        self.values = count(1)
        self.numbers = count(1)  # of transactions
        clutter = ((place, i) for place in ("b0", "b1", "t0", "t1") for i in range(_CLUTTER_KEYS))
        tree = OOBTree({_clutter_key(place, i): None for place, i in clutter if i % 2})
        with db.transaction() as connection:
            connection.root()[_ROOT_KEY] = PersistentMapping(
                mapping=PersistentMapping(), objects=PersistentMapping(), tree=tree,
                registers=[Holder() for _ in range(REGISTERS // 2)],
            )

    def open(self) -> Any:
        """Return a connection with transactions of its own."""
        manager = transaction.TransactionManager()
        return self.db.open(transaction_manager=manager, isolation=self.isolation)

    def history(self) -> History:
        """Return what was recorded, and what is there now, when no transaction is running."""
        history = History(tuple(self.transactions))
        connection = self.open()
        try:
            final = {key: read(connection, key) for key in sorted(history.keys())}
        finally:
            connection.close()
        return History(history.transactions, final)


class Client:
    """A connection, and the transactions that are run with it."""

    def __init__(self, recorder: Recorder) -> None:
        self._recorder = recorder
        self._connection = recorder.open()
        self._manager = self._connection.transaction_manager
        self._operations: list[Operation] = []
        self._savepoints: list[tuple[Any, int]] = []

    def run(self, plan: Plan) -> Iterator[None]:
        """Run a transaction, a step each time that the next item is asked for.

        It is recorded as aborted if a conflict came in its way. Other errors are raised: then it
        is recorded that its outcome is not known.
        """
        name, status = f"T{next(self._recorder.numbers)}", UNKNOWN
        self._operations, self._savepoints = [], []
        try:
            if plan.begins:
                self._manager.begin()
            for step in plan.steps:
                self._do(step)
                yield
            if plan.is_aborted:
                self._manager.abort()
            else:
                self._manager.commit()
            status = ABORTED if plan.is_aborted else COMMITTED
        except ConflictError:
            self._manager.abort()
            status = ABORTED
        finally:
            done = Transaction(name, tuple(self._operations), status)
            self._recorder.transactions.append(done)

    def close(self) -> None:
        """Abort what is running, and close the connection."""
        self._manager.abort()
        self._connection.close()

    def _do(self, step: Step) -> None:
        action, key, number = step
        connection = self._connection
        if action == READ:
            self._operations.append(Operation(READ, key, read(connection, key)))
        elif action == CHANGE:
            value = next(self._recorder.values)
            self._operations.append(Operation(_change(connection, key, value), key, value))
        elif action == CHECK:
            connection.readCurrent(_holder(connection, key))
        elif action == CLUTTER:
            tree, place = _board(connection)["tree"], _clutter_key(key, number)
            if place in tree:
                del tree[place]
            else:
                tree[place] = number
        elif action == MINIMIZE:
            connection.cacheMinimize()
        elif action == COLLECT:
            connection.cacheGC()
        elif action == SAVEPOINT:
            self._savepoints.append((self._manager.savepoint(), len(self._operations)))
        elif self._savepoints:
            savepoint, length = self._savepoints.pop()
            savepoint.rollback()
            del self._operations[length:]


def _clutter_key(key: str, number: int) -> str:
    return f"{key}.{number % _CLUTTER_KEYS:02}"


def _board(connection: Any) -> Any:
    return connection.root()[_ROOT_KEY]


def _holder(connection: Any, key: str) -> Any:
    """Return the persistent object that a key is in, or the one that it would be in."""
    board, place = _board(connection), key[0]
    if place == "m":
        return board["mapping"]
    if place == "o":
        return board["objects"].get(key, board["objects"])
    if place == "r":
        return board["registers"][int(key[1:]) // 2]
    return board["tree"].get(key, board["tree"]) if place == "b" else board["tree"]


def read(connection: Any, key: str) -> Value:
    """Return what a key holds."""
    board, place = _board(connection), key[0]
    value: Value
    if place == "r":
        value = getattr(_holder(connection, key), key, None)
    elif place == "m":
        value = board["mapping"].get(key, ())
    elif place == "o":
        value = tuple(board["objects"].get(key, ()))
    elif place == "t":
        value = board["tree"].get(key, ())
    else:
        holder = board["tree"].get(key)
        value = () if holder is None else holder.items
    return value


def _change(connection: Any, key: str, value: int) -> str:
    """Append to a list, or write a register; return which it was."""
    board, place = _board(connection), key[0]
    if place == "r":
        setattr(_holder(connection, key), key, value)
        return WRITE
    if place == "o":
        if key not in board["objects"]:
            board["objects"][key] = PersistentList()
        board["objects"][key].append(value)
    elif place == "b":
        if key not in board["tree"]:
            board["tree"][key] = Holder()
            board["tree"][key].items = ()
        board["tree"][key].items += (value,)
    else:
        values = board["mapping" if place == "m" else "tree"]
        values[key] = (*values.get(key, ()), value)
    return APPEND


def random_plan(chance: random.Random, generation: int = 0) -> Plan:
    """Return a random transaction on the few keys of a *generation*; the next one has others, so
    that lists stay short."""
    share_of_reads = chance.choice([0.3, 0.6, 1.0])
    steps = []
    for _ in range(chance.randint(1, 6)):
        action = READ if chance.random() < share_of_reads else CHANGE
        steps.append(Step(action, _random_key(chance, generation)))
    extras = [chance.choice(EXTRAS) for _ in range(chance.choice([0, 0, 1, 2]))]
    if share_of_reads < 1 and chance.random() < 0.3:
        extras += [CLUTTER] * chance.randint(1, 3)
    if chance.random() < 0.3:
        extras += [SAVEPOINT, ROLLBACK] * chance.randint(1, 2)
    for action in extras:
        key, number = _random_key(chance, generation), chance.randrange(_CLUTTER_KEYS)
        if action == CLUTTER:
            key = chance.choice("bt") + key[1:]
        if action != CLUTTER or share_of_reads < 1:
            steps.insert(chance.randint(0, len(steps)), Step(action, key, number))
    return Plan(tuple(steps), chance.random() < 0.1, chance.random() < 0.5)


def _random_key(chance: random.Random, generation: int) -> str:
    place = chance.choice("mobtrr")
    if place == "r":
        return f"r{chance.randrange(REGISTERS)}"
    return f"{place}{2 * generation + chance.choice([0, 0, 0, 1, 1, 2])}"


def interleave(
    recorder: Recorder, plans: Sequence[Sequence[Plan]], order: Iterable[int]
) -> None:
    """Run the plans, each sequence of them with a client of its own, in this thread: each number
    of the *order* lets a client do a step. What is left then is done one after the other."""
    clients = [Client(recorder) for _ in plans]
    try:
        waiting = [_all_steps(client, its) for client, its in zip(clients, plans, strict=True)]
        for number in order:
            if not waiting:
                break
            steps = waiting[number % len(waiting)]
            if next(steps, waiting) is waiting:
                waiting.remove(steps)
        for steps in waiting:
            for _ in steps:
                pass
    finally:
        for client in clients:
            client.close()


def _all_steps(client: Client, plans: Iterable[Plan]) -> Iterator[None]:
    for plan in plans:
        yield from client.run(plan)
        yield


class _Thread(threading.Thread):
    """One of the threads of `check_isolation`."""

    def __init__(self, recorder: Recorder, seed: str, transactions: int) -> None:
        super().__init__(name=f"check_isolation {seed}", daemon=True)
        self._recorder = recorder
        self._seed = seed
        self._left = transactions
        self.error: BaseException | None = None

    def run(self) -> None:
        """Run transactions, with a new connection now and then."""
        chance = random.Random(self._seed)
        done = 0
        try:
            while done < self._left:
                some = min(chance.randint(1, 10), self._left - done)
                client = Client(self._recorder)
                try:
                    for number in range(done, done + some):
                        for _ in client.run(random_plan(chance, number // 10)):
                            if chance.random() < 0.3:
                                time.sleep(0)  # let somebody else
                finally:
                    client.close()
                done += some
        except BaseException as error:
            self.error = error


def check_isolation(
    db: Any, isolation: str | None = None, *, threads: int = 4, transactions: int = 100,
    seed: int | None = None, patience_seconds: float = 60.0,
) -> Report:
    """Run so many random *transactions* in each of so many *threads*, and return the report on
    what they did.

    AssertionError, with the seed, if they show what the isolation mode (default: the database's)
    does not allow; if one ends in an error other than a conflict; or if none ends for
    *patience_seconds*. A seed repeats what the threads do, not which is faster. The database
    should be new, or one whose data do not matter.
    """
    seed = random.randrange(10**9) if seed is None else seed
    recorder = Recorder(db, isolation)
    running = [_Thread(recorder, f"{seed} {number}", transactions) for number in range(threads)]
    with _switching_often():
        for thread in running:
            thread.start()
        for thread in running:
            _await_end(thread, recorder, patience_seconds)
    for thread in running:
        if thread.error is not None:
            raise AssertionError(f"seed {seed}: {thread.error!r}") from thread.error
    try:
        return check(recorder.history(), is_opaque=True).raise_if_forbidden(recorder.isolation)
    except AssertionError as error:
        raise AssertionError(f"seed {seed}: {error}") from None


def _await_end(thread: threading.Thread, recorder: Recorder, patience_seconds: float) -> None:
    while thread.is_alive():
        before = len(recorder.transactions)
        thread.join(patience_seconds)
        if thread.is_alive() and len(recorder.transactions) == before:
            stacks = (traceback.format_stack(frame) for frame in sys._current_frames().values())
            told = "\n".join("".join(stack) for stack in stacks)
            raise AssertionError(f"{thread.name} does not end: a deadlock. Stacks:\n{told}")


@contextmanager
def _switching_often() -> Iterator[None]:
    before = sys.getswitchinterval()
    sys.setswitchinterval(_SWITCH_SECONDS)
    try:
        yield
    finally:
        sys.setswitchinterval(before)
