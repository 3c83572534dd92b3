"""What several tests of databases need."""

from __future__ import annotations

import pytest

import objdb
from tests.models import Person


@pytest.fixture
def people(db: objdb.DB) -> objdb.DB:
    """A database with Ann, who is 30."""
    with db.transaction() as connection:
        connection.root()["ann"] = Person("Ann", age=30)
    return db
