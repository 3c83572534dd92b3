"""Storages from paths and URIs.

    calendar.fs                          a FileStorage
    file:calendar.fs?durability=os       the same, with parameters
    file:///var/lib/app/calendar.fs
    memory:                              a MappingStorage

Parameters of the database (`pool_size`, `cache_size` …) can stand in the query as well.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

from objdb.errors import UsageError
from objdb.storage.file.storage import FileStorage
from objdb.storage.memory import MappingStorage

Parser = Callable[[str], Any]


def _boolean(text: str) -> bool:
    values = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
    return values[text.lower()]


FILE_PARAMETERS: dict[str, Parser] = {
    "create": _boolean, "read_only": _boolean, "durability": str, "preallocate_bytes": int,
    "checkpoint_records": int,
}
DATABASE_PARAMETERS: dict[str, Parser] = {
    "pool_size": int, "pool_wait": float, "cache_size": int, "cache_size_bytes": int,
    "cache_deactivate_after": float, "isolation": str, "database_name": str,
    "historical_pool_size": int, "historical_timeout": float, "historical_cache_size": int,
    "record_stacks": _boolean, "detect_mutations": _boolean,
}


def _file(path: str, parameters: dict[str, Any]) -> FileStorage:
    if not path:
        raise UsageError("a file: URI names a path, as in file:calendar.fs")
    return FileStorage(path, **parameters)


def _memory(name: str, parameters: dict[str, Any]) -> MappingStorage:
    return MappingStorage(name or "MappingStorage")


SCHEMES: dict[str, tuple[Callable[[str, dict[str, Any]], Any], dict[str, Parser]]] = {
    "file": (_file, FILE_PARAMETERS),
    "memory": (_memory, {}),
}


def open_storage(where: Any) -> tuple[Any, dict[str, Any]]:
    """Return (storage, database parameters) for a storage, a path, a URI, None (memory) or a
    callable that makes a storage.

    `UsageError` for an unknown scheme, parameter or value; the storage's own errors.
    """
    if where is None:
        return MappingStorage(), {}
    if callable(where):
        return where(), {}
    if isinstance(where, os.PathLike):
        return FileStorage(where), {}
    if not isinstance(where, str):
        if not hasattr(where, "loadBefore"):
            raise UsageError(
                f"{where!r} is no storage. Give a storage, a path, a URI, a function that makes a "
                "storage, or None for one in memory"
            )
        return where, {}
    scheme, colon, _ = where.partition(":")
    # A single letter is a drive, and what has a separator before the colon is a path.
    if not colon or len(scheme) < 2 or "/" in scheme or os.sep in scheme:
        return FileStorage(where), {}
    return _from_uri(where)


def _from_uri(uri: str) -> tuple[Any, dict[str, Any]]:
    try:
        parts = urlsplit(uri)
    except ValueError as error:
        raise UsageError(f"{uri}: {error}") from None
    if parts.scheme not in SCHEMES:
        raise UsageError(
            f"{uri}: there is no storage {parts.scheme!r}; there are {', '.join(SCHEMES)}. "
            "A path whose name has a colon can be written file:NAME"
        )
    if parts.netloc:
        raise UsageError(f"{uri}: a host cannot be given; write file:///absolute/path")
    if parts.fragment:
        raise UsageError(f"{uri}: a # in a path is written %23")
    make, own_parameters = SCHEMES[parts.scheme]
    known = own_parameters | DATABASE_PARAMETERS
    values: dict[str, Any] = {}
    for name, text in parse_qsl(parts.query, keep_blank_values=True):
        if name not in known:
            raise UsageError(f"{uri}: unknown parameter {name!r}; known are {', '.join(known)}")
        try:
            values[name] = known[name](text)
        except (ValueError, KeyError):
            raise UsageError(f"{uri}: {name} cannot be {text!r}") from None
    storage = make(
        unquote(parts.path), {k: v for k, v in values.items() if k in own_parameters}
    )
    return storage, {k: v for k, v in values.items() if k in DATABASE_PARAMETERS}
