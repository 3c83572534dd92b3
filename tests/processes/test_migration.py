"""`objdb migrate` killed in the middle, and called again."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import objdb
from objdb.check import check
from objdb.testing.helpers import contents
from tests.campaign.kills import ROOT

TRANSACTIONS = 3000


def test_killed_while_migrating(tmp_path: Path) -> None:
    """A migration killed at any moment has left a part of the source, complete; called again it
    goes on there, and at last all is the same: versions and undone transactions too."""
    source, copy = tmp_path / "source.fs", tmp_path / "copy.fs"
    seed = random.randrange(10**9)
    print(f"seed {seed}")
    chance = random.Random(seed)
    make_source(source, chance)
    with objdb.FileStorage(source, read_only=True) as storage:
        expected, versions = contents(storage), storage.versions()
    command = [sys.executable, "-m", "objdb", "migrate", str(source), str(copy)]
    for _ in range(8):
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL)
        # Some are killed while they begin, most while they copy.
        grown = copy.stat().st_size + chance.randrange(100_000) if copy.exists() else 1
        while process.poll() is None and not (copy.exists() and copy.stat().st_size >= grown):
            time.sleep(0.0005)  # the processor is wanted for what is looked at
        process.send_signal(signal.SIGKILL)
        process.wait(timeout=60)
        if copy.exists():
            with objdb.FileStorage(copy) as storage:
                found = contents(storage)
                assert found == expected[: len(found)]
                assert storage.self_check() == []
    subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    with objdb.FileStorage(copy) as storage:
        assert contents(storage) == expected
        assert storage.versions() == versions
        assert check(storage).problems == []


def make_source(path: Path, chance: random.Random) -> None:
    """Make a file with a long history."""
    with objdb.DB(objdb.FileStorage(path, durability="os")) as db:
        for number in range(TRANSACTIONS):
            version = chance.choice(["", "", "plan"])
            with db.transaction(f"number {number}", version) as connection:
                if chance.random() < 0.1 and not version:
                    entry = db.undoLog(0, 1)[0]
                    if not db.undo_preview(entry["id"]).obstacles and number > 1:
                        db.undo(entry["id"], connection.transaction_manager.get())
                        continue
                key = f"{version} {chance.randrange(50)}"
                if key not in connection.root() and not version and not db.versions():
                    connection.root()[key] = objdb.PersistentMapping()
                elif key in connection.root():
                    connection.root()[key]["text"] = "x" * chance.randrange(500)
            if number == TRANSACTIONS // 3:
                with db.transaction(version="plan") as connection:
                    for k in range(50):
                        connection.root()[f"plan {k}"] = objdb.PersistentMapping()
