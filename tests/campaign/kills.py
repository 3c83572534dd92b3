"""Killing `writer` with SIGKILL, and looking at what it left."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import objdb
from objdb.check import check

THREADS = 4
ROOT = Path(__file__).parents[2]


def kill_once(
    path: Path, chance: random.Random, way: str = "plain", **options: Any
) -> dict[int, int]:
    """Start a writer on *path*, which writes in this way, kill it after a random number of
    acknowledgements, and verify the file. *options* are FileStorage's. Return the last number
    acknowledged to each thread."""
    patience = chance.randrange(1, 120)
    command = [sys.executable, "-m", "tests.campaign.writer"]
    process = subprocess.Popen(
        [*command, str(path), str(THREADS), way, json.dumps(options)],
        stdout=subprocess.PIPE, cwd=ROOT,
    )
    assert process.stdout is not None
    try:
        lines = [process.stdout.readline() for _ in range(patience)]
    finally:
        process.send_signal(signal.SIGKILL)
        lines += process.stdout.readlines()
        process.stdout.close()
        code = process.wait(timeout=60)
    assert code == -signal.SIGKILL, f"the writer ended by itself: {code}"
    acknowledged: dict[int, int] = {}
    for line in lines:
        if line.endswith(b"\n"):
            thread, number = map(int, line.split())
            acknowledged[thread] = number
    verify(path, acknowledged)
    return acknowledged


def verify(path: Path, acknowledged: dict[int, int]) -> None:
    """Raise unless all that was acknowledged is in the file, nothing is there by half, and the
    whole database checks clean."""
    with objdb.DB(path) as db:
        with db.transaction() as connection:
            root = connection.root()
            for thread in range(THREADS):
                first, second = root[f"a{thread}"]["n"], root[f"b{thread}"]["n"]
                least = acknowledged.get(thread, 0)
                assert first == second, f"half a transaction: thread {thread}, {first}, {second}"
                # One commit may have been decided and not acknowledged.
                assert least <= first, f"lost: thread {thread} was told {least}, has {first}"
                assert first <= least + 1 or not least
        for version in db.versions():
            thread = int(version.split()[-1])
            with db.transaction(version=version) as connection:
                root = connection.root()
                first, second = root[f"a{thread}"]["n"], root[f"b{thread}"]["n"]
                assert first == second, f"half a version: {version}, {first}, {second}"
        check(db.storage).raise_if_damaged()
