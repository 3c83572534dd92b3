"""The conformance suite over every layer that can be written."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from objdb.storage.file.storage import FileStorage
from objdb.storage.layers.compressed import CompressedStorage
from objdb.storage.layers.demo import DemoStorage
from objdb.storage.layers.encrypted import EncryptedStorage
from objdb.storage.layers.logged import LoggedStorage
from objdb.storage.memory import MappingStorage
from objdb.testing.conformance import StorageConformance

KEY = bytes(range(32))


class Kept:
    """Opens a layer over a storage in memory that outlives it."""

    def __init__(self, layer: Callable[[Any], Any]) -> None:
        self._layer = layer
        self._kept: Any = None

    def __call__(self) -> Any:
        base = MappingStorage("kept")
        if self._kept is not None:
            base.copyTransactionsFrom(self._kept)
        self._kept = base
        return self._layer(base)


class TestLoggedFile(StorageConformance):
    @pytest.fixture
    def make_storage(self, tmp_path: Path) -> Callable[[], Any]:
        lines: list[str] = []
        return lambda: LoggedStorage(FileStorage(tmp_path / "data.fs"), lines.append)


class TestCompressed(StorageConformance):
    @pytest.fixture
    def make_storage(self) -> Callable[[], Any]:
        return Kept(CompressedStorage)


class TestCompressedFile(StorageConformance):
    @pytest.fixture
    def make_storage(self, tmp_path: Path) -> Callable[[], Any]:
        return lambda: CompressedStorage(FileStorage(tmp_path / "data.fs"), "zstd")


class TestEncrypted(StorageConformance):
    @pytest.fixture
    def make_storage(self) -> Callable[[], Any]:
        return Kept(lambda base: EncryptedStorage(base, KEY))


class TestCompressedAndEncryptedFile(StorageConformance):
    @pytest.fixture
    def make_storage(self, tmp_path: Path) -> Callable[[], Any]:
        return lambda: CompressedStorage(
            EncryptedStorage(FileStorage(tmp_path / "data.fs"), KEY), "zstd"
        )


class TestDemo(StorageConformance):
    @pytest.fixture
    def make_storage(self) -> Callable[[], Any]:
        return Kept(lambda changes: DemoStorage(MappingStorage("base"), changes))


class TestDemoInFiles(StorageConformance):
    @pytest.fixture
    def make_storage(self, tmp_path: Path) -> Callable[[], Any]:
        return lambda: DemoStorage(
            FileStorage(tmp_path / "base.fs"), FileStorage(tmp_path / "changes.fs")
        )
