"""Fifty processes killed while four threads commit: nothing acknowledged is lost."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

from tests.campaign.kills import kill_once


@pytest.mark.parametrize(
    ("times", "options"),
    [
        (30, {}),
        (14, {"checkpoint_records": 20, "preallocate_bytes": 3000}),
        (3, {"durability": "os"}),
        (3, {"preallocate_bytes": 0}),
    ],
    ids=["usual", "many checkpoints", "not synced", "nothing allocated"],
)
def test_killed_while_committing(tmp_path: Path, times: int, options: dict[str, Any]) -> None:
    """A process killed at any moment has lost nothing it acknowledged, left nothing by half, and
    the same file takes the next process, again and again."""
    seed = random.randrange(10**9)
    chance = random.Random(seed)
    for number in range(times):
        try:
            kill_once(tmp_path / f"data{number // 10}.fs", chance, **options)
        except AssertionError as error:
            raise AssertionError(f"seed {seed}, kill {number}: {error}") from error
