"""Records to objects.

Two ways in, both of a connection: `ghost(oid, record)` makes an object without its state, and
`state(cls, record)` returns the state for an object that exists.

Nearly every record begins with a class pickle that is a constant for its class. So the reader
keeps, per such prefix, a C unpickler that has read that prefix once, and thereafter skips it:

    record   80 03 c app\\n Person\\n .  80 03 } ...
             └─ compared, skipped ─┘   └─ handed to the unpickler in one piece

The unpickler is handed the whole state at its first `peek`, so that it reads from memory from
then on. States written by ZODB may refer back to the class as memo entry 0; reading the prefix
put it there, and it stays, since such states put nothing at 0 (one that does is read the slow
way, with an unpickler of its own).
"""

from __future__ import annotations

import io
import pickle
import sys
from collections.abc import Callable
from typing import Any

from persistent import Persistent
from persistent.wref import WeakRef

from objdb.errors import DeserializationError, POSKeyError, PythonTwoRecordError
from objdb.ids import Oid, format_oid
from objdb.records.broken import broken_class, is_broken
from objdb.records.format import class_and_arguments, is_shared_memo, plain_prefix_length
from objdb.records.references import record_class_name

# Records larger than this get an unpickler of their own, so that what its memo holds on to is
# freed at once.
_LARGE_BYTES = 64 * 1024
_REFERENCE = ord("Q")  # the opcode before every reference
# Python 2 strings are decoded with this codec, which refuses everything.
_NO_PYTHON_TWO = "undefined"
# Classes that are stood in for even where they can be imported: objdb does not read blob files.
_NEVER_IMPORTED = {("ZODB.blob", "Blob")}


class _Source:
    """A file for the C unpickler that gives all there is at the first peek.

    `read` is called to skip what was peeked, its result unused: `skipped` lists by how much. It
    is called for more data only when the record is cut off: then the unpickler refuses the None
    that it returns.
    """

    __slots__ = ("data", "read", "skipped")

    def __init__(self) -> None:
        self.data = b""
        self.skipped: list[int] = []
        self.read = self.skipped.append

    def peek(self, size: int) -> bytes:
        data, self.data = self.data, b""
        return data

    def readline(self) -> bytes:
        raise EOFError


class _Unpickler(pickle.Unpickler):
    def __init__(self, file: Any, reader: ObjectReader) -> None:
        super().__init__(file, encoding=_NO_PYTHON_TWO)
        self.find_class = reader.find_class  # type: ignore[method-assign]
        self.persistent_load = reader.persistent_load  # type: ignore[method-assign]


class _Loader:
    """An unpickler for the states behind one class pickle, which it has read."""

    __slots__ = ("busy", "keeps_class", "length", "load", "prefix", "source")

    def __init__(self, prefix: bytes, reader: ObjectReader) -> None:
        self.prefix = prefix
        self.length = len(prefix)
        self.keeps_class = is_shared_memo(prefix, len(prefix))
        self.source = _Source()
        self.source.data = prefix
        self.load: Callable[[], Any] = _Unpickler(self.source, reader).load
        self.busy = False
        self.load()
        self.source.skipped.clear()


