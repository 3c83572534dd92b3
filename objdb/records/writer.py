"""Objects to records.

    state = obj.__getstate__()
    record = class pickle (a constant per class) + pickle of the state

The state's pickler calls `persistent_id` for every object it meets. A persistent object is not
pickled but referred to; a new one gets an oid and is appended to `new_objects`, for the
connection to store in turn: persistence by reachability.
"""

from __future__ import annotations

import copyreg
import pickle
from collections.abc import Callable
from typing import Any

from persistent import Persistent
from persistent.wref import WeakRef
from transaction.interfaces import TransientError

from objdb.errors import InvalidObjectReference, StorageError, UnpicklableError
from objdb.ids import Oid, format_oid
from objdb.records.broken import class_name, is_broken
from objdb.records.careful import dump_with_broken, require_settable, unpicklable
from objdb.records.format import PROTOCOL, class_prefix
from objdb.records.pickling import reference_maker, serializer
from objdb.records.showing import shown

# A pickler's memo never shrinks, and the time to clear it is proportional to its size.
LARGE_PICKLE_BYTES = 4096
# Errors raised while pickling that are not about the pickled values.
_PASSED = (InvalidObjectReference, StorageError, TransientError, MemoryError)


class ObjectWriter:
    """Turns the objects of one connection into records.

    *jar* is the connection (`db()` returns its database, `adopt(obj)` makes objects its own),
    *new_oid* returns new oids. `new_objects` collects the objects met first, in that order; the
    caller empties it.
    """

    def __init__(self, jar: Any, new_oid: Callable[[], Oid]) -> None:
        self._jar = jar
        self.new_objects: list[Persistent] = []
        self._chunks: list[bytes] = []
        self._prefixes: dict[type, bytes] = {}
        # serialize(obj): the record of *obj*. Raises `UnpicklableError` with the path to the
        # unpicklable part, and `InvalidObjectReference` for a reference to an object of another
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
        try:
            self._pickler.dump(part)
            pickled = b"".join(chunks)
        except _PASSED:
            raise
        except Exception as error:
            return self._dump_carefully(obj, part, error)
        finally:
            self._pickler.clear_memo()  # it would keep the pickled objects alive
            chunks.clear()
        if len(pickled) > LARGE_PICKLE_BYTES:
            self._pickler = self._new_pickler()
        return pickled

    def _class_pickle(self, obj: Persistent) -> bytes:
        cls = type(obj)
        newargs = getattr(obj, "__getnewargs__", None)
        if is_broken(cls):
            arguments = obj.__dict__["__broken_args__"]
            return dump_with_broken((cls, arguments) if arguments else cls, None)
        self._require_importable(obj)
        if newargs is not None:
            return self._dump(obj, (cls, newargs()))
        if type(cls) in copyreg.dispatch_table:  # its name may be of another class, or of none
            return self._dump(obj, cls)
        prefix = self._prefixes[cls] = class_prefix(cls)
        return prefix

    def _require_importable(self, obj: Persistent) -> None:
        cls = type(obj)
        facts: dict[str, Any] = {"oid": obj._p_oid, "class_name": class_name(cls)}
        if any(class_name(base) == "ZODB.blob.Blob" for base in cls.__mro__):
            raise UnpicklableError(
                f"objects of {shown(cls)} cannot be stored: the record of a ZODB blob does not "
                "have its bytes, and objdb does not keep blobs yet. Keep the bytes in an "
                "attribute, or in a file", **facts,
            )
        try:
            pickle.dumps(cls, PROTOCOL)
        except MemoryError:
            raise
        except Exception as error:
            raise UnpicklableError(
                f"objects of {shown(cls)} cannot be stored: {error}. Define the class at the top "
                "level of a module that can be imported", **facts,
            ) from error

    def _dump_carefully(self, obj: Persistent, state: Any, error: Exception) -> bytes:
        """Pickle a state that holds instances of missing classes, or explain *error*."""
        try:
            return dump_with_broken(state, self.persistent_id)
        except _PASSED:
            raise
        except Exception:
            raise unpicklable(obj, state, error) from error

    def _reference(self, obj: Any) -> Any:
        """Return the reference to an object of any kind, None if it is stored inside the record."""
        cls = type(obj)
        if not isinstance(obj, Persistent):
            return self._weak_reference(obj) if cls is WeakRef else None
        jar, oid = obj._p_jar, obj._p_oid
        if jar is not None and jar is not self._jar:
            return self._foreign_reference(obj)
        if jar is None or oid is None:
            require_settable(obj)
            oid = self._jar.adopt(obj)
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
        elif jar.was_found(obj._p_oid):
            raise InvalidObjectReference(
                f"a new object ({class_name(type(obj))}) is reachable from the databases "
                f"{name!r} and {self._jar.db().database_name!r}, so it is not known which one it "
                "belongs to. Add it to one first: connection.add(object)",
                oid=obj._p_oid, class_name=class_name(type(obj)),
            )
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
                f"{text} belongs to a closed connection, and cannot be stored here. Load it again "
                "in this connection", **facts,
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
        if self._jar._companions.get(theirs.database_name) is not jar:
            raise InvalidObjectReference(
                f"{text} belongs to a connection of another transaction, which may not commit. "
                f"Reach it through connection.get_connection({theirs.database_name!r})", **facts,
            )


class _Pickler(pickle.Pickler):
    """A C pickler that can be given its `persistent_id` as an attribute."""


class _Sink:
    """The file that a C pickler writes to: a function, called with bytes."""

    write: Callable[[bytes], Any]
