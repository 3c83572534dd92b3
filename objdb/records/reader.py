"""Records to objects.

Two entry points, both called by a connection: `ghost(oid, record)` makes an object without its
state, and `state(cls, record)` returns the state for an existing object.

`unpickling` has the fast path of nearly every record; here are the slow ones, and the errors when
none gives a state.
"""

from __future__ import annotations

import io
import pickle
from typing import Any

from persistent import Persistent
from persistent.wref import WeakRef
from transaction.interfaces import TransientError

from objdb.errors import DeserializationError, POSKeyError, PythonTwoRecordError
from objdb.ids import Oid, format_oid
from objdb.records.broken import broken_class, is_broken
from objdb.records.format import class_and_arguments, plain_prefix_length
from objdb.records.globals import attribute, import_global
from objdb.records.references import parts_of, record_class_name
from objdb.records.unpickling import StateLoader, plain_reader, reference_loader

_REFERENCE = ord("Q")  # the opcode before every reference
# Python 2 strings are decoded with this codec, which refuses everything.
_NO_PYTHON_TWO = "undefined"


class _Unpickler(pickle.Unpickler):
    def __init__(self, file: Any, reader: ObjectReader) -> None:
        super().__init__(file, encoding=_NO_PYTHON_TWO)
        self.find_class = reader.find_class  # type: ignore[method-assign]
        self.persistent_load = reader.persistent_load  # type: ignore[method-assign]


class _PatientUnpickler(pickle.Unpickler):
    """An unpickler that also stands in for missing classes nested in a class."""

    def __init__(self, file: Any, reader: ObjectReader) -> None:
        super().__init__(file, encoding=_NO_PYTHON_TWO)
        self._find_class = reader.find_class
        self.persistent_load = reader.persistent_load  # type: ignore[method-assign]

    def find_class(self, module: str, name: str) -> Any:
        found = self._find_class(module, name)
        return attribute if found is getattr else found


# The first bytes of the layers' data; no pickle begins so.
_LAYERS = {b".e": "an encrypted"} | dict.fromkeys((b".=", b".z", b".s", b".d"), "a compressed")


