"""Finding differences between values as they are pickled: part by part, not by their `__eq__`.

1 and True are equal, and references to different objects cannot be compared; their pickles differ.
The order of the parts of a dict or a set does not count.
"""

from __future__ import annotations

import copyreg
import types
from typing import Any

from persistent import Persistent
from persistent.wref import WeakRef

from objdb.records.btrees import items_of
from objdb.records.conflicts import PersistentReference
from objdb.records.format import PROTOCOL
from objdb.records.showing import shown

# Pickled by name.
_NAMED = (types.FunctionType, types.BuiltinFunctionType)
# Compared with ==: they have no parts that could change.
_ATOMS = frozenset({type(None), bool, int, float, complex, str, bytes, WeakRef})


def is_stored_alike(one: Any, other: Any) -> bool:
    """Whether two values are stored alike."""
    return Comparison().find(one, other) is None


class Comparison:
    """Finds where two values, as they are pickled, differ."""

    def __init__(self) -> None:
        self._met: set[tuple[int, int]] = set()
        self._alive: list[Any] = []  # whose ids are in `_met`

    def in_states(self, cls: type, before: Any, now: Any) -> str | None:
        """Return the path to the first difference between two states of a persistent object."""
        pairs, pairs_now = items_of(cls, before), items_of(cls, now)
        if pairs is not None and pairs_now is not None:
            return self._in_dict(pairs, pairs_now, is_keyed=True)
        return self._in_state(cls, before, now)

    def find(self, before: Any, now: Any) -> str | None:
        """Return the path to the first difference, `""` for the whole; None if there is none."""
        if before is now:
            return None
        if type(before) is not type(now):
            return ""
        cls = type(before)
        if cls in _ATOMS:
            return None if before == now or (before != before and now != now) else ""
        if isinstance(now, Persistent):
            return ""
        if cls is PersistentReference:
            return None if _target(before) == _target(now) else ""
        if (id(before), id(now)) in self._met:
            return None
        self._met.add((id(before), id(now)))
        self._alive += before, now
        if cls in _NAMED or isinstance(now, type):
            return None if _name(before) == _name(now) else ""
        if cls is dict:
            return self._in_dict(before, now, is_keyed=True)
        if cls is list or cls is tuple:
            return self._in_list(before, now)
        if cls is set or cls is frozenset:
            return self._in_set(before, now)
        return self._in_object(before, now)

    def _in_dict(
        self, before: dict[Any, Any], now: dict[Any, Any], *, is_keyed: bool
    ) -> str | None:
        pairs = list(zip(before, now, strict=False))
        if len(before) != len(now) or any(self.find(*pair) is not None for pair in pairs):
            # Other keys, or another order.
            for key in [*now, *before]:
                if key not in now or key not in before:
                    return _step(key, is_keyed)
            pairs = [(key, key) for key in now]
        for old, key in pairs:
            path = self.find(before[old], now[key])
            if path is not None:
                return _step(key, is_keyed) + path
        return None

    def _in_list(self, before: Any, now: Any) -> str | None:
        for i, (old, new) in enumerate(zip(before, now, strict=False)):
            path = self.find(old, new)
            if path is not None:
                return f"[{i}]{path}"
        return None if len(before) == len(now) else f"[{min(len(before), len(now))}]"

    def _in_set(self, before: Any, now: Any) -> str | None:
        added = [part for part in now if part not in before]
        for part in before:
            if part not in now:
                match = next((i for i, p in enumerate(added) if self.find(part, p) is None), None)
                if match is None:
                    return ""
                del added[match]
        return "" if added else None

    def _in_object(self, before: Any, now: Any) -> str | None:
        try:
            one, other = _Reduced(before), _Reduced(now)
        except Exception:  # not picklable now
            return ""
        self._alive += one, other
        if (
            self.find(one.maker, other.maker) is not None
            or self.find(one.arguments, other.arguments) is not None
        ):
            return ""
        path = self._in_state(type(now), one.state, other.state)
        if path is None:
            path = self._in_list(one.items, other.items)
        if path is None:
            path = self._in_dict(one.pairs, other.pairs, is_keyed=True)
        return path

    def _in_state(self, cls: type, before: Any, now: Any) -> str | None:
        if type(before) is tuple and type(now) is tuple and len(before) == len(now) == 2:
            # The attributes in `__dict__`, and those in slots.
            for one, other in zip(before, now, strict=True):
                path = self._in_state(cls, one, other)
                if path is not None:
                    return path
            return None
        if type(before) is dict and type(now) is dict:
            now = {
                key: value for key, value in now.items()
                if key in before or not _is_computed(cls, key)
            }
            return self._in_dict(before, now, is_keyed=False)
        return self.find(before, now)


def _step(key: Any, is_keyed: bool) -> str:
    return f"[{shown(key)}]" if is_keyed or type(key) is not str else f".{key}"


def _target(reference: PersistentReference) -> tuple[Any, ...]:
    return reference.oid, reference.database_name, reference.weak


def _name(named: Any) -> tuple[Any, Any]:
    return getattr(named, "__module__", None), getattr(named, "__qualname__", None)


def _is_computed(cls: type, name: Any) -> bool:
    """Whether an attribute is a cached computation, such as that of `functools.cached_property`:
    a descriptor that does not intercept setting the attribute."""
    found = next((vars(c)[name] for c in cls.__mro__ if name in vars(c)), None)
    kind = type(found)
    return (
        hasattr(kind, "__get__") and not hasattr(kind, "__set__")
        and not isinstance(found, (*_NAMED, classmethod, staticmethod, type))
    )


class _Reduced:
    """The parts of an object that pickle would store."""

    def __init__(self, obj: Any) -> None:
        reduce = copyreg.dispatch_table.get(type(obj))
        parts = obj.__reduce_ex__(PROTOCOL) if reduce is None else reduce(obj)
        if type(parts) is str:  # the name of a global
            parts = (None, parts)
        self.maker, self.arguments, self.state, items, pairs = (*parts, *[None] * 3)[:5]
        self.items, self.pairs = list(items or ()), dict(pairs or ())
