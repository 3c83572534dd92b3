"""A safe: a mapping whose every access is a durable transaction."""

from __future__ import annotations

import os
import pickle
from collections.abc import (
    Callable,
    ItemsView,
    Iterable,
    Iterator,
    MutableMapping,
    ValuesView,
)
from pathlib import Path
from typing import Any

from objdb.errors import BrokenObjectError, DeserializationError, SafeError, UnpicklableError
from objdb.safe.keys import decode, encode, original_of, shown
from objdb.safe.shelves import read_shelf
from objdb.safe.table import Row, Table

_PROTOCOL = 5
_BATCH_ROWS = 50
_MISSING: Any = object()


class Safe(MutableMapping[Any, Any]):
    """A durable dict. Opened by `module_safe` and `open_safe`; threads and processes share it.

    Reading returns a copy: changing it changes nothing until it is stored again. Keys are equal
    as in a dict (see `objdb.safe.keys`). Iterating yields all keys that stay, in an order of its
    own, and perhaps keys added meanwhile.

    `path`: the directory; `backend`: `"berkeley"`, `"sqlite"` or `"file"`; `table`: its rows.

    Any access can raise `StorageClosedError` after close, `CorruptedDataError` for damaged files,
    `SafeError` if the files are not writable. Writing raises `UnpicklableError`, and changes
    nothing; reading `BrokenObjectError` or `DeserializationError` for a value whose class is
    missing or refuses it, and the value stays.
    """

    def __init__(self, path: Path, backend: str, table: Table) -> None:
        self.path = path
        self.backend = backend
        self.table = table
        self._is_closed = False

    def __getitem__(self, key: Any) -> Any:
        value = self.table.get(encode(key))
        if value is None:
            raise KeyError(key)
        return self._loaded(key, value)

    def __setitem__(self, key: Any, value: Any) -> None:
        self.table.put(_row(key, value))

    def __delitem__(self, key: Any) -> None:
        if not self.table.delete(encode(key)):
            raise KeyError(key)

    def __contains__(self, key: Any) -> bool:
        return self.table.has(encode(key))

    def __len__(self) -> int:
        return self.table.count()

    def __bool__(self) -> bool:
        return bool(self.table.rows(b"", 1))

    def __iter__(self) -> Iterator[Any]:
        return (self._key(row) for row in self._rows())

    def __repr__(self) -> str:
        state = "closed" if self._is_closed else "open"
        return f"<Safe {str(self.path)!r} ({self.backend}), {state}>"

    def items(self) -> ItemsView[Any, Any]:
        """The pairs, each as it is when the iteration reaches it."""
        return _Items(self)

    def values(self) -> ValuesView[Any]:
        """The values, each as it is when the iteration reaches it."""
        return _Values(self)

    def update(self, other: Any = (), /, **more: Any) -> None:
        """Store pairs as dict.update does, in one transaction: all or none."""
        pairs = dict(other, **more) if more else other
        if hasattr(pairs, "keys"):
            pairs = [(key, pairs[key]) for key in pairs.keys()]  # noqa: SIM118  as a dict does
        self.table.put_all([_row(key, value) for key, value in pairs])

    def clear(self) -> None:
        """Remove everything, in one transaction."""
        self.table.put_all([], clear=True)

    def setdefault(self, key: Any, default: Any = None) -> Any:
        """Return the value at *key*; store *default* if the key is missing."""
        row = _row(key, default)
        while True:
            value = self.table.get(row[0])
            if value is not None:
                return self._loaded(key, value)
            if self.table.swap(row, None):
                return default

    def pop(self, key: Any, default: Any = _MISSING) -> Any:
        """Remove *key* and return its value; without it, *default*, or KeyError. Of several
        concurrent callers, one gets it."""
        encoded = encode(key)
        while True:
            value = self.table.get(encoded)
            if value is None:
                if default is _MISSING:
                    raise KeyError(key)
                return default
            found = self._loaded(key, value)
            if self.table.delete(encoded, bytes(value)):
                return found

    def popitem(self) -> tuple[Any, Any]:
        """Remove any pair and return it; KeyError if the safe is empty."""
        while rows := self.table.rows(b"", 1):
            row = rows[0]
            key = self._key(row)
            value = self._loaded(key, row[2])
            if self.table.delete(row[0], row[2]):
                return key, value
        raise KeyError("popitem(): the safe is empty")

    def change(
        self, key: Any, function: Callable[[Any], Any], default: Any = _MISSING
    ) -> Any:
        """Store `function(value)` in place of the value at *key*, and return it: concurrent
        changes are not lost.

        Without *key*, the function receives *default*, or KeyError is raised. After a concurrent
        change, the function is called again with the value stored then, so it should only
        compute the new value.
        """
        encoded = encode(key)
        if default is not _MISSING:
            default = _dumped(key, default)
        while True:
            value = self.table.get(encoded)
            if value is None and default is _MISSING:
                raise KeyError(key)
            changed = function(self._loaded(key, default if value is None else value))
            expected = None if value is None else bytes(value)
            row = encoded, original_of(key), _dumped(key, changed)
            if self.table.swap(row, expected):
                return changed

    def import_shelf(self, path: str | os.PathLike[str], *, overwrite: bool = False) -> int:
        """Store all items of the shelf at *path*, in one transaction; return the number of keys.
        The shelf stays.

        A key with another value here raises `SafeError`, and nothing is stored, unless
        *overwrite* is true. So does a shelf that cannot be read.
        """
        shelf = {key: _row(key, value) for key, value in read_shelf(path)}
        while not overwrite:
            new = []
            for key, row in shelf.items():
                value = self.table.get(row[0])
                if value is None:
                    new.append(row)
                elif value != row[2] and self._loaded(key, value) != pickle.loads(row[2]):
                    raise SafeError(
                        f"{self.path} has another value at {shown(key)} than the shelf "
                        f"{os.fspath(path)}. Nothing was stored. Remove one of the two, or "
                        "import with overwrite=True",
                        path=str(self.path),
                    )
            if self.table.put_all(new, new_only=True):
                return len(shelf)
        self.table.put_all(shelf.values())
        return len(shelf)

    @property
    def is_closed(self) -> bool:
        """Whether the safe is closed."""
        return self._is_closed

    def close(self) -> None:
        """Close the files. Safes left open are closed when the program ends."""
        self._is_closed = True
        self.table.close()

    def __enter__(self) -> Safe:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _rows(self) -> Iterable[Row]:
        after = b""
        while rows := self.table.rows(after, _BATCH_ROWS):
            yield from rows
            after = rows[-1][0]

    def _pairs(self) -> Iterator[tuple[Any, Any]]:
        for row in self._rows():
            key = self._key(row)
            yield key, self._loaded(key, row[2])

    def _key(self, row: Row) -> Any:
        try:
            return decode(row[0], row[1])
        except Exception as error:
            raise self._broken("a key", error) from error

    def _loaded(self, key: Any, value: Any) -> Any:
        try:
            return pickle.loads(value)
        except Exception as error:
            raise self._broken(f"the value at {shown(key)}", error) from error

    def _broken(self, what: str, error: Exception) -> DeserializationError:
        is_missing = isinstance(error, (ImportError, AttributeError))
        kind = BrokenObjectError if is_missing else DeserializationError
        why = "its class cannot be imported" if is_missing else "its class refused the state"
        return kind(
            f"{what} in {self.path} cannot be loaded, {why}: {type(error).__name__}: {error}. It "
            "stays unchanged: restore the class, or remove the key"
        )


class _Items(ItemsView[Any, Any]):
    _mapping: Safe

    def __iter__(self) -> Iterator[tuple[Any, Any]]:
        return self._mapping._pairs()


class _Values(ValuesView[Any]):
    _mapping: Safe

    def __iter__(self) -> Iterator[Any]:
        return (value for _, value in self._mapping._pairs())


def _row(key: Any, value: Any) -> Row:
    return encode(key), original_of(key), _dumped(key, value)


def _dumped(key: Any, value: Any) -> bytes:
    try:
        return pickle.dumps(value, _PROTOCOL)
    except Exception as error:
        raise UnpicklableError(
            f"the value at {shown(key)} cannot be pickled: {error}. Nothing was changed",
            class_name=f"{type(value).__module__}.{type(value).__qualname__}",
        ) from error
