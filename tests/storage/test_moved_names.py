"""Names that others could have imported, and that have moved."""

from __future__ import annotations

import pytest

from objdb.storage import rows
from objdb.storage.tables import rows as moved


def test_rows_have_moved() -> None:
    """The old names of rows lead to the new ones, with a warning; the others are none."""
    with pytest.warns(DeprecationWarning, match=r"objdb\.storage\.rows\.encode_row now"):
        assert moved.encode_row is rows.encode_row
    with pytest.raises(AttributeError, match="has no attribute 'Place'"):
        _ = moved.Place


def test_the_base_class_is_gone() -> None:
    """Whoever imports it is told what to do."""
    with pytest.raises(ImportError, match="is gone"):
        from objdb.storage.tables.storage import TableStorage  # noqa: F401
