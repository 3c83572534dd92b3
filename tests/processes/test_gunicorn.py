"""Databases under gunicorn, whose workers are forks of one process."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

import objdb
from objdb.check import check
from tests.campaign.kills import ROOT


@contextmanager
def serving(uri: str, workers: int, preload: bool) -> Iterator[httpx.Client]:
    """Run the application of `web_counter`; give a client for it."""
    with tempfile.TemporaryDirectory(prefix="objdb-web-") as folder:  # a short path: it is a socket
        socket = f"{folder}/socket"
        environment = {**os.environ, "STORAGE": uri, "PRELOAD": "yes" if preload else ""}
        environment["HOME"] = folder  # where gunicorn makes a socket of its own
        environment["PYTHONPATH"] = os.pathsep.join(
            filter(None, (str(ROOT), environment.get("PYTHONPATH")))
        )
        process = subprocess.Popen(
            [
                sys.executable, "-m", "gunicorn", "--bind", f"unix:{socket}", "--workers",
                str(workers), *(["--preload"] if preload else []), "--worker-tmp-dir", folder,
                "--log-level", "error",
                "tests.processes.web_counter:application",
            ],
            cwd=ROOT, env=environment,
        )
        try:
            until = time.monotonic() + 60
            while not os.path.exists(socket):
                assert process.poll() is None, "gunicorn ended by itself"
                assert time.monotonic() < until
                time.sleep(0.01)
            transport = httpx.HTTPTransport(uds=socket, retries=3)
            with httpx.Client(transport=transport, base_url="http://web", timeout=60) as client:
                yield client
        finally:
            process.terminate()
            process.wait(timeout=60)


def call_often(client: httpx.Client, times: int) -> tuple[list[int], set[str]]:
    """Call so many times, from several threads; return the numbers and the processes told."""

    def call(_: int) -> str:
        answer = client.get("/")
        assert answer.status_code == 200, answer.text
        return answer.text

    with ThreadPoolExecutor(6) as threads:
        told = [text.split() for text in threads.map(call, range(times))]
    return [int(number) for number, _ in told], {process for _, process in told}


@pytest.mark.parametrize("preload", [False, True], ids=["opened in workers", "opened before"])
def test_workers_share_sqlite(tmp_path: Path, preload: bool) -> None:
    """Workers on one SQLite file count every call once, whoever opened the database first."""
    uri = f"sqlite:{tmp_path}/data.sqlite"
    with serving(uri, 3, preload) as client:
        numbers, processes = call_often(client, 150)
    assert sorted(numbers) == list(range(1, 151))
    assert len(processes) > 1
    with objdb.DB(uri) as db:
        with db.transaction() as connection:
            assert connection.root()["calls"] == 150
        check(db.storage).raise_if_damaged()


ALONE = ["file:{}/data.fs", "pickle:{}/data.pickle", "berkeley:{}/data"]


@pytest.mark.parametrize("uri", ALONE)
def test_one_process_at_a_time(tmp_path: Path, uri: str) -> None:
    """A storage for one process works in one worker; where the parent has it open, workers say
    who has it."""
    uri = uri.format(tmp_path)
    with serving(uri, 1, preload=False) as client:
        numbers, processes = call_often(client, 20)
        assert sorted(numbers) == list(range(1, 21)) and len(processes) == 1
    with serving(uri, 2, preload=True) as client:
        answer = client.get("/")
        assert answer.status_code == 503
        assert answer.text.startswith("StorageLockedError") and "process" in answer.text
    with objdb.DB(uri) as db, db.transaction() as connection:
        assert connection.root()["calls"] == 20
