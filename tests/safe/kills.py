"""Kills processes that write to a safe, while others write on: nothing acknowledged is lost."""

from __future__ import annotations

import random
import subprocess
import sys
from pathlib import Path
from typing import Any

from objdb.safe import Safe, open_safe

WRITERS = 3
FOR_EVER = 10**9


class Writer:
    """A process that writes, and what it has acknowledged."""

    def __init__(self, path: Path, name: str) -> None:
        self.path, self.name, self.acknowledged = path, name, 0
        self.process = self._start()

    def _start(self) -> subprocess.Popen[str]:
        words = [str(self.path), self.name, str(self.acknowledged), str(FOR_EVER)]
        return subprocess.Popen(
            [sys.executable, "-m", "tests.safe.writer", *words],
            stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2],
        )

    def read(self, lines: int) -> None:
        """Wait until so many more numbers are acknowledged."""
        assert self.process.stdout is not None
        for _ in range(lines):
            line = self.process.stdout.readline()
            assert line, f"{self.name} ended with {self.process.wait(30)}"
            self.acknowledged = int(line)

    def kill(self) -> None:
        """Kill it, and hear what it had acknowledged."""
        self.process.kill()
        assert self.process.stdout is not None
        with self.process.stdout as output:
            for line in output:
                # One that was cut off in the middle was not acknowledged.
                if line.endswith("\n"):
                    self.acknowledged = int(line)
        self.process.wait(30)

    def restart(self, safe: Safe) -> None:
        """Go on from what is stored."""
        self.acknowledged = safe.get(self.name, 0)
        self.process = self._start()


def campaign(path: Path, backend: str, times: int, chance: random.Random) -> dict[str, Any]:
    """Kill writers *times* times; return the safe as it then is, checked after each kill."""
    with open_safe(path, backend=backend) as safe:
        safe["count"] = 0
        writers = [Writer(path, f"writer {number}") for number in range(WRITERS)]
        written = 0
        try:
            for _ in range(times):
                victim = chance.choice(writers)
                victim.read(chance.randint(1, 8))
                # Somewhere in the middle of what comes next.
                for _ in range(chance.randint(0, 2000)):
                    pass
                victim.kill()
                check_one(safe, victim)
                victim.restart(safe)
                for writer in writers:
                    writer.read(1)  # all of them go on
        finally:
            for writer in writers:
                writer.kill()
        for writer in writers:
            check_one(safe, writer)
            written += safe[writer.name]
        # Who was killed may have counted once more than it stored its number.
        assert written <= safe["count"] <= written + times + WRITERS
        return dict(safe.items())


def check_one(safe: Safe, writer: Writer) -> None:
    """Everything that a killed writer acknowledged is there, and nothing by half."""
    name, acknowledged = writer.name, writer.acknowledged
    last = safe.get(name, 0)
    assert acknowledged <= last <= acknowledged + 1, (name, acknowledged, last)
    left = safe.get((name, "left"), 0)
    assert left == safe.get((name, "right"), 0), "an update by half"
    assert last <= left <= last + 1
    numbers = [
        key[1] for key in safe
        if isinstance(key, tuple) and key[0] == name and isinstance(key[1], int)
    ]
    assert set(numbers) <= {left, left - 1} and (not left or left in numbers)
