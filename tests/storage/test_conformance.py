"""The conformance suite over every storage."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from objdb.storage.berkeley.storage import BerkeleyStorage
from objdb.storage.file.storage import FileStorage
from objdb.storage.memory import MappingStorage
from objdb.storage.pickled import PickledMappingStorage
from objdb.storage.sql.sqlite import SQLiteStorage
from objdb.testing.conformance import CoreConformance, StorageConformance


class TestMappingStorage(StorageConformance):
    persistent = False

    @pytest.fixture
    def make_storage(self) -> Callable[[], Any]:
        return MappingStorage


class TestMappingStorageOverAMapping(StorageConformance):
    @pytest.fixture
    def make_storage(self) -> Callable[[], Any]:
        data: dict[bytes, bytes] = {}
        return lambda: MappingStorage(data=data)


class TestPickledMappingStorage(StorageConformance):
    @pytest.fixture
    def make_storage(self, tmp_path: Path) -> Callable[[], Any]:
        return lambda: PickledMappingStorage(tmp_path / "data.pickle")


class TestSQLiteStorage(StorageConformance):
    @pytest.fixture
    def make_storage(self, tmp_path: Path) -> Callable[[], Any]:
        return lambda: SQLiteStorage(tmp_path / "data.sqlite")


class TestSQLiteStorageWithoutHistory(CoreConformance):
    @pytest.fixture
    def make_storage(self, tmp_path: Path) -> Callable[[], Any]:
        return lambda: SQLiteStorage(tmp_path / "data.sqlite", history=False)


class TestBerkeleyStorage(StorageConformance):
    @pytest.fixture
    def make_storage(self, tmp_path: Path) -> Callable[[], Any]:
        return lambda: BerkeleyStorage(tmp_path / "data")


class TestBerkeleyStorageWithoutHistory(CoreConformance):
    @pytest.fixture
    def make_storage(self, tmp_path: Path) -> Callable[[], Any]:
        return lambda: BerkeleyStorage(tmp_path / "data", history=False)


class TestFileStorage(StorageConformance):
    @pytest.fixture
    def make_storage(self, tmp_path: Path) -> Callable[[], Any]:
        return lambda: FileStorage(tmp_path / "data.fs")


class TestFileStorageWithoutAllocation(StorageConformance):
    @pytest.fixture
    def make_storage(self, tmp_path: Path) -> Callable[[], Any]:
        return lambda: FileStorage(
            tmp_path / "data.fs", preallocate_bytes=0, durability="os", checkpoint_records=3
        )
