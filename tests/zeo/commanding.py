"""`objdb serve` in a process of its own, for tests."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

OBJDB = [sys.executable, "-m", "objdb"]


class Command:
    """A server that runs: its addresses, and what it has written."""

    def __init__(self, process: subprocess.Popen[bytes], addresses: list[str], log: Path) -> None:
        self.process = process
        self.addresses = addresses
        self._log = log

    @property
    def log(self) -> str:
        """What it has written so far."""
        return self._log.read_text()

    def says(self, words: str) -> str:
        """Wait until it has written *words*; return what it has written."""
        wait_for(lambda: words in self.log, f"it did not write {words!r}")
        return self.log

    @property
    def peak_bytes(self) -> int:
        """The most memory that it has had."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(status.partition("VmHWM:")[2].split()[0]) * 1024

    def stop(self) -> None:
        """Stop it by SIGTERM."""
        self.process.send_signal(signal.SIGTERM)
        assert self.process.wait(20) == 0, self.log


def wait_for(is_so: Callable[[], Any], otherwise: str, seconds: float = 20) -> None:
    """Wait until something is so."""
    deadline = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < deadline, otherwise
        time.sleep(0.01)


@contextmanager
def commanded(folder: Path, *arguments: str, **options: Any) -> Iterator[Command]:
    """Run `objdb serve` in *folder*; kill it behind the block, if it still runs. *options*: of
    `Popen`."""
    ready, log = folder / "ready", folder / "log"
    ready.unlink(missing_ok=True)
    environment = {**os.environ, **options.pop("env", {})}
    with log.open("ab") as writing:
        process = subprocess.Popen(
            [*OBJDB, "serve", *arguments, "--ready-file", str(ready)], cwd=folder, stderr=writing,
            env=environment, **options,
        )
    try:
        wait_for(
            lambda: ready.exists() or process.poll() is not None, "it is not ready"
        )
        assert process.poll() is None, log.read_text()
        yield Command(process, ready.read_text().splitlines()[:-1], log)
    finally:
        process.kill()
        process.wait()
