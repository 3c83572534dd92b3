"""What LMDB, Berkeley DB and sqlite have in common: pickled plain objects under integer keys."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable
from pickle import HIGHEST_PROTOCOL, dumps
from struct import Struct
from typing import Any

from benchmarks.shapes import Item
from benchmarks.systems.base import Store

pack_key = Struct(">Q").pack
"""8 bytes, big-endian, so that the order of the bytes is the order of the numbers."""


def pickled(item: Item) -> bytes:
    """The record of an item."""
    return dumps(item, HIGHEST_PROTOCOL)


class KeyValueStore(Store):
    """Stages plain items in a list; pickling and writing them is the commit."""

    def __init__(self) -> None:
        self._staged: list[tuple[int, Item]] = []

    @abstractmethod
    def write(self, items: Iterable[tuple[int, Item]]) -> None:
        """Pickle and write the items in one durable transaction."""

    def stage(self, keys: Iterable[int]) -> None:
        self._staged.extend((key, Item(key)) for key in keys)

    def commit(self) -> None:
        self.write(self._staged)
        self._staged = []

    def item(self, key: int) -> Any:
        return self.read_by_key([key])[0]

    def save(self, key: int, item: Any) -> None:
        self.write([(key, item)])

    def ready(self) -> None:
        self.item(0)
