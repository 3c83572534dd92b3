"""Running the tests of mutations, each in a copy of the checkout with that mutation in it.

    checkout ─► base copy ─► the tests without a mutation, once ─► a copy for each mutation
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from tests.mutations.mutation import Mutation

ROOT = Path(__file__).resolve().parents[2]
# Tests of a mutation take seconds; those that take so long do not end.
LONGEST_SECONDS = 300.0
LONGEST_TEST_SECONDS = 60
LONGEST_BASELINE_SECONDS = 1800.0

_COPIED = (
    "objdb", "tests", "tutorials", "docs", "benchmarks", "CHANGELOG.md", "LICENSE", "MANIFEST.in",
    "README.md", "dev", "pyproject.toml", "setup.cfg", "setup.py",
)
_NOT_COPIED = shutil.ignore_patterns("__pycache__", "*.json", "*.svg", ".hypothesis")
_FAILED = re.compile(r"^(?:FAILED|ERROR) (\S+(?: \S+)*?)(?: - .*)?$", re.MULTILINE)
# Threads that hang keep no process alive whose tests have ended.
_PROGRAM = (
    "import os, pytest, sys\ncode = pytest.main(sys.argv[1:])\nsys.stdout.flush()\nos._exit(code)"
)
_NOT_INHERITED = ("OBJDB_PURE_PYTHON", "PYTHONDONTWRITEBYTECODE", "PYTHONPYCACHEPREFIX")


class Stopped(Exception):
    """The runner was told to stop."""


class Outcome(NamedTuple):
    """How a run of pytest ended: the first test that failed, None where all passed."""

    failed: str | None
    seconds: float
    hung: bool
    output: str


class Runner:
    """Runs pytest in copies of the checkout, made in *folder*, *jobs* at a time. As a context
    manager, kills what is under way at the end of the block.

    `_lock` covers `_processes`, those under way, `_count` and `_is_stopped`.
    """

    def __init__(self, folder: Path, jobs: int) -> None:
        self._folder = folder
        self._jobs = jobs
        self._threads = ThreadPoolExecutor(jobs)
        self.base = folder / "base"
        self._lock = threading.Lock()
        self._processes: set[subprocess.Popen[bytes]] = set()
        self._is_stopped = False
        self._count = 0

    def copy_checkout(self) -> None:
        """Make the base copy. RuntimeError if Python imports another one in its place."""
        self.base.mkdir()
        for name in _COPIED:
            source = ROOT / name
            if source.is_dir():
                shutil.copytree(source, self.base / name, ignore=_NOT_COPIED)
            else:
                shutil.copy2(source, self.base / name)
        program = "import objdb; print(objdb.__file__)"
        found = subprocess.run(
            [sys.executable, "-c", program], cwd=self._folder, env=_environment(self.base, False),
            capture_output=True, text=True, check=True, timeout=60,
        ).stdout.strip()
        if Path(found).resolve() != (self.base / "objdb" / "__init__.py").resolve():
            raise RuntimeError(f"Python imports {found} instead of the copy in {self.base}")

    def run_mutated(self, mutation: Mutation) -> Outcome:
        """Run the tests of *mutation* in a copy that has it."""
        tree = self._folder / mutation.name
        # With compiled files, which fit all modules but that one.
        shutil.copytree(self.base, tree)
        try:
            module = tree / "objdb" / mutation.path
            mutation.apply(tree / "objdb")
            for compiled in (module.parent / "__pycache__").glob(f"{module.stem}.*"):
                compiled.unlink()
            return self.run(tree, mutation.tests, mutation.is_pure, LONGEST_SECONDS)
        finally:
            shutil.rmtree(tree, ignore_errors=True)

    def run(
        self, tree: Path, tests: Sequence[str], is_pure: bool, longest_seconds: float
    ) -> Outcome:
        """Run *tests* in the copy *tree* up to the first one that fails."""
        begin = time.monotonic()
        with self._lock:
            self._count += 1
            number = self._count
        output = self._folder / f"output{number}"
        command = [
            sys.executable, "-c", _PROGRAM, "-x", "-q", "--tb=no", "-p", "no:randomly",
            "-p", "no:cacheprovider", f"--timeout={LONGEST_TEST_SECONDS}",
            f"--basetemp={self._folder / f'temporary{number}'}", *tests,
        ]
        with output.open("wb") as file:
            code = self._wait(command, tree, is_pure, file, longest_seconds)
        text = output.read_text(errors="replace")
        found = _FAILED.search(text)
        failed = None
        if code != 0:
            failed = found[1] if found else f"exit code {code}" if code is not None else "a hang"
        seconds = time.monotonic() - begin
        hung = failed is not None and seconds > min(longest_seconds, LONGEST_TEST_SECONDS)
        return Outcome(failed, seconds, hung, text)

    def _wait(
        self, command: list[str], tree: Path, is_pure: bool, output: object, seconds: float
    ) -> int | None:
        """Return the exit code of a process; None for one that was killed after *seconds*."""
        with self._lock:
            if self._is_stopped:
                raise Stopped
            process = subprocess.Popen(
                command, cwd=tree, env=_environment(tree, is_pure), stdin=subprocess.DEVNULL,
                stdout=output, stderr=subprocess.STDOUT, start_new_session=True,  # type: ignore
            )
            self._processes.add(process)
        try:
            return process.wait(seconds)
        except subprocess.TimeoutExpired:
            _kill(process)
            process.wait()
            return None
        finally:
            with self._lock:
                self._processes.discard(process)

    def __enter__(self) -> Runner:
        return self

    def __exit__(self, *exception: object) -> None:
        with self._lock:
            self._is_stopped = True
            for process in self._processes:
                _kill(process)
        self._threads.shutdown(cancel_futures=True)

    def run_unmutated(self, mutations: Sequence[Mutation]) -> Outcome | None:
        """Run all tests of *mutations* once, without any; return how the first run ended in which
        one failed, None if all pass."""
        runs = []
        for is_pure in (False, True):
            own = (m.tests for m in mutations if m.is_pure == is_pure)
            tests = sorted({test for some in own for test in some})
            runs += [
                self._threads.submit(self.run, self.base, part, is_pure, LONGEST_BASELINE_SECONDS)
                for part in (tests[i :: self._jobs] for i in range(self._jobs)) if part
            ]
        outcomes = (run.result() for run in as_completed(runs))
        return next((outcome for outcome in outcomes if outcome.failed is not None), None)

    def run_all(self, mutations: Iterable[Mutation]) -> Iterator[tuple[Mutation, Outcome]]:
        """Yield each mutation, and how its tests ended, as soon as that is known."""
        runs: dict[Future[Outcome], Mutation] = {
            self._threads.submit(self.run_mutated, mutation): mutation for mutation in mutations
        }
        for run in as_completed(runs):
            yield runs[run], run.result()


@contextmanager
def temporary_folder() -> Iterator[Path]:
    """Give a folder for copies, and remove it; a killed process may write into it until it has
    ended."""
    folder = Path(tempfile.mkdtemp(prefix="objdb-mutations-"))
    try:
        yield folder
    finally:
        for _ in range(100):
            shutil.rmtree(folder, ignore_errors=True)
            if not folder.exists():
                break
            time.sleep(0.1)


def _environment(tree: Path, is_pure: bool) -> dict[str, str]:
    """Return the environment in which Python, its child processes too, imports from *tree*."""
    found = {name: value for name, value in os.environ.items() if name not in _NOT_INHERITED}
    found["PYTHONPATH"] = str(tree)
    if is_pure:
        found["OBJDB_PURE_PYTHON"] = "1"
    return found


def _kill(process: subprocess.Popen[bytes]) -> None:
    """Kill a process that leads a session, and those that it started."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
