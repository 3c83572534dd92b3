"""Sixty processes killed while four threads commit, and some while another one packs: nothing
acknowledged is lost."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

from tests.campaign.kills import kill_once


@pytest.mark.parametrize(
    ("times", "way", "options"),
    [
        (30, "plain", {}),
        (14, "plain", {"checkpoint_records": 20, "preallocate_bytes": 3000}),
        (3, "plain", {"durability": "os"}),
        (3, "plain", {"preallocate_bytes": 0}),
        (12, "versions", {"checkpoint_records": 50}),
        (12, "undo", {"checkpoint_records": 50}),
        (12, "plain", {"packs": True, "checkpoint_records": 50}),
        (8, "versions", {"packs": True}),
        (8, "versions", {"packs": "auto"}),
    ],
    ids=[
        "usual", "many checkpoints", "not synced", "nothing allocated", "versions", "undo",
        "packing", "packing versions", "packing by itself",
    ],
)
def test_killed_while_committing(
    tmp_path: Path, times: int, way: str, options: dict[str, Any]
) -> None:
    """A process killed at any moment, committing plainly, in versions, or undoing, has lost
    nothing it acknowledged, left nothing by half, and the same file takes the next process, again
    and again."""
    seed = random.randrange(10**9)
    chance = random.Random(seed)
    for number in range(times):
        try:
            kill_once(tmp_path / f"data{number // 10}.fs", chance, way, **options)
        except AssertionError as error:
            raise AssertionError(f"seed {seed}, kill {number}: {error}") from error
