"""Unregistered changes, found at commit: for development and tests.

Persistent objects notice when an attribute is set, and not what happens inside a plain list, dict,
set or other object that an attribute holds. So before a commit each loaded object that counts as
unchanged is compared with the record it was loaded from:

    person.tags.append("new")                  not noticed
    commit ─► state now ≠ state loaded ─► UnregisteredMutationError: .tags[2]

Objects are compared as they are pickled, part by part, and not by their `__eq__`.
"""

from __future__ import annotations

import logging
from typing import Any
from weakref import WeakSet

from persistent import Persistent

from objdb.connection.access_epochs import Marker
from objdb.connection.isolation import kept
from objdb.connection.jar import Jar
from objdb.connection.loading import loaded_record
from objdb.errors import UnregisteredMutationError
from objdb.ids import NO_TID, format_oid
from objdb.records.broken import class_name
from objdb.records.comparing import Comparison

logger = logging.getLogger("objdb.connection")

_MOST_TOLD = 5


class MutationDetector:
    """Finds the objects of the connection *jar* that were changed and not registered, where that
    is wanted (*is_on*)."""

    def __init__(self, jar: Jar, *, is_on: bool) -> None:
        self._jar = jar
        self._is_on = is_on
        self._found: list[tuple[Any, str]] = []
        self._told: WeakSet[type] = WeakSet()  # of which the log says that they cannot be compared

    def find(self) -> list[tuple[Any, str]]:
        """Return the objects that were changed without notice, each with the path of its first
        difference."""
        if self._is_on:
            with kept(self._jar.view.reads):  # looking is not reading
                self._found = self._find_among(self._jar._cache.lru_items())
        return self._found

    def drop(self) -> None:
        """Make ghosts of the objects that were found."""
        for obj, _ in self._found:
            obj._p_invalidate()
        self._found = []

    def _find_among(self, items: list[tuple[bytes, Any]]) -> list[tuple[Any, str]]:
        """Look at (oid, object) in the cache's access order, which stays as it is."""
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
        record = loaded_record(self._jar, obj)
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
        """Log, once for each class, that its objects cannot be compared."""
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
