"""What BTrees merge: every case is run, and the table in docs/conflict-free.md says the same."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import transaction
from BTrees.Length import Length
from BTrees.OOBTree import OOBTree, OOTreeSet

import objdb

PAGE = Path(__file__).resolve().parents[2] / "docs" / "conflict-free.md"
# Keys are even numbers, so that there is room between them. A bucket splits when it gets its
# 31st key, into halves; one that was filled in ascending order starts with 15.
FULL = range(0, 60, 2)
APART = range(0, 400, 4)
SIZES = {"one bucket": range(0, 20, 2), "many buckets": range(0, 200, 2)}
TYPES = (OOBTree, OOTreeSet)

Change = Callable[[Any], Any]


def insert(key: int, value: object = "new") -> Change:
    """Return a function that adds a key to a tree or a set, or changes its value."""
    def change(tree: Any) -> None:
        if isinstance(tree, OOBTree):
            tree[key] = value
        else:
            tree.add(key)
    return change


def delete(*keys: int) -> Change:
    """Return a function that takes keys out of a tree or a set."""
    def change(tree: Any) -> None:
        for key in keys:
            if isinstance(tree, OOBTree):
                del tree[key]
            else:
                tree.remove(key)
    return change


def insert_all(first: int, beyond: int) -> Change:
    """Return a function that adds the odd keys of a range."""
    return each(*map(insert, range(first, beyond, 2)))


def each(*changes: Change) -> Change:
    """Return a function that makes several changes."""
    def change(tree: Any) -> None:
        for one in changes:
            one(tree)
    return change


# Cases of one bucket: run in a tree that has no other one, and in a tree of many.
IN_A_BUCKET: dict[str, tuple[Change, Change]] = {
    "both insert different keys": (insert(1), insert(3)),
    "both insert different keys next to each other, as a log does": (insert(21), insert(23)),
    "both insert the same key, with the same value": (insert(1), insert(1)),
    "one inserts a key, one deletes another": (insert(1), delete(4)),
    "both delete different keys": (delete(2), delete(4)),
    "both delete the same key": (delete(2), delete(2)),
    "one deletes the first key, one inserts another": (delete(0), insert(3)),
    "one inserts and deletes the same key, one inserts another": (
        each(insert(1), delete(1)), insert(3)
    ),
}
# The same, for what has values.
VALUES: dict[str, tuple[Change, Change]] = {
    "both insert the same key, with different values": (insert(1, "a"), insert(1, "b")),
    "both change different keys' values": (insert(2, "a"), insert(4, "b")),
    "both change the same key's value": (insert(2, "a"), insert(2, "b")),
    "both change the same key's value, to the same": (insert(2, "a"), insert(2, "a")),
    "one changes a key's value, one deletes the key": (insert(2, "a"), delete(2)),
    "one changes a key's value, one inserts another key": (insert(2, "a"), insert(3)),
}
# Cases with keys of their own to begin from.
OTHERS: dict[str, tuple[Any, Change, Change]] = {
    "both insert, into different buckets": (SIZES["many buckets"], insert(1), insert(151)),
    "one splits the bucket, one inserts another key": (FULL, insert(1), each(delete(2), insert(3))),
    "both split the bucket": (FULL, insert(1), insert(3)),
    "together they make the bucket too full": (FULL[1:], insert(3), insert(5)),
    "one splits a bucket, one inserts into another bucket": (
        APART, insert_all(1, 57), insert(61)
    ),
    "both split different buckets": (
        APART, insert_all(1, 57), insert_all(121, 177)
    ),
    "one empties the only bucket, one inserts": (SIZES["one bucket"], delete(*range(0, 20, 2)),
                                                 insert(3)),
    "one empties one bucket of many, one inserts into it": (
        SIZES["many buckets"], delete(*range(0, 30, 2)), insert(3)
    ),
    "one empties one bucket of many, one inserts into the next": (
        SIZES["many buckets"], delete(*range(0, 30, 2)), insert(33)
    ),
    "each deletes a part, together they empty the bucket": ((0, 2), delete(0), delete(2)),
    "the tree is empty, both insert different keys": ((), insert(1), insert(3)),
    "the tree is empty, both insert the same key": ((), insert(1), insert(1)),
}


@contextmanager
def side_by_side(db: objdb.DB) -> Iterator[list[tuple[transaction.TransactionManager, Any]]]:
    """Give two transactions, each with its connection, that begin before either commits."""
    managers = [transaction.TransactionManager() for _ in range(2)]
    connections = [db.open(transaction_manager=manager) for manager in managers]
    for manager in managers:
        manager.begin()
    yield list(zip(managers, connections, strict=True))
    for manager, connection in zip(managers, connections, strict=True):
        manager.abort()
        connection.close()


def outcome(db: objdb.DB, kind: type, keys: Any, changes: tuple[Change, Change]) -> str:
    """Tell what becomes of two changes of a tree or a set, whichever is committed first."""
    first = commit_both(db, filled(kind, keys), changes)
    second = commit_both(db, filled(kind, keys), changes[::-1])
    return first if first == second else f"{first}; {second} if the other is committed first"


def commit_both(
    db: objdb.DB, made: Any, changes: tuple[Change, Change], *, look: bool = True
) -> str:
    """Make two changes of *made* at once, and tell whether both were committed; then nothing
    of either may be missing."""
    with db.transaction() as connection:
        connection.root()["it"] = made
    with side_by_side(db) as sides:
        for (_, connection), change in zip(sides, changes, strict=True):
            change(connection.root()["it"])
        sides[0][0].commit()
        try:
            sides[1][0].commit()
        except objdb.ConflictError:
            return "conflict"
    with db.transaction() as connection:
        if look:
            _both_are_there(connection.root()["it"], changes)
    return "merged"


def _both_are_there(tree: Any, changes: tuple[Change, Change]) -> None:
    """A change that is made again, after it was merged, finds nothing to do."""
    before = _contents(tree)
    for change in changes:
        try:
            change(tree)
        except KeyError:
            continue
        assert _contents(tree) == before
    tree._check()


def _contents(tree: Any) -> list[Any]:
    return list(tree.items()) if isinstance(tree, OOBTree) else list(tree)


def filled(kind: type, keys: Any) -> Any:
    """Return a tree or a set with *keys*."""
    return OOBTree(dict.fromkeys(keys, "old")) if kind is OOBTree else OOTreeSet(keys)


def rows(db: objdb.DB) -> Iterator[tuple[str, ...]]:
    """Run every case; yield its name, and what happens in a tree and in a set."""
    for name, changes in {**IN_A_BUCKET, **VALUES}.items():
        found = []
        for kind in TYPES if name in IN_A_BUCKET else TYPES[:1]:
            outcomes = {outcome(db, kind, keys, changes) for keys in SIZES.values()}
            assert len(outcomes) == 1, f"{name}: depends on the number of buckets"
            found.append(outcomes.pop())
        yield (name, *found, *["has no values"] * (len(TYPES) - len(found)))
    for name, (keys, *pair) in OTHERS.items():
        one, other = pair
        yield (name, *(outcome(db, kind, keys, (one, other)) for kind in TYPES))


def buckets(tree: Any) -> int:
    """Return how many buckets a tree or a set has."""
    state = tree.__getstate__()
    return 0 if state is None else (len(state[0]) + 1) // 2


def test_the_table_is_true(db: objdb.DB) -> None:
    """The table in the documentation says what happens in every case."""
    lines = ["| at the same time | OOBTree | OOTreeSet |", "|---|---|---|"]
    lines += [f"| {' | '.join(row)} |" for row in rows(db)]
    table = "\n".join(lines)
    text = PAGE.read_text(encoding="utf-8")
    assert f"\n\n{table}\n\n" in text, f"the table should be:\n{table}"


def test_the_cases_are_what_they_say() -> None:
    """Buckets split, and are emptied, where a case says so."""
    for name, numbers in {
        "one splits the bucket, one inserts another key": (1, 2, 1),
        "both split the bucket": (1, 2, 2),
        "together they make the bucket too full": (1, 1, 1),
        "one splits a bucket, one inserts into another bucket": (6, 7, 6),
        "both split different buckets": (6, 7, 7),
        "one empties the only bucket, one inserts": (1, 0, 1),
        "one empties one bucket of many, one inserts into it": (6, 5, 6),
        "one empties one bucket of many, one inserts into the next": (6, 5, 6),
    }.items():
        for kind in TYPES:
            keys, *pair = OTHERS[name]
            trees = [filled(kind, keys) for _ in range(3)]
            for tree, change in zip(trees[1:], pair, strict=True):
                change(tree)
            assert tuple(map(buckets, trees)) == numbers, name


def test_lengths_add_up(db: objdb.DB) -> None:
    """Changes of one Length add up, and setting it counts as adding the difference, as the
    documentation says."""
    def change(length: Length) -> None:
        length.change(2)

    def assign(length: Length) -> None:
        length.set(1)

    for one, other, expected in (
        (change, change, 9), (change, assign, 3), (assign, change, 3), (assign, assign, -3),
    ):
        assert commit_both(db, Length(5), (one, other), look=False) == "merged"
        with db.transaction() as connection:
            assert connection.root()["it"]() == expected
    text = PAGE.read_text(encoding="utf-8")
    assert "| both `change` it | merged: the changes add up |" in text
    assert "| one or both `set` it | merged: as if the difference had been added |" in text


def test_a_length_beside_a_tree(db: objdb.DB) -> None:
    """A tree and the Length beside it are merged in one commit."""
    with db.transaction() as connection:
        connection.root().update(tree=OOBTree(), length=Length())
    with side_by_side(db) as sides:
        for number, (_, connection) in enumerate(sides):
            connection.root()["tree"][number] = "new"
            connection.root()["length"].change(1)
        for manager, _ in sides:
            manager.commit()
    with db.transaction() as connection:
        assert list(connection.root()["tree"]) == [0, 1]
        assert connection.root()["length"]() == 2
