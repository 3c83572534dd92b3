"""The former place of the base class of storages. Removed in the next release."""

from __future__ import annotations

from typing import Any


def __getattr__(name: str) -> Any:
    if name == "TableStorage":
        raise ImportError(
            "TableStorage is gone: a storage is now objdb.storage.storage.Storage over an engine. "
            "The end of docs/writing-a-storage.md lists the replacement of each method"
        )
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
