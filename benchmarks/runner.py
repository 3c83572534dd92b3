"""Runs the workers: first builds the templates, then takes turns.

One round goes through all measurements, and for each of them through all systems; the next round
starts with another system, so that none always runs first. Each measurement gets a fresh process,
and, if it writes, a fresh copy of the database that is on the disk before it starts.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from time import monotonic

from benchmarks.measurements.measurement import Measurement
from benchmarks.measurements.of_files import HUGE_OBJECTS
from benchmarks.results import Results
from benchmarks.sizes import Sizes
from benchmarks.systems import System
from benchmarks.templates import needs, warm
from benchmarks.worker import Task

WORKER_SECONDS = 3600
"""A worker that takes longer is stopped, and its measurement counts as failed."""

Progress = Callable[[str], None]


class WorkerError(Exception):
    """A worker ended without a result; the message is the end of what it said."""


class Runner:
    """One run; `directory` is for the databases, and the caller removes it."""

    def __init__(
        self,
        sizes: Sizes,
        systems: list[System],
        measurements: list[Measurement],
        directory: Path,
        progress: Progress,
        checkout: Path | None = None,
    ) -> None:
        self.sizes = sizes
        self.systems = systems
        self.measurements = measurements
        self.directory = directory
        self.progress = progress
        self.checkout = checkout  # whose objdb is measured, if not this one's
        self.results = Results()
        self._started = monotonic()

    def steps(self) -> int:
        """How many steps `progress` will be told of, if all rounds are done."""
        rounds = range(self.sizes.rounds)
        return len(self._builds()) + sum(len(self.turns(number)) for number in rounds)

    def run(self) -> Results:
        """Build, measure, and return all that was measured."""
        self.build()
        for number in range(self.sizes.rounds):
            if not self._has_time(number):
                break
            for measurement, system in self.turns(number):
                self.progress(f"round {number + 1}: {measurement.name}: {system.title}")
                self.measure(measurement, system)
            self.results.rounds = number + 1
        self.results.seconds = monotonic() - self._started
        return self.results

    def build(self) -> None:
        """Build the databases that measurements begin with."""
        for system, template in self._builds():
            self.progress(f"building {template.partition(':')[0]}: {system.title}")
            try:
                self._build(system, template)
            except WorkerError as failure:
                self.results.fail(f"build {template}", system.name, str(failure))

    def _builds(self) -> list[tuple[System, str]]:
        """Each system's templates, a killed one before the clean one that is made from it."""
        wanted: dict[tuple[str, str], tuple[System, str]] = {}
        for template in sorted({m.template for m in self.measurements if m.template}, reverse=True):
            for system in self.systems:
                takers = [m for m in self.measurements if m.template == template]
                takes_part = any(measurement.takes(system) for measurement in takers)
                if takes_part and needs(template) in system.abilities:
                    wanted[system.name, template] = (system, template)
        return list(wanted.values())

    def turns(self, number: int) -> list[tuple[Measurement, System]]:
        """Return what one round measures, in order."""
        shift = number % len(self.systems)
        order = self.systems[shift:] + self.systems[:shift]
        return [
            (measurement, system)
            for measurement in self.measurements
            if not measurement.rounds or number < measurement.rounds
            for system in order
            if measurement.takes(system)
        ]

    def _has_time(self, rounds_done: int) -> bool:
        """Whether one more round will probably end within the budget."""
        now = monotonic()
        if rounds_done == 0:
            self._first_round = now
            return True
        if not self.sizes.budget_seconds:
            return True
        per_round = (now - self._first_round) / rounds_done
        return now + per_round - self._started < self.sizes.budget_seconds

    def _template(self, system: System, template: str) -> Path:
        return self.directory / system.name / template.replace(":", "-")

    def _build(self, system: System, template: str) -> None:
        kind, _, count = template.partition(":")
        path = self._template(system, template)
        killed = self._template(system, f"killed:{count}")
        if kind == "items" and killed.is_dir():
            shutil.copytree(killed, path)
        else:
            path.mkdir(parents=True)
            numbers = self._work("build", template, system, path, hold=kind == "killed")
            if kind in ("items", "killed"):
                self.results.add(f"build-{count}", system.name, numbers)
        if kind == "items":
            self._work("prepare", template, system, path)
        write_out(path)

    def measure(self, measurement: Measurement, system: System) -> None:
        """Measure once, and note what it gave."""
        source = self._template(system, measurement.template)
        has_template = (
            bool(measurement.template) and needs(measurement.template) in system.abilities
        )
        if has_template and not source.is_dir():
            return
        size = int(measurement.template.partition(":")[2] or 0)
        is_shared = has_template and (not measurement.writes or size > HUGE_OBJECTS)
        path = source if is_shared else self.directory / "scratch" / "database"
        try:
            if not is_shared and has_template:
                shutil.copytree(source, path)
                write_out(path)
            elif not is_shared:
                path.mkdir(parents=True)
            warm(path)
            numbers = self._work("measure", measurement.name, system, path)
            self.results.add(measurement.name, system.name, numbers)
        except WorkerError as failure:
            self.results.fail(measurement.name, system.name, str(failure))
        finally:
            shutil.rmtree(self.directory / "scratch", ignore_errors=True)

    def _work(
        self, kind: str, name: str, system: System, path: Path, hold: bool = False
    ) -> dict[str, float]:
        task = Task(kind, name, system.name, str(path), self.sizes.to_json(), hold)
        return run_worker(task, self.checkout)


def run_worker(task: Task, checkout: Path | None = None) -> dict[str, float]:
    """Start a worker, wait for its result; one that holds is killed when it has said it. It
    measures the objdb of *checkout*, if one is given."""
    program = ["-m", "benchmarks.worker"]
    if checkout is not None:
        # The benchmarks are this one's: only what they import is the other's.
        find = f"import sys, benchmarks; sys.path.insert(0, {str(checkout.resolve())!r})"
        program = ["-c", f"{find}; from benchmarks.worker import main; main()"]
    process = subprocess.Popen(
        [sys.executable, *program, task.to_json()],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parent.parent,
    )
    assert process.stdout is not None
    if task.hold:
        line = process.stdout.readline()
        process.kill()
        _, complaint = process.communicate()
    else:
        try:
            line, complaint = process.communicate(timeout=WORKER_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            raise WorkerError(f"took longer than {WORKER_SECONDS} seconds") from None
        if process.returncode:
            line = ""
    if not line.strip():
        raise WorkerError((complaint.strip().splitlines() or ["no result"])[-1])
    numbers: dict[str, float] = json.loads(line.strip().splitlines()[-1])
    return numbers


def write_out(path: Path) -> None:
    """Wait until the files are on the disk, so that no later measurement waits for them."""
    for file in filter(Path.is_file, path.rglob("*")):
        descriptor = os.open(file, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)
