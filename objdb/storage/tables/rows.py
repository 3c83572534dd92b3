"""Names that are in `objdb.storage.rows` now. Removed in the next release."""

from __future__ import annotations

import warnings
from typing import Any

from objdb.storage import rows


def __getattr__(name: str) -> Any:
    if name.startswith("__") or not hasattr(rows, name):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    warnings.warn(
        f"objdb.storage.tables.rows.{name} is objdb.storage.rows.{name} now", DeprecationWarning,
        stacklevel=2,
    )
    return getattr(rows, name)
