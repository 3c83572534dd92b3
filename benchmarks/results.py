"""What was measured: lists of numbers by measurement, system and quantity."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from statistics import median


@dataclass(frozen=True)
class Summary:
    """The values of one quantity over all rounds."""

    values: tuple[float, ...]

    @property
    def median(self) -> float:
        return median(self.values)

    @property
    def least(self) -> float:
        return min(self.values)

    @property
    def most(self) -> float:
        return max(self.values)


@dataclass
class Results:
    """Grows during a run; read by the report."""

    rounds: int = 0
    seconds: float = 0.0
    failures: list[tuple[str, str, str]] = field(default_factory=list)
    _values: dict[tuple[str, str, str], list[float]] = field(
        default_factory=lambda: defaultdict(list)
    )

    def add(self, measurement: str, system: str, numbers: dict[str, float]) -> None:
        for quantity, value in numbers.items():
            self._values[measurement, system, quantity].append(value)

    def fail(self, measurement: str, system: str, reason: str) -> None:
        self.failures.append((measurement, system, reason))

    def summary(self, measurement: str, system: str, quantity: str) -> Summary | None:
        """The values of a quantity, or None if it was not measured."""
        values = self._values.get((measurement, system, quantity))
        return Summary(tuple(values)) if values else None

    def median(self, measurement: str, system: str, quantity: str) -> float | None:
        summary = self.summary(measurement, system, quantity)
        return summary.median if summary else None

    def to_json(self) -> dict[str, object]:
        """Everything, the single values included."""
        tree: dict[str, dict[str, dict[str, object]]] = {}
        for (measurement, system, quantity), values in sorted(self._values.items()):
            summary = Summary(tuple(values))
            tree.setdefault(measurement, {}).setdefault(system, {})[quantity] = {
                "median": summary.median,
                "min": summary.least,
                "max": summary.most,
                "values": values,
            }
        failures = [
            {"measurement": measurement, "system": system, "reason": reason}
            for measurement, system, reason in self.failures
        ]
        return {
            "rounds": self.rounds,
            "seconds": round(self.seconds, 1),
            "measurements": tree,
            "failures": failures,
        }
