"""The order in which storages vote in a commit over several of them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from objdb.storage.layers.demo import DemoStorage
from objdb.storage.memory import MappingStorage
from tests.storages import FORGETFUL, STORAGES


@pytest.mark.parametrize("kind", [kind for kind in STORAGES if kind not in FORGETFUL])
def test_the_path_however_it_is_spelt(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every storage that has a path, and every layer over one, has the same key under every
    spelling of that: absolute, relative, through a link."""
    real = tmp_path / "real"
    real.mkdir()
    os.symlink(real, tmp_path / "link")
    monkeypatch.chdir(tmp_path)
    keys = set()
    for folder in (real, Path("real"), Path("link"), tmp_path / "link" / ".." / "real"):
        with STORAGES[kind](folder) as storage:
            keys.add(storage.sortKey())
    (key,) = keys
    assert key.startswith(os.fspath(real))


def test_without_a_path() -> None:
    """Storages in memory have different keys, also where they have one name, so that threads
    commit to several of them in one order."""
    one, two = MappingStorage("one"), MappingStorage("one")
    assert one.sortKey() != two.sortKey() and one.sortKey() == one.sortKey()
    assert DemoStorage(one).sortKey() != DemoStorage(two).sortKey()
