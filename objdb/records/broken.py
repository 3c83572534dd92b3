"""Objects whose class cannot be imported.

A missing class is replaced by a *broken* class with the same module and name. Its instances
keep all parts of their pickle and write them back unchanged:

    loaded by                   kept as                  written back by
    cls.__new__(cls, *args, …)  __broken_how__ "new"     the same
    cls(*args)                  __broken_how__ "call"    the same
    state                       __broken_state__         the same
    append/extend, [k] = v      __broken_items__ ...     the same

Persistent objects become `PersistentBroken`: attributes can be read (from the state, if that is
a dict), writing raises `BrokenObjectError`.
"""

from __future__ import annotations

import copyreg
import functools
from typing import Any

from persistent import Persistent
from zope.interface import implementer

from objdb.errors import BrokenObjectError
from objdb.ids import Oid
from objdb.interfaces import IBroken

_HINT = (
    "Make the class importable again, under this name, to use the object; until then its state "
    "is kept as it is and cannot be changed"
)
_BLOB_HINT = (
    "It is a ZODB blob: its record is kept as it is, but the blob file beside the database is "
    "not read by this version of objdb"
)
_classes: dict[tuple[str, str, bool], type] = {}


class _Facts:
    """The names that ZODB's broken objects have, for programs that look at them."""

    __Broken_newargs__ = property(lambda self: self.__dict__.get("__broken_args__", ()))
    __Broken_state__ = property(lambda self: self.__dict__.get("__broken_state__"))
    __Broken_initargs__ = None


class BrokenType(type):
    """The class of broken classes: calling one is remembered as a call."""

    def __call__(cls: Any, *args: Any, **kwargs: Any) -> Any:
        instance = cls.__new__(cls, *args, **kwargs)
        instance.__dict__["__broken_how__"] = "call"
        return instance


@implementer(IBroken)
class Broken(_Facts, metaclass=BrokenType):
    """An object inside a record whose class, or constructor function, is missing."""

    def __new__(cls, *args: Any, **kwargs: Any) -> Broken:
        instance = object.__new__(cls)
        instance.__dict__.update(
            __broken_how__="new", __broken_args__=args, __broken_keywords__=kwargs,
            __broken_state__=None, __broken_items__=[], __broken_pairs__=[],
        )
        return instance

    def __setstate__(self, state: Any) -> None:
        self.__dict__["__broken_state__"] = state

    def append(self, item: Any) -> None:
        """Keep an item of an instance of a missing list class."""
        self.__dict__["__broken_items__"].append(item)

    def extend(self, items: Any) -> None:
        """Keep items of an instance of a missing list class."""
        self.__dict__["__broken_items__"].extend(items)

    def __setitem__(self, key: Any, value: Any) -> None:
        self.__dict__["__broken_pairs__"].append((key, value))

    def __getattr__(self, name: str) -> Any:
        return _state_attribute(self, self.__dict__.get("__broken_state__"), name)

    def __setattr__(self, name: str, value: Any) -> None:
        raise _cannot_change(type(self), name)

    def __delattr__(self, name: str) -> None:
        raise _cannot_change(type(self), name)

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        kept = self.__dict__
        cls, args = type(self), kept["__broken_args__"]
        items, pairs = kept["__broken_items__"], kept["__broken_pairs__"]
        keywords = kept["__broken_keywords__"]
        how = (cls, args) if kept["__broken_how__"] == "call" else _new(cls, args, keywords)
        tail = (iter(items) if items else None, iter(pairs) if pairs else None)
        return (*how, kept["__broken_state__"], *tail)

    def __repr__(self) -> str:
        return f"<broken {class_name(type(self))}>"


@implementer(IBroken)
class PersistentBroken(_Facts, Persistent):
    """A persistent object whose class is missing."""

    def __new__(cls, *args: Any) -> PersistentBroken:
        instance: PersistentBroken = Persistent.__new__(cls)
        instance.__dict__["__broken_args__"] = args
        return instance

    def __setstate__(self, state: Any) -> None:
        self.__dict__["__broken_state__"] = state

    def __getstate__(self) -> Any:
        return self.__dict__.get("__broken_state__")

    def __getattr__(self, name: str) -> Any:
        return _state_attribute(self, self.__dict__.get("__broken_state__"), name)

    def __setattr__(self, name: str, value: Any) -> None:
        if not name.startswith(("_p_", "_v_")):
            raise _cannot_change(type(self), name, self._p_oid)
        super().__setattr__(name, value)

    def __delattr__(self, name: str) -> None:
        if not name.startswith(("_p_", "_v_")):
            raise _cannot_change(type(self), name, self._p_oid)
        super().__delattr__(name)

    def __repr__(self) -> str:
        return f"<persistent broken {class_name(type(self))}>"


def broken_class(module: str, name: str, *, persistent: bool) -> type:
    """Return the stand-in for the missing class `module.name`, always the same one."""
    key = (module, name, persistent)
    found = _classes.get(key)
    if found is None:
        base: Any = PersistentBroken if persistent else Broken
        made = type(base)(name, (base,), {"__module__": module, "__qualname__": name})
        found = _classes.setdefault(key, made)  # another thread may have been faster
    return found


def is_broken(cls: Any) -> bool:
    """Whether *cls* stands in for a missing class."""
    return isinstance(cls, type) and issubclass(cls, (Broken, PersistentBroken))


def class_name(cls: type) -> str:
    """Return the name of a class as in errors: `module.Class`."""
    return f"{cls.__module__}.{cls.__qualname__}"


def _new(cls: type, args: tuple[Any, ...], keywords: dict[str, Any]) -> tuple[Any, Any]:
    if keywords:  # protocol 3 has no opcode for these, and pickles a partial call
        return functools.partial(_MethodNew(cls), cls, *args, **keywords), ()
    return copyreg.__newobj__, (cls, *args)  # type: ignore[attr-defined]


class _MethodNew:
    """The `__new__` of a missing class, pickled as an attribute of the class."""

    def __init__(self, cls: type) -> None:
        self.cls = cls

    def __call__(self, *args: Any, **keywords: Any) -> Any:
        return self.cls.__new__(*args, **keywords)

    def __reduce__(self) -> tuple[Any, ...]:
        return getattr, (self.cls, "__new__")


def _hint(cls: type) -> str:
    return _BLOB_HINT if class_name(cls) == "ZODB.blob.Blob" else _HINT


def _state_attribute(instance: Any, state: Any, name: str) -> Any:
    if isinstance(state, dict) and name in state:
        return state[name]
    cls = type(instance)
    raise AttributeError(f"broken {class_name(cls)} has no attribute {name!r}. {_hint(cls)}")


def _cannot_change(cls: type, attribute: str, oid: Oid | None = None) -> BrokenObjectError:
    return BrokenObjectError(
        f"cannot set {attribute!r}: the class {class_name(cls)} is missing. {_hint(cls)}",
        oid=oid, class_name=class_name(cls),
    )
