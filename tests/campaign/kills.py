"""Killing `writer` with SIGKILL, and looking at what it left."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
from pathlib import Path

import objdb
from objdb.check import check

THREADS = 4
ROOT = Path(__file__).parents[2]


def start_writer(
    uri: str, way: str = "plain", packs: str = "no", first: int = 0, threads: int = THREADS
) -> subprocess.Popen[bytes]:
    """Start a writer, with so many threads, the first of which has that number."""
    command = [sys.executable, "-m", "tests.campaign.writer"]
    return subprocess.Popen(
        [*command, uri, str(first), str(threads), way, packs], stdout=subprocess.PIPE, cwd=ROOT
    )


def kill(process: subprocess.Popen[bytes], patience: int) -> dict[int, int]:
    """Kill a writer after so many acknowledgements. Return the last number acknowledged to each
    thread."""
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
    return acknowledged


def kill_once(
    uri: str, chance: random.Random, way: str = "plain", packs: str = "no"
) -> dict[int, int]:
    """Start a writer on the storage at *uri*, kill it after a random number of acknowledgements,
    and verify what it left. Return the last number acknowledged to each thread."""
    acknowledged = kill(start_writer(uri, way, packs), chance.randrange(1, 120))
    verify(uri, acknowledged)
    return acknowledged


def verify(
    uri: str, acknowledged: dict[int, int], threads: int = THREADS,
    killed: dict[int, int] | None = None,
) -> None:
    """Raise unless all that was acknowledged is in the storage, nothing is there by half, and the
    whole database checks clean. *killed*: how often each thread was killed since its last
    acknowledgement, if not once."""
    with objdb.DB(uri) as db:
        with db.transaction() as connection:
            root = connection.root()
            for thread in range(threads):
                if f"a{thread}" not in root:
                    assert thread not in acknowledged, f"lost: all of thread {thread}"
                    continue
                first, second = root[f"a{thread}"]["n"], root[f"b{thread}"]["n"]
                least = acknowledged.get(thread, 0)
                assert first == second, f"half a transaction: thread {thread}, {first}, {second}"
                # One commit may have been decided and not acknowledged, each time.
                assert least <= first, f"lost: thread {thread} was told {least}, has {first}"
                most = least + (killed or {}).get(thread, 1)
                assert first <= most or not least, f"thread {thread} has {first}, not {most}"
        for version in db.versions() if db.supportsVersions() else ():
            thread = int(version.split()[-1])
            with db.transaction(version=version) as connection:
                root = connection.root()
                first, second = root[f"a{thread}"]["n"], root[f"b{thread}"]["n"]
                assert first == second, f"half a version: {version}, {first}, {second}"
        check(db.storage).raise_if_damaged()
