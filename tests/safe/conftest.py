"""Safes in temporary directories, closed after each test."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from objdb.safe import BACKENDS, Safe, open_safe

Open = Callable[..., Safe]


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> str:
    """The name of each backend."""
    return str(request.param)


@pytest.fixture(params=["berkeley", "sqlite"])
def shared_backend(request: pytest.FixtureRequest) -> str:
    """The name of each backend for several processes."""
    return str(request.param)


@pytest.fixture
def opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Open]:
    """Opens a safe in the temporary directory, which is the current one."""
    monkeypatch.chdir(tmp_path)
    for name in ("OBJDB_SAFE", "OBJDB_CAGE", "OBJDB_NODE", "OBJDB_SAFE_BACKEND"):
        monkeypatch.delenv(name, raising=False)
    safes = []

    def opened(backend: str | None = None, name: str = "host.app.module") -> Safe:
        safe = open_safe(tmp_path / "safe" / name, backend=backend)
        safes.append(safe)
        return safe

    yield opened
    for safe in safes:
        safe.close()


@pytest.fixture
def safe(opened: Open, backend: str) -> Safe:
    """An empty safe of each backend."""
    return opened(backend)
