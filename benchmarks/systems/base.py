"""What a measurement sees of a system.

A `System` is a kind of database; `create` and `open` give a `Store`, an open database with one
container of `Item`s under integer keys. Object databases give an `ObjectStore`, which also holds
graphs of persistent objects. A system says in `abilities` what it can take part in:

    items      a container of items: loading and committing them, opening large files
    save       small durable commits (the bare writes can do this and nothing else)
    threads    several threads committing through one open database
    objects    graphs of persistent objects
    sweep      turning loaded objects into ghosts, by request and by invalidation
    index      an index from object ids to file positions, which can be touched all over
    retries    transactions that are tried again after a conflict
    isolation  more than one isolation mode
    history    an undo log, undoing, iterating over transactions, copying them
    processes  several processes committing to one file
    versions   named lines of work apart from the others
    attribute  attributes of loaded objects that are more than plain Python attributes
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar

MANY_OBJECTS = 2_000_000
"""The cache size given to the object databases, so that they hold whatever a measurement loads."""

CACHE_BYTES = 256 << 20
"""The page cache given to the systems that have one of their own."""


class Store(ABC):
    """An open database with a container of items."""

    @abstractmethod
    def stage(self, keys: Iterable[int]) -> None:
        """Make new items and hand them to the database, as far as that costs it nothing.

        The object databases put them into the tree, in memory. The others keep them aside until
        `commit`, since for them storing is part of committing.
        """

    @abstractmethod
    def commit(self) -> None:
        """Make the staged items durable."""

    @abstractmethod
    def item(self, key: int) -> Any:
        """The item as an object in memory."""

    @abstractmethod
    def save(self, key: int, item: Any) -> None:
        """Make the change of one loaded item durable."""

    @abstractmethod
    def read_in_order(self) -> list[Any]:
        """All items in the order of the container, one attribute of each read."""

    @abstractmethod
    def read_by_key(self, keys: Iterable[int]) -> list[Any]:
        """The items under `keys`, one attribute of each read."""

    @abstractmethod
    def ready(self) -> None:
        """Return when the database has answered one read, of the root or of a first record."""

    @abstractmethod
    def close(self) -> None:
        """Close cleanly."""

    @contextmanager
    def session(self) -> Iterator[Store]:
        """A view for one more thread on the same open database."""
        yield self

    def trim(self) -> None:  # noqa: B027  most have nothing to let go of
        """Let go of loaded objects, so that loading millions of them fits into memory."""


class ObjectStore(Store):
    """A store of persistent objects, with a tree of items at `root()["items"]`."""

    model: Any

    @abstractmethod
    def root(self) -> Any:
        """The root mapping."""

    @abstractmethod
    def new_tree(self) -> Any:
        """An empty tree, of the kind that the system's users take."""

    def create_container(self) -> None:
        self.root()["items"] = self.new_tree()
        self.commit()

    def stage(self, keys: Iterable[int]) -> None:
        tree, new_item = self.root()["items"], self.model.Item
        for key in keys:
            tree[key] = new_item(key)

    def item(self, key: int) -> Any:
        return self.root()["items"][key]

    def save(self, key: int, item: Any) -> None:
        self.commit()

    def read_in_order(self) -> list[Any]:
        loaded: list[Any] = []
        keep = loaded.append
        for item in self.root()["items"].values():
            item.number  # noqa: B018  loads it
            keep(item)
        return loaded

    def read_by_key(self, keys: Iterable[int]) -> list[Any]:
        loaded: list[Any] = []
        keep = loaded.append
        tree = self.root()["items"]
        for key in keys:
            item = tree[key]
            item.number  # noqa: B018  loads it
            keep(item)
        return loaded

    def ready(self) -> None:
        list(self.root())


class System(ABC):
    """A kind of database."""

    name: ClassVar[str]
    title: ClassVar[str]
    module: ClassVar[str]
    package: ClassVar[str | None]
    abilities: ClassVar[frozenset[str]]
    is_database: ClassVar[bool] = True
    # Names of measurements, if it takes part in these only. Such systems are measured when they
    # are asked for.
    takes_part_in: ClassVar[frozenset[str] | None] = None

    @abstractmethod
    def create(self, path: Path) -> Store:
        """Make a new database in the empty directory `path`."""

    @abstractmethod
    def open(self, path: Path) -> Store:
        """Open the database in the directory `path`."""

    def is_available(self) -> bool:
        """Whether it can be imported here."""
        return find_spec(self.module) is not None

    def version(self) -> str:
        """The version of the package that was measured."""
        try:
            return version(self.package or self.module)
        except PackageNotFoundError:
            return "from the working tree"

    def prepare(self, path: Path) -> None:
        """What its users do once after loading much data, if anything."""
        self.open(path).close()
