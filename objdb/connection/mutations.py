"""Changes that nobody was told of, found at commit: for development and tests.

Persistent objects notice when an attribute is set, and not what happens inside a plain list, dict,
set or other object that an attribute holds. So before a commit each loaded object that counts as
unchanged is compared with the record it was loaded from:

    person.tags.append("new")                  not noticed
    commit ─► state now ≠ state loaded ─► UnregisteredMutationError: .tags[2]

Objects are compared as they are pickled, part by part, and not by their `__eq__`.
"""

from __future__ import annotations

import copyreg
import logging
import types
from typing import Any
from weakref import WeakSet

from persistent import Persistent
from persistent.wref import WeakRef

from objdb.connection.aging import Marker
from objdb.errors import UnregisteredMutationError
from objdb.ids import NO_TID, format_oid
from objdb.records.broken import class_name
from objdb.records.format import PROTOCOL
from objdb.records.showing import shown

logger = logging.getLogger("objdb.connection")

_MOST_TOLD = 5
# Pickled by their names.
_NAMED = (types.FunctionType, types.BuiltinFunctionType)
# Compared with ==: they have no parts that could change.
_ATOMS = frozenset({type(None), bool, int, float, complex, str, bytes, WeakRef})


class MutationDetector:
    """Finds the objects of one connection that were changed and not registered."""

    def __init__(self, jar: Any) -> None:
        self._jar = jar
        self._told: WeakSet[type] = WeakSet()  # of which it was said that nobody can say

    def find(self, items: list[tuple[bytes, Any]]) -> list[tuple[Any, str]]:
        """Return (object, path of its first difference) for those of *items*, (oid, object) in
        the cache's access order, that were changed. Keeps that order of those it looks at."""
        found = []
        for _, obj in items:
            if type(obj) is Marker:
                _ = obj.touch
            elif obj._p_changed is False and obj._p_serial != NO_TID:
                path = self._difference(obj)
                if path is not None:
                    found.append((obj, path))
        return found

    def _difference(self, obj: Any) -> str | None:
        record = self._jar.loaded_record(obj)
        if record is None:
            return None
        try:
            before = self._jar._read_state(type(obj), record)
            if type(obj).__setstate__ is not Persistent.__setstate__:
                before = _as_loaded(obj, before)
        except Exception as error:
            self._tell(obj, error)
            return None
        cls, now = type(obj), obj.__getstate__()
        try:
            path = Comparison().in_states(cls, before, now)
            if path is None or Comparison().in_states(cls, now, obj.__getstate__()) is None:
                return path
        except Exception as error:  # it is nested too deeply, or code of its classes fails
            self._tell(obj, error)
            return None
        return None  # its state is another one each time it is asked for

    def _tell(self, obj: Any, error: Exception) -> None:
        """Say, once for each class, that nobody can say."""
        if type(obj) not in self._told:
            self._told.add(type(obj))
            logger.warning(
                "%s %s cannot be compared with its record (%s: %s): changes of such an object that "
                "are made without notice are not found", class_name(type(obj)),
                format_oid(obj._p_oid), type(error).__name__, error,
            )


def _as_loaded(obj: Any, state: Any) -> Any:
    """Return the *state* that an object like *obj* has when it was loaded from *state*, which its
    class may have changed on the way."""
    cls: Any = type(obj)
    arguments = obj.__getnewargs__() if hasattr(cls, "__getnewargs__") else ()
    scratch = cls.__new__(cls, *arguments)
    scratch.__setstate__(state)
    return scratch.__getstate__()


def _by_key(cls: type, state: Any) -> dict[Any, Any] | None:
    """Return the keys and values in the state of a bucket, or a tree with one bucket; None for
    other states."""
    if not cls.__module__.startswith("BTrees.") or type(state) is not tuple:
        return None
    name = cls.__name__.removesuffix("Py")
    if name.endswith("BTree") and len(state) == 1:
        flat = state[0][0][0]
    elif name.endswith("Bucket"):
        flat = state[0]
    else:
        return None
    return dict(zip(flat[::2], flat[1::2], strict=True))


def error_for(found: list[tuple[Any, str]]) -> UnregisteredMutationError:
    """Return the error that tells about these objects."""
    lines = [
        f"  {class_name(type(obj))} {format_oid(obj._p_oid)}{path}" for obj, path in found
    ]
    if len(lines) > _MOST_TOLD:
        lines[_MOST_TOLD:] = [f"  and {len(lines) - _MOST_TOLD} more"]
    first, path = found[0]
    return UnregisteredMutationError(
        "changed without notice, so it would not be stored:\n" + "\n".join(lines) + "\nSet "
        "_p_changed = True on the object when something inside its attributes changes, or use "
        "PersistentList and PersistentMapping. Abort the transaction to drop the change",
        oid=first._p_oid, class_name=class_name(type(first)), attribute=path.removeprefix("."),
    )


class Comparison:
    """Finds where two values differ that were, or would be, pickled."""

    def __init__(self) -> None:
        self._met: set[tuple[int, int]] = set()
        self._alive: list[Any] = []  # whose ids are in `_met`

    def in_states(self, cls: type, before: Any, now: Any) -> str | None:
        """Return the path to the first difference between two states of a persistent object."""
        pairs, pairs_now = _by_key(cls, before), _by_key(cls, now)
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
        except Exception:  # it cannot be pickled now
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


def _name(named: Any) -> tuple[Any, Any]:
    return getattr(named, "__module__", None), getattr(named, "__qualname__", None)


def _is_computed(cls: type, name: Any) -> bool:
    """Whether an attribute is kept by what computes it when it is asked for, such as
    `functools.cached_property`: a descriptor that setting the attribute passes by."""
    found = next((vars(c)[name] for c in cls.__mro__ if name in vars(c)), None)
    kind = type(found)
    return (
        hasattr(kind, "__get__") and not hasattr(kind, "__set__")
        and not isinstance(found, (*_NAMED, classmethod, staticmethod, type))
    )


class _Reduced:
    """What pickle would store of an object."""

    def __init__(self, obj: Any) -> None:
        reduce = copyreg.dispatch_table.get(type(obj))
        parts = obj.__reduce_ex__(PROTOCOL) if reduce is None else reduce(obj)
        if type(parts) is str:  # the name of a global
            parts = (None, parts)
        self.maker, self.arguments, self.state, items, pairs = (*parts, *[None] * 3)[:5]
        self.items, self.pairs = list(items or ()), dict(pairs or ())
