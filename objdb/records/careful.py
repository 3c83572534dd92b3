"""The slow pickler: it can name missing classes, and report which part cannot be stored."""

from __future__ import annotations

import copyreg
import io
import pickle
from collections.abc import Callable, Iterator
from typing import Any, ClassVar

from persistent import Persistent

from objdb.errors import UnpicklableError
from objdb.records.broken import class_name, is_broken
from objdb.records.format import PROTOCOL
from objdb.records.globals import attribute, import_global
from objdb.records.showing import shown

# How deep into a state the search for the unpicklable part goes, and how long its path may be.
_DEEPEST = 50
_LONGEST_PATH = 200

# The pickler written in Python, which the type stubs do not know.
_PythonPickler: Any = pickle._Pickler


class _BrokenPickler(_PythonPickler):
    """A pickler that can name missing classes. Slow, and rarely needed."""

    def save_global(self, obj: Any, name: str | None = None) -> None:
        if obj is attribute:
            super().save_global(getattr, "getattr")
        elif not is_broken(obj):
            super().save_global(obj, name)
        elif "." in obj.__qualname__:  # as pickle writes a class in a class
            outer, _, inner = obj.__qualname__.rpartition(".")
            self.save_reduce(getattr, (import_global(obj.__module__, outer), inner), obj=obj)
        else:
            self.write(pickle.GLOBAL + f"{obj.__module__}\n{obj.__qualname__}\n".encode())
            self.memoize(obj)

    def save_type(self, obj: Any) -> None:
        if is_broken(obj):
            self.save_global(obj)
        else:
            super().save_type(obj)

    dispatch: ClassVar[dict[Any, Any]] = {
        **_PythonPickler.dispatch, type: save_type, type(attribute): save_global,
    }


def dump_with_broken(state: Any, persistent_id: Callable[[Any], Any] | None) -> bytes:
    """Return the pickle of *state*, which may contain missing classes and their instances."""
    buffer = io.BytesIO()
    pickler: Any = _BrokenPickler(buffer, PROTOCOL)
    if persistent_id is not None:
        pickler.persistent_id = persistent_id
    pickler.dump(state)
    return buffer.getvalue()


def _class_only(obj: Any) -> Any:
    """A reference to any persistent object: only its class can be unpicklable."""
    if not isinstance(obj, Persistent):
        return None
    if obj._p_jar is None:
        require_settable(obj)
    return 0 if is_broken(type(obj)) else (0, type(obj))


def require_settable(obj: Any) -> None:
    """Raise TypeError for a new persistent object whose class refuses every attribute: such an
    object cannot be persistent."""
    if type(obj).__setattr__ is Persistent.__setattr__ or is_broken(type(obj)):
        return
    try:
        obj._v_is_settable = True
    except (AttributeError, TypeError) as error:
        raise TypeError(
            f"its __setattr__ refuses attributes that are not stored: {_text(error)}; let names "
            "that begin with _v_ and _p_ go to Persistent.__setattr__"
        ) from error
    except Exception:  # an error about another attribute
        return
    vars(obj).pop("_v_is_settable", None)


def unpicklable(obj: Any, state: Any, error: Exception) -> UnpicklableError:
    """Return the error that names the part of the *state* of *obj* that cannot be pickled."""
    cls = type(obj)
    try:
        path, value = _search(cls.__name__, state, frozenset()) or (cls.__name__, state)
    except RecursionError:  # the program is deep in calls
        path, value = cls.__name__, state
    if isinstance(error, RecursionError):
        what = "it is nested too deeply"
        advice = "Keep its parts in persistent objects, or in a flat list"
    else:
        what = _text(error)
        advice = (
            "Define its class at the top level of a module that can be imported"
            if isinstance(value, Persistent)
            else "Keep it in an attribute whose name begins with _v_, which is never stored, or "
            "store what it is made from"
        )
    path = path if len(path) <= _LONGEST_PATH else path[: _LONGEST_PATH - 1] + "…"
    return UnpicklableError(
        f"{path}: {shown(value)} cannot be stored ({what}). {advice}",
        oid=obj._p_oid, class_name=class_name(cls), attribute_path=path,
    )


def _text(error: Exception) -> str:
    """Return an error's text as one line; its type if the text is empty, or raises."""
    try:
        text = str(error)
    except Exception:
        text = ""
    return text[:_LONGEST_PATH] or type(error).__name__


def _is_picklable(value: Any) -> bool:
    try:
        dump_with_broken(value, _class_only)
    except MemoryError:
        raise
    except Exception:
        return False
    return True


def _search(path: str, value: Any, around: frozenset[int]) -> tuple[str, Any] | None:
    """Return (path, value) of the innermost part of *value* that cannot be pickled; None if the
    only reason is a reference back to *around*, its containers."""
    around |= {id(value)}
    if len(around) > _DEEPEST:
        return path, value
    leads_back = False
    for step, part in _parts(value, top=len(around) == 1):
        if id(part) in around:
            leads_back = True
        elif not _is_picklable(part):
            found = _search(path + step, part, around)
            if found is not None:
                return found
            leads_back = True
    return None if leads_back else (path, value)


def _parts(value: Any, *, top: bool) -> list[tuple[str, Any]]:
    if isinstance(value, dict):
        form = "." if top else "["
        parts = [
            (f".{key}" if form == "." and type(key) is str else f"[{shown(key)}]", part)
            for key, part in value.items()
        ]
        return parts + [(f".keys()[{i}]", key) for i, key in enumerate(value)]
    if isinstance(value, (list, tuple)):
        is_pair = type(value) is tuple and len(value) == 2 and type(value[1]) is dict
        if top and is_pair and (value[0] is None or type(value[0]) is dict):
            # Attributes, and those in slots.
            return [part for half in value for part in _parts(half, top=True)]
        return [(f"[{i}]", part) for i, part in enumerate(value)]
    if isinstance(value, (set, frozenset)):
        return [(f"{{{shown(part)}}}", part) for part in value]
    if isinstance(value, (type, Persistent)):
        return []
    return [(f".{name}", part) for name, part in _attributes(value)]


def _attributes(value: Any) -> Iterator[tuple[str, Any]]:
    """Yield the names and values of an object's attributes, without calling its class."""
    try:
        kept = object.__getattribute__(value, "__dict__")
        yield from list(kept.items())
    except AttributeError:
        pass
    for name in copyreg._slotnames(type(value)):  # type: ignore[attr-defined]
        try:
            yield name, object.__getattribute__(value, name)
        except AttributeError:
            continue
