"""Processes killed while four threads commit, and some while another one packs: nothing
acknowledged is lost."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from tests.campaign.kills import kill, kill_once, start_writer, verify


@pytest.mark.parametrize(
    ("times", "way", "packs", "uri"),
    [
        (15, "plain", "no", "file:{}.fs"),
        (7, "plain", "no", "file:{}.fs?checkpoint_records=20&preallocate_bytes=3000"),
        (3, "plain", "no", "file:{}.fs?durability=os"),
        (3, "plain", "no", "file:{}.fs?preallocate_bytes=0"),
        (6, "versions", "no", "file:{}.fs?checkpoint_records=50"),
        (6, "undo", "no", "file:{}.fs?checkpoint_records=50"),
        (6, "plain", "yes", "file:{}.fs?checkpoint_records=50"),
        (5, "versions", "yes", "file:{}.fs"),
        (5, "versions", "auto", "file:{}.fs"),
        (10, "plain", "no", "sqlite:{}.sqlite"),
        (5, "plain", "no", "sqlite:{}.sqlite?history=no&keep_seconds=0"),
        (5, "versions", "no", "sqlite:{}.sqlite"),
        (5, "undo", "no", "sqlite:{}.sqlite"),
        (5, "versions", "yes", "sqlite:{}.sqlite"),
        (10, "plain", "no", "berkeley:{}?checkpoint_bytes=20000"),
        (5, "plain", "no", "berkeley:{}?history=no"),
        (5, "versions", "no", "berkeley:{}"),
        (5, "undo", "no", "berkeley:{}"),
        (5, "versions", "yes", "berkeley:{}"),
        (15, "plain", "no", "pickle:{}.pickle"),
        (5, "versions", "yes", "pickle:{}.pickle"),
        (5, "versions", "no", "compressed+sqlite:{}.sqlite?method=zstd"),
        (5, "undo", "no", "encrypted+file:{}.fs?key=env:KILLS_KEY"),
        (5, "versions", "yes", "demo:(memory:)(file:{}.fs)"),
    ],
)
def test_killed_while_committing(
    tmp_path: Path, times: int, way: str, packs: str, uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process killed at any moment, committing plainly, in versions, or undoing, has lost
    nothing it acknowledged, left nothing by half, and the same database takes the next process,
    again and again."""
    monkeypatch.setenv("KILLS_KEY", "5a" * 32)
    seed = random.randrange(10**9)
    chance = random.Random(seed)
    for number in range(times):
        try:
            kill_once(uri.format(tmp_path / f"data{number // 10}"), chance, way, packs)
        except AssertionError as error:
            raise AssertionError(f"seed {seed}, kill {number}: {error}") from error


def test_killed_beside_others(tmp_path: Path) -> None:
    """Of three processes that write one SQLite file one is killed after the other, and replaced;
    the rest go on, and nothing acknowledged is lost."""
    seed = random.randrange(10**9)
    chance = random.Random(seed)
    uri = f"sqlite:{tmp_path}/data.sqlite"
    acknowledged: dict[int, int] = {}
    killed = dict.fromkeys(range(6), 0)
    writers = [start_writer(uri, first=2 * number, threads=2) for number in range(3)]

    def kill_one(number: int, after: int) -> None:
        told = kill(writers[number], after)
        acknowledged.update(told)
        for thread in (2 * number, 2 * number + 1):
            killed[thread] = 1 if thread in told else killed[thread] + 1

    try:
        for _ in range(12):
            number = chance.randrange(3)
            kill_one(number, chance.randrange(1, 60))
            writers[number] = start_writer(uri, first=2 * number, threads=2)
    finally:
        for number in range(3):
            kill_one(number, 1)
    try:
        verify(uri, acknowledged, 6, killed)
    except AssertionError as error:
        raise AssertionError(f"seed {seed}: {error}") from error
