"""What a measurement is: a function, and what it needs and gives."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from benchmarks.sizes import Sizes
from benchmarks.systems import System

Function = Callable[[System, Path, Sizes], dict[str, float]]


@dataclass(frozen=True)
class Quantity:
    """A number that a measurement gives."""

    key: str
    title: str
    unit: str
    more_is_better: bool = False


@dataclass(frozen=True)
class Measurement:
    """A function, the database it starts from, and who takes part.

    ability    a system must have it (see `systems/base.py`)
    template   what the database holds (see `templates.py`)
    writes     whether it changes the database, and so needs a copy of its own
    rounds     at most this many, because it takes long; 0: as many as the others
    only       names of systems, if not all with the ability take part
    """

    name: str
    function: Function
    ability: str
    template: str
    quantities: tuple[Quantity, ...]
    writes: bool = False
    rounds: int = 0
    only: tuple[str, ...] = ()

    def takes(self, system: System) -> bool:
        if system.takes_part_in is not None:
            return self.name in system.takes_part_in
        return self.ability in system.abilities and (not self.only or system.name in self.only)