class ObjectReader:
    """Makes objects of one connection from records.

    *jar* is the connection: `jar.get(oid)` loads by oid, `jar.get_connection(name)` reaches
    other databases. *cache* is its `PickleCache`.
    """

    def __init__(self, jar: Any, cache: Any) -> None:
        self._jar = jar
        self._cache = cache
        self._loaders: dict[type, _Loader] = {}
        self._by_prefix: dict[bytes, _Loader] = {}
        self._classes: dict[tuple[str, str], Any] = {}
        self.persistent_load = self._reference_loader()

    def state(self, cls: type, record: bytes) -> Any:
        """Return the state in *record*, which belongs to an object of class *cls*.

        Raises `DeserializationError` or `PythonTwoRecordError`; `POSKeyError` for a reference
        by oid alone to an object that is not there.
        """
        loader = self._loaders.get(cls)
        if loader is None or not record.startswith(loader.prefix):
            loader = self._find_loader(cls, record)
        if loader is None or loader.busy or len(record) > _LARGE_BYTES:
            return self._load_slowly(record)
        length = loader.length
        if _REFERENCE not in record:
            try:
                return pickle.loads(record[length:], encoding=_NO_PYTHON_TWO)
            except Exception:
                return self._load_slowly(record)  # and say what is wrong, if anything is
        # Protocols above 3 number their memo entries by how many there are.
        if record[length + 1 : length + 2] > b"\3" or (
            loader.keeps_class and record.find(b"q\x00", length) >= 0
        ):
            return self._load_slowly(record)
        source = loader.source
        source.data = state_pickle = record[length:]
        # Unpickling can load other objects (a key with a __hash__ of its own, say): those of
        # the same class must not use this unpickler meanwhile.
        loader.busy = True
        try:
            state = loader.load()
        except Exception as error:
            self._drop_loader(loader)
            raise self._explain(error, record) from error
        finally:
            loader.busy = False
        if source.skipped.pop() != len(state_pickle):  # what is behind it would be read next
            self._drop_loader(loader)
        return state

    def _drop_loader(self, loader: _Loader) -> None:
        """Forget an unpickler that has not read all it was given, and still holds the rest."""
        self._by_prefix.pop(loader.prefix, None)
        self._loaders = {c: kept for c, kept in self._loaders.items() if kept is not loader}

    def _find_loader(self, cls: type, record: bytes) -> _Loader | None:
        length = plain_prefix_length(record)
        if not length:
            return None
        prefix = record[:length]
        loader = self._by_prefix.get(prefix)
        if loader is None:
            try:
                loader = self._by_prefix[prefix] = _Loader(prefix, self)
            except Exception as error:
                raise self._explain(error, record) from error
        self._loaders[cls] = loader
        return loader

    def _load_slowly(self, record: bytes) -> Any:
        unpickler = _Unpickler(io.BytesIO(record), self)
        try:
            unpickler.load()
            return unpickler.load()
        except Exception as error:
            raise self._explain(error, record) from error

    def forget(self) -> None:
        """Let go of the objects that the unpicklers met last, and still hold."""
        self._loaders.clear()
        self._by_prefix.clear()

    def ghost(self, oid: Oid, record: bytes) -> Persistent:
        """Return a new object for *record*, without state, entered in the cache."""
        try:
            metadata = _Unpickler(io.BytesIO(record), self).load()
            cls, arguments = class_and_arguments(metadata)
            if isinstance(cls, tuple):
                cls = self.find_class(*cls)
            return self._new_ghost(oid, cls, arguments)
        except DeserializationError:
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
            if not is_broken(found):  # it may become importable
                self._classes[module, name] = found
        return found

    def _reference_loader(self) -> Callable[[Any], Any]:
        """Return the function that turns a reference into an object: from the cache, or a new
        ghost. It runs for every reference, so it holds what it needs in its closure."""
        in_cache, new_ghost = self._cache.get, self._cache.new_ghost
        plain: dict[type, Any] = {}  # class -> its __new__
        load_unusual = self._load_reference

        def persistent_load(reference: Any) -> Any:
            if type(reference) is tuple:
                oid, cls = reference
                obj = in_cache(oid)
                if obj is not None:
                    return obj
                make = plain.get(cls)
                if make is not None and len(oid) == 8:
                    obj = make(cls)
                    new_ghost(oid, obj)
                    return obj
                obj = load_unusual(reference)
                if type(obj) is cls and not hasattr(cls, "__getnewargs__"):
                    plain[cls] = cls.__new__
                return obj
            return load_unusual(reference)

        return persistent_load

    def _load_reference(self, reference: Any) -> Any:
        """Return the object for a reference of any form (see `format`)."""
        if type(reference) is tuple:
            oid, cls = reference
            if type(cls) is tuple or hasattr(cls, "__getnewargs__"):
                return self._load_by_oid(oid)
            _checked(oid)
            return self._new_ghost(oid, cls, ())
        if type(reference) is not list:
            return self._load_by_oid(reference)
        if len(reference) == 1:
            return self._weak_reference(reference[0])
        kind, arguments = reference
        if kind == "w":
            return self._weak_reference(*arguments)
        if kind == "n" or kind == "m":
            return self._jar.get_connection(arguments[0]).get(arguments[1])
        raise DeserializationError(f"unknown kind of reference {reference!r}")

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
        if isinstance(error, (DeserializationError, POSKeyError)):
            return error
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
        raise DeserializationError(f"a reference to {oid!r}, which is no oid of 8 bytes")
    return oid


def import_global(module: str, name: str) -> Any:
    """Import `module.name` (the name may be dotted), or return a broken class in its place."""
    if (module, name) not in _NEVER_IMPORTED:
        try:
            __import__(module)
            found: Any = sys.modules[module]
            for part in name.split("."):
                found = getattr(found, part)
            return found
        except (ImportError, AttributeError, KeyError):
            pass
    return broken_class(module, name, persistent=False)