class ObjectReader:
    """Makes objects of one connection from records.

    *jar* is the connection: `jar.get(oid)` loads by oid, `jar.get_connection(name)` returns a
    connection to another database. *cache* is its `PickleCache`.
    """

    def __init__(self, jar: Any, cache: Any) -> None:
        self._jar = jar
        self._cache = cache
        self._loaders: dict[bytes, StateLoader] = {}  # by class pickle
        self._known: dict[type, tuple[bytes, Any]] = {}
        self._classes: dict[tuple[str, str], Any] = {}
        self._globals: dict[bytes, Any] = {}
        self._plain: set[type] = set()  # classes whose __new__ takes no arguments
        self.persistent_load = reference_loader(
            cache.get, cache.new_ghost, self._plain, self._load_reference
        )
        # state(cls, record): the state in a record of an object of class *cls*. Raises
        # `DeserializationError` or `PythonTwoRecordError`; `POSKeyError` for a reference by oid
        # alone to a missing object.
        self.state = plain_reader(
            self._known, self._state, self._globals, self._find_global, self.persistent_load,
            self._explain,
        )

    def _state(self, cls: type, record: bytes) -> Any:
        known = self._known.get(cls)
        if known is None or not record.startswith(known[0]):
            length = plain_prefix_length(record)
            if not length:
                return self._load_slowly(record)
            prefix = record[:length]
            self._known[cls] = prefix, self._loader(prefix, record).memo.get(0)
        else:
            prefix = known[0]
        try:
            # Globals of ZODB are not imported even if it is installed: see `globals`.
            if _REFERENCE not in record and b"ZODB.b" not in record:
                return pickle.loads(record[len(prefix) :], encoding=_NO_PYTHON_TWO)
            loader = self._loader(prefix, record)
            if loader.takes(record):
                return loader.state(record)
        except Exception:
            # The loader still holds the rest of the record. Read it again, to report what is
            # wrong.
            self._loaders.pop(prefix, None)
        return self._load_slowly(record)

    def _loader(self, prefix: bytes, record: bytes) -> StateLoader:
        loader = self._loaders.get(prefix)
        if loader is None:
            try:
                loader = StateLoader(prefix, lambda file: _Unpickler(file, self))
            except Exception as error:
                raise self._explain(error, record) from error
            self._loaders[prefix] = loader
        return loader

    def _load_slowly(self, record: bytes) -> Any:
        for make in (_Unpickler, _PatientUnpickler):
            unpickler = make(io.BytesIO(record), self)
            try:
                unpickler.load()
                return unpickler.load()
            except AttributeError as error:
                if make is _PatientUnpickler:
                    raise self._explain(error, record) from error
            except Exception as error:
                raise self._explain(error, record) from error
        raise AssertionError("unreachable")

    def forget(self) -> None:
        """Drop the classes found so far, which may be redefined, and the unpicklers' contents."""
        for found in (self._loaders, self._known, self._classes, self._globals, self._plain):
            found.clear()

    def ghost(self, oid: Oid, record: bytes) -> Persistent:
        """Return a new object for *record*, without state, entered in the cache."""
        try:
            metadata = _PatientUnpickler(io.BytesIO(record), self).load()
            cls, arguments = class_and_arguments(metadata)
            if isinstance(cls, tuple):
                cls = self.find_class(*cls)
            return self._new_ghost(oid, cls, arguments)
        except (DeserializationError, POSKeyError, TransientError):
            raise
        except Exception as error:
            raise self._explain(error, record, oid) from error

    def _new_ghost(self, oid: Oid, cls: Any, arguments: tuple[Any, ...]) -> Persistent:
        if is_broken(cls):
            cls = broken_class(cls.__module__, cls.__qualname__, persistent=True)
        obj = cls.__new__(cls, *arguments)
        if not isinstance(obj, Persistent):
            raise DeserializationError(
                f"object {format_oid(oid)} is stored as persistent, but its class "
                f"{cls.__module__}.{cls.__qualname__} does not derive from Persistent (any "
                "more). Make it persistent again to read it",
                oid=oid, class_name=f"{cls.__module__}.{cls.__qualname__}",
            )
        self._cache.new_ghost(oid, obj)
        return obj

    def find_class(self, module: str, name: str) -> Any:
        """Return the class or function `module.name`, or a broken class in its place."""
        found = self._classes.get((module, name))
        if found is None:
            found = import_global(module, name)
            if not is_broken(found):  # a missing class may become importable
                self._classes[module, name] = found
        return found

    def _find_global(self, lines: bytes) -> Any:
        """Return the class or function named by two lines of a pickle."""
        module, name, _ = lines.decode().split("\n")
        found = self.find_class(module, name)
        if not is_broken(found):
            self._globals[lines] = found
        return found

    def _load_reference(self, reference: Any) -> Any:
        """Return the object for a reference of any form (see `format`)."""
        if type(reference) is tuple:
            oid, cls = reference
            if type(cls) is tuple or hasattr(cls, "__getnewargs__"):
                return self._load_by_oid(oid)
            obj = self._new_ghost(_checked(oid), cls, ())
            if type(obj) is cls:
                self._plain.add(cls)
            return obj
        if type(reference) is not list:
            return self._load_by_oid(reference)
        if len(reference) == 1:
            return self._weak_reference(reference[0])
        oid, is_weak, database = parts_of(reference)
        if is_weak:
            return self._weak_reference(oid, database)
        return self._jar.get_connection(database).get(_checked(oid))

    def _load_by_oid(self, oid: Any) -> Any:
        return self._jar.get(_checked(oid))

    def _weak_reference(self, oid: Oid, database: str | None = None) -> WeakRef:
        _checked(oid)
        reference = WeakRef.__new__(WeakRef)
        reference.oid = oid
        reference.dm = self._jar if database is None else self._jar.get_connection(database)
        reference.database_name = reference.dm.db().database_name
        return reference

    def _explain(self, error: Exception, record: bytes, oid: Oid | None = None) -> Exception:
        """Return the error to raise for *error*, met while unpickling *record*."""
        if isinstance(error, (DeserializationError, POSKeyError, TransientError)):
            return error
        layer = _LAYERS.get(record[:2])
        if layer is not None:
            return DeserializationError(
                f"the record ({len(record)} bytes) is {layer} one: the database was written "
                f"through a layer, but opened without it. Open it as {layer.split()[1]}+file:"
                "PATH, or with the layer's storage over this one", oid=oid,
            )
        name = record_class_name(record)
        if isinstance(error, UnicodeError) and "undefined" in str(error):
            return PythonTwoRecordError(
                f"the state of a {name} was written under Python 2, whose strings are neither "
                "text nor bytes. Convert the database first, with zodbupdate (--convert-py3) "
                "under ZODB, then open it here", oid=oid, class_name=name,
            )
        return DeserializationError(
            f"the record of a {name} ({len(record)} bytes) cannot be read: "
            f"{type(error).__name__}: {error}", oid=oid, class_name=name,
        )


def _checked(oid: Any) -> Oid:
    if type(oid) is str:
        raise PythonTwoRecordError(
            f"a reference to {oid!r}: oids are text only in records of Python 2, which have to "
            "be converted first, with zodbupdate (--convert-py3) under ZODB"
        )
    if type(oid) is not bytes or len(oid) != 8:
        raise DeserializationError(f"a reference to {oid!r}, which is not an oid of 8 bytes")
    return oid
