"""Isolation through the server: what transactions of threads saw of one another is checked."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

import objdb
from objdb.connection.isolation import ISOLATIONS
from objdb.testing.recording import check_isolation
from objdb_zeo import ClientStorage
from tests.zeo.serving import Serving


@pytest.mark.parametrize("isolation", ISOLATIONS)
@pytest.mark.parametrize("cache_bytes", [0, 10_000_000])
def test_histories(tmp_path: Path, isolation: str, cache_bytes: int) -> None:
    """Histories of random transactions show what the mode allows, with a cache and without."""
    seed = random.randrange(10**9)
    with (
        Serving({"1": objdb.FileStorage(tmp_path / "data.fs", durability="os")}) as serving,
        objdb.DB(ClientStorage(serving.address, cache_bytes=cache_bytes)) as db,
    ):
        check_isolation(db, threads=4, transactions=40, isolation=isolation, seed=seed)
