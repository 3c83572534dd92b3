"""Where the base class of storages was. Goes with the next release."""

from __future__ import annotations

from typing import Any


def __getattr__(name: str) -> Any:
    if name == "TableStorage":
        raise ImportError(
            "TableStorage is gone: a storage is an engine with objdb.storage.storage.Storage in "
            "front of it now. The end of docs/writing-a-storage.md says what became of each method"
        )
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
