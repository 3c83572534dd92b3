"""The conformance suite over the storage that `--objdb-storage` names: see `plugin`."""

from __future__ import annotations

from pathlib import Path

import pytest

from objdb.testing.conformance import StorageConformance
from objdb.testing.helpers import Make
from objdb.testing.plugin import Factory


class TestStorage(StorageConformance):
    """The whole suite. What the storage does not declare is skipped."""

    @pytest.fixture
    def make_storage(
        self, objdb_storage_factory: Factory, tmp_path: Path, request: pytest.FixtureRequest
    ) -> Make:
        """Return a function that opens the storage of this test."""
        self.persistent = not request.config.getoption("--objdb-forgets")
        return lambda: objdb_storage_factory(tmp_path / "storage")
