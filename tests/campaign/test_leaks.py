"""What ends badly hundreds of times leaves nothing behind, on every storage."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.campaign.leaks import WAYS, Usage, fail_often, require_flat
from tests.storages import STORAGES


@pytest.mark.parametrize("kind", STORAGES)
@pytest.mark.parametrize("name", WAYS)
def test_flat(kind: str, name: str, tmp_path: Path) -> None:
    """Memory, descriptors and threads stay what they were."""
    fail_often(kind, name, tmp_path, 400)


@pytest.mark.parametrize("leaks", ["memory", "a file"])
def test_a_leak_is_found_out(leaks: str, tmp_path: Path) -> None:
    """What keeps something each time is told, with what the process held."""
    kept: list[object] = []

    def leaking() -> None:
        kept.append([[], [], [], []] if leaks == "memory" else (tmp_path / "kept").open("w"))

    try:
        with pytest.raises(AssertionError, match=Usage.__name__):
            require_flat(leaking, 200)
    finally:
        for one in kept:
            if leaks != "memory":
                one.close()  # type: ignore[attr-defined]
