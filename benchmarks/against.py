"""objdb beside objdb: this checkout and another one, in pairs, in one run.

Each measurement is taken with the one and the other right after each other, and the next round
begins with the other one. What they differ by is the median of the pairs' ratios: a machine that
gets slower for a while slows both.
"""

from __future__ import annotations

from pathlib import Path
from statistics import median

from benchmarks.measurements.measurement import Measurement, Quantity
from benchmarks.runner import Progress, Runner
from benchmarks.sizes import Sizes
from benchmarks.systems import System

ALLOWANCE = 0.05
"""What is taken for noise."""


class Against:
    """One run of both; *directory* is for the databases, and the caller removes it."""

    def __init__(
        self, sizes: Sizes, systems: list[System], measurements: list[Measurement],
        directory: Path, progress: Progress, checkout: Path,
    ) -> None:
        self._measurements = measurements
        self._rounds = sizes.rounds
        self._checkout = checkout
        folders = directory / "here", directory / "there"
        for folder in folders:
            folder.mkdir()
        self.here = Runner(sizes, systems, measurements, folders[0], progress)
        self.there = Runner(sizes, systems, measurements, folders[1], progress, checkout)

    def steps(self) -> int:
        """How many steps the progress will be told of."""
        return self.here.steps() + self.there.steps()

    def run(self) -> None:
        """Build and measure."""
        self.here.build()
        self.there.build()
        for number in range(self._rounds):
            pair = (self.here, self.there) if number % 2 == 0 else (self.there, self.here)
            for measurement, system in self.here.turns(number):
                for runner in pair:
                    which = "here" if runner is self.here else "there"
                    runner.progress(
                        f"round {number + 1}: {measurement.name}: {system.title}, {which}"
                    )
                    runner.measure(measurement, system)

    def markdown(self) -> str:
        """Return a table of all quantities: both medians, and the median ratio of the pairs, which
        is above 1 where this checkout is slower."""
        lines = [
            f"Here: this checkout. There: {self._checkout}. More than {1 + ALLOWANCE:.2f} of there "
            "is marked.", "", "| measurement | system | here | there | ratio | pairs |",
            "|---|---|---|---|---|---|",
        ]
        for measurement in self._measurements:
            for system in self.here.systems:
                for quantity in measurement.quantities:
                    lines += self._row(measurement, system, quantity)
        failures = self.here.results.failures + self.there.results.failures
        return "\n".join(lines + [f"\nFailed: {': '.join(failure)}" for failure in failures])

    def _row(self, measurement: Measurement, system: System, quantity: Quantity) -> list[str]:
        found = [
            runner.results.summary(measurement.name, system.name, quantity.key)
            for runner in (self.here, self.there)
        ]
        if found[0] is None or found[1] is None:
            return []
        here, there = found[0].values, found[1].values
        ratios = [
            (b / a if quantity.more_is_better else a / b)
            for a, b in zip(here, there, strict=False) if a and b
        ]
        if not ratios:
            return []
        ratio = median(ratios)
        mark = " **slower**" if ratio > 1 + ALLOWANCE else ""
        return [
            f"| {measurement.name}: {quantity.title} | {system.name} | {median(here):,.4g} "
            f"{quantity.unit} | {median(there):,.4g} | {ratio:.3f}{mark} | {len(ratios)} |"
        ]
