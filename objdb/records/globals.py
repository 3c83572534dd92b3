"""The classes and functions that names in records stand for, also missing or renamed ones.

    mod.Class            imported; a broken class where it is missing
    mod.Class.Inner      the same: written as the name, or as getattr(mod.Class, "Inner")
    __builtin__.set      `builtins.set` in Python 2, and in protocols 1 and 2
    ZODB.broken.rebuild  an instance of a missing class, as written by ZODB
"""

from __future__ import annotations

import _compat_pickle
import sys
from typing import Any

from objdb.records.broken import broken_class, is_broken

# Classes replaced by stand-ins even if they can be imported: objdb does not read blob files.
_NEVER_IMPORTED = {("ZODB.blob", "Blob")}


def import_global(module: str, name: str) -> Any:
    """Import `module.name` (the name may be dotted), or return a broken class in its place."""
    if (module, name) in _NEVER_IMPORTED:
        return broken_class(module, name, persistent=False)
    if (module, name) == ("ZODB.broken", "rebuild"):
        return rebuild
    for place in ((module, name), _name_now(module, name)):
        try:
            return _import(*place)
        except (ImportError, AttributeError):
            continue
    return broken_class(module, name, persistent=False)


def _import(module: str, name: str) -> Any:
    __import__(module)
    found: Any = sys.modules.get(module)
    for part in name.split("."):
        found = getattr(found, part)
    return found


def _name_now(module: str, name: str) -> tuple[str, str]:
    """Return the Python 3 module and name for those of Python 2."""
    if (module, name) in _compat_pickle.NAME_MAPPING:
        return _compat_pickle.NAME_MAPPING[module, name]
    return _compat_pickle.IMPORT_MAPPING.get(module, module), name


def rebuild(module: str, name: str, *args: Any) -> Any:
    """Make an instance of the class `module.name`, which ZODB wrote while the class was missing."""
    cls = import_global(module, name)
    return cls.__new__(cls, *args)


def attribute(owner: Any, *name: Any) -> Any:
    """Do what `getattr` does; return a broken class for a missing nested class.

    Up to protocol 3, a nested class is written as a call of `getattr`.
    """
    is_inner = isinstance(owner, type) and len(name) == 1 and type(name[0]) is str
    if is_inner and is_broken(owner) and not name[0].startswith("__"):
        return _broken_inner(owner, name[0])
    try:
        return getattr(owner, *name)
    except AttributeError:
        if not is_inner:
            raise
        return _broken_inner(owner, name[0])


def _broken_inner(owner: type, name: str) -> type:
    return broken_class(owner.__module__, f"{owner.__qualname__}.{name}", persistent=False)
