# The types of `btrees.py`, for type checkers.

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Generic, TypeVar, overload

from objdb.typed import Persistent

Key = TypeVar("Key")
Value = TypeVar("Value")
Other = TypeVar("Other")

class Set(Persistent, Generic[Key]):
    """A sorted set."""

    def __init__(self, keys: Iterable[Key] = ...) -> None: ...
    def __contains__(self, key: object) -> bool: ...
    def __iter__(self) -> Iterator[Key]: ...
    def __len__(self) -> int: ...
    def __bool__(self) -> bool: ...
    def add(self, key: Key) -> int:
        """Add a key; return 1 if it is new."""

    insert = add

    def remove(self, key: Key) -> None:
        """Remove a key; KeyError if it is not there."""

    def discard(self, key: Key) -> None:
        """Remove a key, if it is there."""

    def update(self, keys: Iterable[Key]) -> int:
        """Add keys; return how many were new."""

    def clear(self) -> None:
        """Remove all keys."""

    def pop(self) -> Key:
        """Remove and return a key."""

    def isdisjoint(self, other: Iterable[Any]) -> bool:
        """Whether no key is in *other*."""

    def keys(
        self, min: Key | None = None, max: Key | None = None, excludemin: bool = False,
        excludemax: bool = False,
    ) -> Sequence[Key]:
        """Return the keys from *min* to *max*, in order."""

    def minKey(self, least: Key | None = None) -> Key:
        """Return the first key, from *least* on; ValueError if there is none."""

    def maxKey(self, most: Key | None = None) -> Key:
        """Return the last key, up to *most*; ValueError if there is none."""

class Tree(Persistent, Generic[Key, Value]):
    """A sorted mapping."""

    @overload
    def __init__(self) -> None: ...
    @overload
    def __init__(self, given: Mapping[Key, Value] | Iterable[tuple[Key, Value]]) -> None: ...
    @overload
    def __init__(self, given: Tree[Key, Value]) -> None: ...
    def __getitem__(self, key: Key) -> Value: ...
    def __setitem__(self, key: Key, value: Value) -> None: ...
    def __delitem__(self, key: Key) -> None: ...
    def __contains__(self, key: object) -> bool: ...
    def __iter__(self) -> Iterator[Key]: ...
    def __len__(self) -> int: ...
    def __bool__(self) -> bool: ...
    @overload
    def get(self, key: Key) -> Value | None: ...
    @overload
    def get(self, key: Key, default: Value | Other) -> Value | Other: ...
    @overload
    def pop(self, key: Key) -> Value: ...
    @overload
    def pop(self, key: Key, default: Value | Other) -> Value | Other: ...
    def popitem(self) -> tuple[Key, Value]:
        """Remove and return a pair; KeyError if there is none."""

    def setdefault(self, key: Key, default: Value) -> Value:
        """Return the value of *key*, which is *default* from now on if there was none."""

    def insert(self, key: Key, value: Value) -> int:
        """Put a value where there is none; return 1, or 0 if there was one."""

    def update(
        self, given: Mapping[Key, Value] | Iterable[tuple[Key, Value]] | Tree[Key, Value]
    ) -> None:
        """Put all pairs of *given*."""

    def clear(self) -> None:
        """Remove everything."""

    def keys(
        self, min: Key | None = None, max: Key | None = None, excludemin: bool = False,
        excludemax: bool = False,
    ) -> Sequence[Key]:
        """Return the keys from *min* to *max*, in order."""

    def values(
        self, min: Key | None = None, max: Key | None = None, excludemin: bool = False,
        excludemax: bool = False,
    ) -> Sequence[Value]:
        """Return the values of the keys from *min* to *max*."""

    def items(
        self, min: Key | None = None, max: Key | None = None, excludemin: bool = False,
        excludemax: bool = False,
    ) -> Sequence[tuple[Key, Value]]:
        """Return the pairs of the keys from *min* to *max*."""

    iterkeys, itervalues, iteritems = keys, values, items

    def minKey(self, least: Key | None = None) -> Key:
        """Return the first key, from *least* on; ValueError if there is none."""

    def maxKey(self, most: Key | None = None) -> Key:
        """Return the last key, up to *most*; ValueError if there is none."""

class Length(Persistent):
    """A number whose concurrent changes are merged."""

    value: int

    def __init__(self, value: int = 0) -> None: ...
    def __call__(self) -> int: ...
    def set(self, value: int) -> None:
        """Make it *value*."""

    def change(self, by: int) -> None:
        """Add *by*."""

class OOBTree(Tree[Key, Value]):
    """Any keys, any values."""

class OIBTree(Tree[Key, int]): ...

class OLBTree(Tree[Key, int]): ...

class OUBTree(Tree[Key, int]): ...

class OQBTree(Tree[Key, int]): ...

class IOBTree(Tree[int, Value]): ...

class LOBTree(Tree[int, Value]): ...

class UOBTree(Tree[int, Value]): ...

class QOBTree(Tree[int, Value]): ...

class IIBTree(Tree[int, int]): ...

class LLBTree(Tree[int, int]): ...

class UUBTree(Tree[int, int]): ...

class QQBTree(Tree[int, int]): ...

class IFBTree(Tree[int, float]): ...

class LFBTree(Tree[int, float]): ...

class UFBTree(Tree[int, float]): ...

class QFBTree(Tree[int, float]): ...

class IUBTree(Tree[int, int]): ...

class UIBTree(Tree[int, int]): ...

class LQBTree(Tree[int, int]): ...

class QLBTree(Tree[int, int]): ...

class OOTreeSet(Set[Key]): ...

class OITreeSet(Set[Key]): ...

class OLTreeSet(Set[Key]): ...

class OUTreeSet(Set[Key]): ...

class OQTreeSet(Set[Key]): ...

class IOTreeSet(Set[int]): ...

class LOTreeSet(Set[int]): ...

class UOTreeSet(Set[int]): ...

class QOTreeSet(Set[int]): ...

class IITreeSet(Set[int]): ...

class LLTreeSet(Set[int]): ...

class UUTreeSet(Set[int]): ...

class QQTreeSet(Set[int]): ...
