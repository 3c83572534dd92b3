"""A small application as users write it, for type checkers: see `test_typing`."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timezone
from pathlib import Path

import objdb
from objdb import Persistent, PersistentList, PersistentMapping
from objdb.btrees import IOBTree, Length, OOBTree, OOTreeSet


class Person(Persistent):
    """Somebody."""

    def __init__(self, name: str, born: int) -> None:
        self.name = name
        self.born = born
        self.friends: PersistentList[Person] = PersistentList()
        self.notes: PersistentMapping[str, str] = PersistentMapping()

    def befriend(self, other: Person) -> None:
        """Be friends from now on."""
        if other not in self.friends:
            self.friends.append(other)
            other.befriend(self)


class Register(Persistent):
    """Everybody."""

    def __init__(self) -> None:
        self.people: OOBTree[str, Person] = OOBTree()
        self.by_year: IOBTree[OOTreeSet[str]] = IOBTree()
        self.count = Length()

    def add(self, person: Person) -> None:
        """Register a person."""
        self.people[person.name] = person
        self.by_year.setdefault(person.born, OOTreeSet()).add(person.name)
        self.count.change(1)

    def born(self, first: int, last: int) -> Iterator[str]:
        """Yield names, by year."""
        for names in self.by_year.values(first, last):
            yield from names


def register_of(connection: objdb.Connection) -> Register:
    """Return the register, made if it is not there."""
    root = connection.root()
    if "register" not in root:
        root["register"] = Register()
    register: Register = root["register"]
    return register


def fill(db: objdb.DB) -> int:
    """Register two people; return how many there are."""
    with db.transaction(note="two people") as connection:
        ann, bob = Person("Ann", 1990), Person("Bob", 1985)
        ann.befriend(bob)
        register = register_of(connection)
        register.add(ann)
        register.add(bob)

    def count(connection: objdb.Connection) -> int:
        return register_of(connection).count()

    return db.run(count, tries=5)


async def names(db: objdb.DB) -> list[str]:
    """Return all names, in order."""
    async with db.transaction() as connection:
        register = register_of(connection)
        await connection.prefetch(register.people)
        return list(register.people.keys())


def yesterday(db: objdb.DB, moment: datetime) -> int:
    """Return how many there were."""
    with db.open(at=moment) as connection:
        return len(register_of(connection).people)


def main(folder: Path) -> None:
    """Do everything once."""
    storage = objdb.FileStorage(folder / "people.fs", durability="os")
    with objdb.DB(storage, isolation="serializable", cache_size=1000) as db:
        fill(db)
        with db.transaction() as connection:
            ann: Person | None = register_of(connection).people.get("Ann")
            assert ann is not None and ann.friends[0].name == "Bob"
            connection.root.register.count.change(0)
        assert yesterday(db, datetime.now(timezone.utc)) == 2
        result: objdb.PackResult = db.pack(days=1)
        assert result.objects_after > 0
        entries = db.undoLog()
        assert entries[0]["description"] is not None
