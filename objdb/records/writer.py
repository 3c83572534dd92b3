"""Objects to records.

    state = obj.__getstate__()
    record = class pickle (a constant per class) + pickle of the state

The state's pickler asks `persistent_id` about every object it meets. A persistent one is not
pickled but referred to; one that is new gets an oid on the way and is put on `new_objects`, for
the connection to store in turn: persistence by reachability.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable
from typing import Any, ClassVar

from persistent import Persistent
from persistent.wref import WeakRef

from objdb.errors import InvalidObjectReference, StorageError, UnpicklableError
from objdb.ids import Oid, format_oid
from objdb.records.broken import class_name, is_broken
from objdb.records.format import PROTOCOL, class_prefix
from objdb.records.pickling import reference_maker, serializer

# A pickler keeps its memo as large as it ever was, and clearing that takes as long as it is large.
LARGE_PICKLE_BYTES = 4096


class ObjectWriter:
    """Turns the objects of one connection into records.

    *jar* is the connection (it gives `db()` and owns the objects), *new_oid* makes oids.
    `new_objects` collects the objects first met, in the order they were met; the caller empties
    it.
    """

    def __init__(self, jar: Any, new_oid: Callable[[], Oid]) -> None:
        self._jar = jar
        self._new_oid = new_oid
        self.new_objects: list[Persistent] = []
        self._chunks: list[bytes] = []
        self._prefixes: dict[type, bytes] = {}
        # serialize(obj): the record of *obj*. Raises `UnpicklableError` with the path to what
        # cannot be stored, and `InvalidObjectReference` for a reference to an object of another
        # connection.
        self.serialize = serializer(self._prefixes, self._dump, self._serialize)
        self.persistent_id = reference_maker(
            jar, new_oid, self.new_objects, self._prefixes, self._reference
        )
        self._pickler = self._new_pickler()

    def _new_pickler(self) -> pickle.Pickler:
        sink = _Sink()
        sink.write = self._chunks.append
        pickler = _Pickler(sink, PROTOCOL)
        pickler.persistent_id = self.persistent_id  # type: ignore[method-assign]
        return pickler

    def _serialize(self, obj: Persistent) -> bytes:
        """Return the record of an object whose class pickle is not known, or not a constant."""
        return self._class_pickle(obj) + self._dump(obj, obj.__getstate__())

    def _dump(self, obj: Persistent, part: Any) -> bytes:
        """Return the pickle of the state of *obj*, or of its class with arguments."""
        chunks = self._chunks
        del chunks[:]
        self._pickler.clear_memo()
        try:
            self._pickler.dump(part)
        except (InvalidObjectReference, StorageError):
            raise
        except Exception as error:
            return self._dump_carefully(obj, part, error)
        pickled = b"".join(chunks)
        if len(pickled) > LARGE_PICKLE_BYTES:
            self._pickler = self._new_pickler()
        return pickled

    def _class_pickle(self, obj: Persistent) -> bytes:
        cls = type(obj)
        newargs = getattr(obj, "__getnewargs__", None)
        if is_broken(cls):
            arguments = obj.__dict__["__broken_args__"]
            return _dump_with_broken((cls, arguments) if arguments else cls, None)
        self._require_importable(obj)
        if newargs is not None:
            return self._dump(obj, (cls, newargs()))
        prefix = self._prefixes[cls] = class_prefix(cls)
        return prefix

    def _require_importable(self, obj: Persistent) -> None:
        cls = type(obj)
        try:
            pickle.dumps(cls, PROTOCOL)
        except Exception as error:
            raise UnpicklableError(
                f"objects of {cls!r} cannot be stored: {error}. Define the class at the top "
                "level of a module that can be imported",
                oid=obj._p_oid, class_name=f"{cls.__module__}.{cls.__qualname__}",
            ) from error

    def _dump_carefully(self, obj: Persistent, state: Any, error: Exception) -> bytes:
        """Pickle a state that holds instances of missing classes, or explain *error*."""
        try:
            return _dump_with_broken(state, self.persistent_id)
        except (InvalidObjectReference, StorageError):
            raise
        except Exception:
            cls = type(obj)
            path, value = _find_unpicklable(cls.__name__, state, self._is_picklable)
            advice = (
                "Define its class at the top level of a module that can be imported"
                if isinstance(value, Persistent)
                else "Keep it in an attribute whose name begins with _v_, which is never stored, "
                "or store what it is made from"
            )
            raise UnpicklableError(
                f"{path}: {value!r} cannot be stored ({error}). {advice}",
                oid=obj._p_oid, class_name=f"{cls.__module__}.{cls.__qualname__}",
                attribute_path=path,
            ) from error

    def _is_picklable(self, value: Any) -> bool:
        try:
            _dump_with_broken(value, _class_only)
        except Exception:
            return False
        return True

    def _reference(self, obj: Any) -> Any:
        """Return the reference to an object that may be of any kind, None if it is stored inside
        the record."""
        cls = type(obj)
        if not isinstance(obj, Persistent):
            return self._weak_reference(obj) if cls is WeakRef else None
        jar, oid = obj._p_jar, obj._p_oid
        if jar is not self._jar:
            if jar is not None:
                return self._foreign_reference(obj)
            if oid is None:
                oid = self._new_oid()
            obj._p_jar = self._jar
            obj._p_oid = oid
            self.new_objects.append(obj)
        return oid if hasattr(cls, "__getnewargs__") or is_broken(cls) else (oid, cls)

    def _weak_reference(self, reference: WeakRef) -> Any:
        oid, jar = reference.oid, reference.dm
        if oid is None:
            target = reference()
            if target is None:
                raise InvalidObjectReference("a weak reference to nothing cannot be stored")
            self.persistent_id(target)
            oid = reference.oid = target._p_oid
            jar = reference.dm = target._p_jar
            reference.database_name = jar.db().database_name
        if jar is None or jar is self._jar:
            return ["w", (oid,)]
        self._require_same_group(reference(), jar)
        return ["w", (oid, reference.database_name)]

    def _foreign_reference(self, obj: Persistent) -> Any:
        """A reference into another database of the same group."""
        jar = obj._p_jar
        self._require_same_group(obj, jar)
        name = jar.db().database_name
        if obj._p_oid is None:
            jar.add(obj)
        if hasattr(type(obj), "__getnewargs__") or is_broken(type(obj)):
            return ["n", (name, obj._p_oid)]
        return ["m", (name, obj._p_oid, type(obj))]

    def _require_same_group(self, obj: Any, jar: Any) -> None:
        ours, theirs = self._jar.db(), jar.db() if hasattr(jar, "db") else None
        oid = getattr(obj, "_p_oid", None)
        name = class_name(type(obj))
        text, facts = f"object {format_oid(oid)} ({name})", {"oid": oid, "class_name": name}
        if theirs is None:
            raise InvalidObjectReference(
                f"{text} belongs to a connection that is closed, and cannot be stored here. "
                "Load it again in this connection", **facts,
            )
        if theirs is ours:
            raise InvalidObjectReference(
                f"{text} belongs to another connection of the same database. Pass its oid "
                "(_p_oid) and load it here with connection.get(oid)", **facts,
            )
        if ours.databases.get(theirs.database_name) is not theirs:
            raise InvalidObjectReference(
                f"{text} belongs to the database {theirs.database_name!r}, which is not in the "
                "same group. Give both databases one `databases` dict to refer across",
                **facts,
            )


class _Pickler(pickle.Pickler):
    """A C pickler that can be given its `persistent_id` as an attribute."""


class _Sink:
    """Where a C pickler writes: a function, called with bytes."""

    write: Callable[[bytes], Any]


# The pickler written in Python, which the type stubs do not know.
_PythonPickler: Any = pickle._Pickler


class _BrokenPickler(_PythonPickler):
    """A pickler that can name classes that are missing. Slow, and rarely needed."""

    def save_global(self, obj: Any, name: str | None = None) -> None:
        if is_broken(obj):
            self.write(pickle.GLOBAL + f"{obj.__module__}\n{obj.__qualname__}\n".encode())
            self.memoize(obj)
        else:
            super().save_global(obj, name)

    def save_type(self, obj: Any) -> None:
        if is_broken(obj):
            self.save_global(obj)
        else:
            super().save_type(obj)

    dispatch: ClassVar[dict[Any, Any]] = {**_PythonPickler.dispatch, type: save_type}


def _dump_with_broken(state: Any, persistent_id: Callable[[Any], Any] | None) -> bytes:
    buffer = io.BytesIO()
    pickler: Any = _BrokenPickler(buffer, PROTOCOL)
    if persistent_id is not None:
        pickler.persistent_id = persistent_id
    pickler.dump(state)
    return buffer.getvalue()


def _class_only(obj: Any) -> Any:
    """A reference to any persistent object: what can be wrong with it is its class."""
    if not isinstance(obj, Persistent):
        return None
    return 0 if is_broken(type(obj)) else (0, type(obj))


def _find_unpicklable(
    path: str, value: Any, is_picklable: Callable[[Any], bool]
) -> tuple[str, Any]:
    """Return (path, value) of the innermost part of *value* that cannot be pickled."""
    return _search(path, value, is_picklable, frozenset()) or (path, value)


def _search(
    path: str, value: Any, is_picklable: Callable[[Any], bool], around: frozenset[int]
) -> tuple[str, Any] | None:
    """The same, or None for a value that cannot be pickled only because it refers back to
    *around*, what it is in."""
    around |= {id(value)}
    leads_back = False
    for step, part in _parts(value, top=len(around) == 1):
        if id(part) in around:
            leads_back = True
        elif not is_picklable(part):
            found = _search(path + step, part, is_picklable, around)
            if found is not None:
                return found
            leads_back = True
    return None if leads_back else (path, value)


def _parts(value: Any, *, top: bool) -> list[tuple[str, Any]]:
    if isinstance(value, dict):
        form = ".{}" if top else "[{!r}]"
        parts = [(form.format(key), part) for key, part in value.items()]
        return parts + [(f".keys()[{i}]", key) for i, key in enumerate(value)]
    if isinstance(value, (list, tuple)):
        return [(f"[{i}]", part) for i, part in enumerate(value)]
    if isinstance(value, (set, frozenset)):
        return [(f"{{{part!r}}}", part) for part in value]
    attributes = getattr(value, "__dict__", None)
    if isinstance(attributes, dict) and not isinstance(value, (type, Persistent)):
        return [(f".{name}", part) for name, part in attributes.items()]
    return []
