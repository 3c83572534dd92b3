# The types of `typed.py`, for type checkers.

from collections.abc import Iterable, Iterator, Mapping, MutableMapping, MutableSequence
from typing import Any, Generic, SupportsIndex, TypeVar, overload

Key = TypeVar("Key")
Value = TypeVar("Value")
Item = TypeVar("Item")

class Persistent:
    """An object that the database keeps: see `persistent.Persistent`."""

    _p_oid: bytes | None
    _p_jar: Any
    _p_serial: bytes
    _p_changed: bool | None
    _p_mtime: float | None
    _p_state: int
    _p_estimated_size: int

    def _p_activate(self) -> None: ...
    def _p_deactivate(self) -> None: ...
    def _p_invalidate(self) -> None: ...
    def __getstate__(self) -> Any: ...
    def __setstate__(self, state: Any) -> None: ...

class PersistentMapping(Persistent, MutableMapping[Key, Value], Generic[Key, Value]):
    """A dict that is an object of its own."""

    data: dict[Key, Value]

    @overload
    def __init__(self) -> None: ...
    @overload
    def __init__(self: PersistentMapping[str, Value], **values: Value) -> None: ...
    @overload
    def __init__(
        self, given: Mapping[Key, Value] | Iterable[tuple[Key, Value]], **values: Value
    ) -> None: ...
    def __getitem__(self, key: Key) -> Value: ...
    def __setitem__(self, key: Key, value: Value) -> None: ...
    def __delitem__(self, key: Key) -> None: ...
    def __iter__(self) -> Iterator[Key]: ...
    def __len__(self) -> int: ...
    def copy(self) -> PersistentMapping[Key, Value]:
        """Return another one with the same keys and values."""

class PersistentList(Persistent, MutableSequence[Item], Generic[Item]):
    """A list that is an object of its own."""

    data: list[Item]

    def __init__(self, given: Iterable[Item] = ...) -> None: ...
    @overload
    def __getitem__(self, index: SupportsIndex) -> Item: ...
    @overload
    def __getitem__(self, index: slice) -> PersistentList[Item]: ...
    @overload
    def __setitem__(self, index: SupportsIndex, value: Item) -> None: ...
    @overload
    def __setitem__(self, index: slice, value: Iterable[Item]) -> None: ...
    def __delitem__(self, index: SupportsIndex | slice) -> None: ...
    def __len__(self) -> int: ...
    def __lt__(self, other: Iterable[Item]) -> bool: ...
    def __add__(self, other: Iterable[Item]) -> PersistentList[Item]: ...
    def insert(self, index: SupportsIndex, value: Item) -> None:
        """Put *value* before what is at *index*."""

    def sort(self, *, key: Any = None, reverse: bool = False) -> None:
        """Put the items in order."""

    def copy(self) -> PersistentList[Item]:
        """Return another one with the same items."""

__all__ = ["Persistent", "PersistentList", "PersistentMapping"]
