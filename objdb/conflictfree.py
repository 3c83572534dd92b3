"""Types whose concurrent changes are merged: several transactions change one object, all commit.

    snapshot ──► committed   (the changes of another transaction, already in the database)
        └──────► new         (ours)         merged = committed + our changes

    Counter        additions add up
    AppendQueue    appended items are all kept; an item is taken by one transaction only
    Set            changes of different elements merge
    Mapping        changes of different keys merge
    MaxRegister    the largest value stays

Each is one object with one record, which is merged in `_p_resolveConflict` when a transaction in
snapshot isolation commits. Changes that cannot be merged raise `ConflictError`, as usual. Other
attributes, such as those of a subclass, are merged by name, as the keys of a `Mapping` are.

Persistent objects may be elements, items, keys and values. They are compared by identity: they
are not loaded, and their `__eq__` and `__hash__` are not called.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, MutableMapping
from fractions import Fraction
from types import BuiltinFunctionType, FunctionType
from typing import TYPE_CHECKING, Any, TypeVar

from persistent import Persistent
from persistent.wref import WeakRef

from objdb.records.comparing import is_stored_alike
from objdb.records.conflicts import PersistentReference

__all__ = ["AppendQueue", "Counter", "Mapping", "MaxRegister", "Set"]

_ABSENT = object()
_K = TypeVar("_K", bound=Hashable)


class _Mergeable(Persistent):
    """Merges all attributes except `_own` by name; `_merge` returns those."""

    _own: tuple[str, ...] = ()

    def _p_resolveConflict(self, old: Any, committed: Any, new: Any) -> dict[str, Any]:
        states = [{} if state is None else state for state in (old, committed, new)]
        others = [{k: v for k, v in state.items() if k not in self._own} for state in states]
        return {**_merge_by_key(*others), **self._merge(*states)}

    if TYPE_CHECKING:

        def _merge(
            self, old: dict[str, Any], committed: dict[str, Any], new: dict[str, Any]
        ) -> dict[str, Any]: ...


class Counter(_Mergeable):
    """A number that concurrent transactions add to.

    Merge: concurrent additions add up. Numbers are int or `fractions.Fraction`: their sums do
    not depend on the order.
    """

    _own = ("_value",)
    _value: int | Fraction = 0

    def __init__(self, value: int | Fraction = 0) -> None:
        self._value = _number(value)

    @property
    def value(self) -> int | Fraction:
        """The sum of the initial value and everything added."""
        return self._value

    def add(self, amount: int | Fraction = 1) -> None:
        """Add *amount*, which may be negative. `TypeError` if it is not an int or Fraction."""
        if _number(amount):
            self._value += amount

    def _merge(
        self, old: dict[str, Any], committed: dict[str, Any], new: dict[str, Any]
    ) -> dict[str, Any]:
        before, theirs, ours = (state.get("_value", 0) for state in (old, committed, new))
        return {"_value": theirs + ours - before}

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._value}>"


class MaxRegister(_Mergeable):
    """The largest value it was ever set to.

    Merge: the larger of the two. Values are of one ordered type: numbers, strings, dates, or
    tuples of them. Persistent objects are refused, since a merge cannot compare them.
    """

    _own = ("_value",)
    _value: Any = None

    def __init__(self, value: Any = None) -> None:
        self._value = None
        self.set(value)

    @property
    def value(self) -> Any:
        """The largest value so far; None if there is none."""
        return self._value

    def set(self, value: Any) -> None:
        """Keep *value* if it is larger than the present one; None changes nothing.

        `TypeError` for persistent objects and for values that do not compare with the present
        one, `ValueError` for a value neither larger nor smaller nor equal, such as NaN.
        """
        if isinstance(value, (Persistent, WeakRef)):
            raise TypeError(f"{value!r} is a persistent object; a merge cannot compare them")
        if _is_larger(value, value):
            raise ValueError(f"{value!r} is larger than itself")
        if _is_larger(value, self._value):
            self._value = value

    def _merge(
        self, old: dict[str, Any], committed: dict[str, Any], new: dict[str, Any]
    ) -> dict[str, Any]:
        theirs, ours = committed.get("_value"), new.get("_value")
        return {"_value": ours if _is_larger(ours, theirs) else theirs}

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._value!r}>"


class AppendQueue(_Mergeable):
    """A queue: items are appended at the end and taken from the front.

    Merge: the result of running our transaction after the other one's commit. So concurrent
    appends are all kept, the committed ones first, and one transaction may append while another
    takes. It is a conflict if both took the same item; and if ours took an item that it had
    appended itself, while the other appended items that now come before it.

    Items are identified by position, so they may be anything, and equal.
    """

    _own = ("_items", "_taken")
    _items: list[Any]
    _taken = 0  # number of items ever taken

    def __init__(self, items: Iterable[Any] = ()) -> None:
        self._items, self._taken = list(items), 0

    def __setstate__(self, state: dict[str, Any] | None) -> None:
        super().__setstate__({"_items": [], **(state or {})})

    def append(self, item: Any) -> None:
        """Put *item* at the end."""
        self._items.append(item)
        self._p_changed = True

    def popleft(self) -> Any:
        """Take the first item, and return it. `IndexError` if there is none."""
        if not self._items:
            raise IndexError("the queue is empty")
        self._taken += 1
        return self._items.pop(0)

    def __len__(self) -> int:
        return len(self._items)

    def __iter__(self) -> Iterator[Any]:
        return iter(self._items)

    def _merge(
        self, old: dict[str, Any], committed: dict[str, Any], new: dict[str, Any]
    ) -> dict[str, Any]:
        (before, past), (theirs, they_took), (ours, we_took) = (
            (state.get("_items", []), state.get("_taken", 0)) for state in (old, committed, new)
        )
        size, they_took, we_took = len(before), they_took - past, we_took - past
        if they_took and we_took and size:
            raise ValueError("both transactions took the first item")
        if we_took > size and theirs[max(size - they_took, 0):]:
            raise ValueError("the item taken is not the first one any more")
        items = theirs[we_took:] + ours[max(size - we_took, 0):]
        return {"_items": items, "_taken": past + they_took + we_took}

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {len(self)}>"


class Set(_Mergeable):
    """A set that iterates in the order in which its elements were added.

    Merge: an element is in the merged set if one of the transactions added it, and is not in it
    if one of them removed it. Adding an element of the set, and removing one that is not in it,
    changes nothing, so the two cannot be opposite. If one removes an element and the other adds
    it although it is there, it is removed, as if it had been added first. No merge is a conflict.

    Elements are hashable, and have an `__eq__` of their own or are persistent objects.
    """

    _own = ("_elements",)
    _elements: dict[Hashable, Any]  # by key; a list of the elements in the stored state

    def __init__(self, elements: Iterable[Hashable] = ()) -> None:
        self._elements = {_checked_key(element): element for element in elements}

    def __getstate__(self) -> dict[str, Any]:
        state: dict[str, Any] = super().__getstate__()
        return {**state, "_elements": list(state.get("_elements", {}).values())}

    def __setstate__(self, state: dict[str, Any] | None) -> None:
        state = state or {}
        elements = {_key(element): element for element in state.get("_elements", ())}
        super().__setstate__({**state, "_elements": elements})

    def add(self, element: Hashable) -> None:
        """Add *element*, if it is not there yet.

        `TypeError` if it is not hashable, a weak reference, or neither persistent nor with an
        `__eq__` of its own: it would be another element after loading. `ValueError` if it does
        not equal itself, such as NaN.
        """
        key = _checked_key(element)
        if key not in self._elements:
            self._elements[key] = element
            self._p_changed = True

    def discard(self, element: Hashable) -> None:
        """Remove *element*, if it is there."""
        key = _key(element)
        if key in self._elements:
            del self._elements[key]
            self._p_changed = True

    def __contains__(self, element: object) -> bool:
        return _key(element) in self._elements

    def __len__(self) -> int:
        return len(self._elements)

    def __iter__(self) -> Iterator[Any]:
        return iter(self._elements.values())

    def _merge(
        self, old: dict[str, Any], committed: dict[str, Any], new: dict[str, Any]
    ) -> dict[str, Any]:
        before, theirs, ours = (
            {_checked_key(element): element for element in state.get("_elements", ())}
            for state in (old, committed, new)
        )
        kept = [value for key, value in theirs.items() if key in ours or key not in before]
        added = [
            value for key, value in ours.items() if key not in before and key not in theirs
        ]
        return {"_elements": kept + added}

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {len(self)}>"


class Mapping(_Mergeable, MutableMapping[Any, Any]):
    """A mapping merged by key, in the order in which keys were added.

    Merge: changes of different keys merge. Different changes of one key are a conflict: two
    values that are not stored alike, or a value and a deletion. The same change of one key is
    not a conflict. Setting a key to the value that it has changes nothing.

    Keys are as the elements of a `Set`. Values are anything; as in every persistent object, a
    change inside a value that is not persistent is not noticed. Two mappings are equal only if
    they are the same object.
    """

    _own = ("_entries",)
    _entries: dict[Hashable, tuple[Any, Any]]  # by key's key; a list of the pairs when stored

    def __init__(self, entries: Any = (), **more: Any) -> None:
        self._entries = {}
        self.update(entries, **more)

    def __getstate__(self) -> dict[str, Any]:
        state: dict[str, Any] = super().__getstate__()
        return {**state, "_entries": list(state.get("_entries", {}).values())}

    def __setstate__(self, state: dict[str, Any] | None) -> None:
        state = state or {}
        entries = {_key(key): (key, value) for key, value in state.get("_entries", ())}
        super().__setstate__({**state, "_entries": entries})

    __eq__ = object.__eq__
    __hash__ = object.__hash__

    def __getitem__(self, key: Any) -> Any:
        try:
            return self._entries[_key(key)][1]
        except KeyError:
            raise KeyError(key) from None

    def __setitem__(self, key: Any, value: Any) -> None:
        place = _checked_key(key)
        kept = self._entries.get(place, (key,))[0]
        self._entries[place] = (kept, value)
        self._p_changed = True

    def __delitem__(self, key: Any) -> None:
        self[key]
        del self._entries[_key(key)]
        self._p_changed = True

    def __contains__(self, key: object) -> bool:
        return _key(key) in self._entries

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[Any]:
        return (key for key, _ in self._entries.values())

    def _merge(
        self, old: dict[str, Any], committed: dict[str, Any], new: dict[str, Any]
    ) -> dict[str, Any]:
        states = [state.get("_entries", ()) for state in (old, committed, new)]
        keys = {_checked_key(key): key for state in states for key, _ in state}
        values = [{_key(key): value for key, value in state} for state in states]
        merged = _merge_by_key(*values)
        return {"_entries": [(keys[key], value) for key, value in merged.items()]}

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {len(self)}>"


class _Same:
    """Stands for an object that equals only itself, whatever its class says."""

    __slots__ = ("thing",)

    def __init__(self, thing: Any) -> None:
        self.thing = thing

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and other.thing is self.thing

    def __hash__(self) -> int:
        return id(self.thing)

    def __repr__(self) -> str:
        return object.__repr__(self.thing)


def _key(element: Any) -> Hashable:
    """Return the dict key of *element*: persistent objects, and the references that stand for
    them in a merge, go by identity, inside tuples and frozensets as well."""
    if isinstance(element, (Persistent, PersistentReference, WeakRef)):
        return _Same(element)
    kind: Any = type(element)
    if isinstance(element, tuple) and kind.__eq__ is tuple.__eq__:
        return tuple(map(_key, element))
    if isinstance(element, frozenset):
        return frozenset(map(_key, element))
    if kind.__eq__ is object.__eq__:
        return _Same(element)
    hash(element)
    return element  # type: ignore[no-any-return]


def _checked_key(element: Any) -> Hashable:
    """Return `_key(element)`, after checking that the element is the same when loaded again."""
    kind: Any = type(element)
    if isinstance(element, (tuple, frozenset)):
        for part in element:
            _checked_key(part)
    elif isinstance(element, WeakRef) or (
        isinstance(element, PersistentReference) and element.weak
    ):
        raise TypeError("a weak reference cannot be an element or a key")
    elif not isinstance(element, (Persistent, PersistentReference)):
        by_name = isinstance(element, (type, FunctionType, BuiltinFunctionType))
        if kind.__eq__ is object.__eq__ and not by_name and element is not None:
            raise TypeError(
                f"{element!r} equals only itself, and would be another element after loading: "
                "make its class persistent, or give it __eq__ and __hash__"
            )
        if element != element:
            raise ValueError(f"{element!r} does not equal itself")
    return _key(element)


def _merge_by_key(
    old: dict[_K, Any], committed: dict[_K, Any], new: dict[_K, Any]
) -> dict[_K, Any]:
    """Return *committed* with the changes from *old* to *new*; `ValueError` if both changed a
    key, to different values."""
    merged = dict(committed)
    for key in {**old, **new}:
        before, theirs, ours = (state.get(key, _ABSENT) for state in (old, committed, new))
        if is_stored_alike(before, ours) or is_stored_alike(theirs, ours):
            continue
        if not is_stored_alike(before, theirs):
            raise ValueError(f"both transactions changed {key!r}")
        if ours is _ABSENT:
            del merged[key]
        else:
            merged[key] = ours
    return merged


def _number(value: Any) -> Any:
    if not isinstance(value, (int, Fraction)):
        raise TypeError(f"expected an int or a Fraction, not {value!r}")
    return value


def _is_larger(one: Any, other: Any) -> bool:
    """Whether *one* is larger than *other*; None is smaller than everything."""
    if one is None or other is None:
        return one is not None and other is None
    if one > other:
        return True
    if not one <= other:
        raise ValueError(f"{one!r} is neither larger nor smaller than {other!r}")
    return False
