"""Reads shelves of the standard library."""

from __future__ import annotations

import dbm
import os
import shelve
from collections.abc import Iterator
from contextlib import closing
from typing import Any

from objdb.errors import SafeError


def read_shelf(path: str | os.PathLike[str]) -> Iterator[tuple[str, Any]]:
    """Yield the pairs of a shelf; *path* as for `shelve.open`.

    Raises `SafeError` if the shelf cannot be opened, or a value cannot be loaded.
    """
    name = os.fspath(path)
    try:
        shelf = shelve.open(name, "r")
    except dbm.error as error:
        raise SafeError(
            f"{name} cannot be opened as a shelf: {error}. Give the same name as to shelve.open, "
            "and use a Python with the dbm module that wrote it",
            path=name,
        ) from error
    with closing(shelf):
        for key in list(shelf):
            try:
                value = shelf[key]
            except Exception as error:
                raise SafeError(
                    f"the value at {key!r} in the shelf {name} cannot be loaded: "
                    f"{type(error).__name__}: {error}. Nothing was stored",
                    path=name,
                ) from error
            yield key, value
