"""The simulation: `python -m tests.simulation [SEED] [--seeds N]`, or `./dev simulate …`."""

from __future__ import annotations

import faulthandler
import gc
import sys
import time
from contextlib import nullcontext
from typing import Any

import click

from tests.simulation.model import BrokenRuleError
from tests.simulation.mutants import MUTANTS
from tests.simulation.world import simulated

_LONGEST_SECONDS = 60.0  # of a seed; it takes a twentieth of a second
_COLLECTED_AFTER = 20  # seeds
MOST_SEEDS = 200  # in which each mutant has to be found
_SHOWN = 40  # events, when a rule is broken


class Failure:
    """What went wrong with a seed, and the events that led to it."""

    def __init__(self, seed: int, error: BaseException, log: list[tuple[float, str]]) -> None:
        self.seed = seed
        self.error = error
        self.log = log

    def __str__(self) -> str:
        if isinstance(self.error, BrokenRuleError):
            return str(self.error)
        return f"an error that nobody expects: {self.error!r}"


def log_text(log: list[tuple[float, str]]) -> str:
    """Return the events as text, a line for each."""
    return "\n".join(f"{moment:12.6f}  {what}" for moment, what in log)


def simulate(seed: int, mutant: str | None = None) -> Failure | None:
    """Simulate a seed, with a mutant or without; return what went wrong, if anything."""
    made: Any = nullcontext() if mutant is None else MUTANTS[mutant].make()
    with made, simulated(seed) as world:
        try:
            world.run()
        except (BrokenRuleError, Exception) as error:
            return Failure(seed, error, world.events.log)
    return None


def find(first: int, count: int, mutant: str | None = None) -> Failure | None:
    """Simulate so many seeds, from the first on; return the first failure."""
    for seed in range(first, first + count):
        faulthandler.dump_traceback_later(_LONGEST_SECONDS, exit=True, file=sys.__stderr__)
        try:
            failure = simulate(seed, mutant)
        finally:
            faulthandler.cancel_dump_traceback_later()
        if failure is not None:
            return failure
        if seed % _COLLECTED_AFTER == 0:
            gc.collect()
    return None


@click.command(epilog="Example: ./dev simulate 1000 --seeds 5000")
@click.argument("seed", type=click.IntRange(min=0), default=0)
@click.option("--seeds", type=click.IntRange(min=1), default=1, help="So many seeds (default 1).")
@click.option("--log", "logs", is_flag=True, help="Print all events of the last seed.")
@click.option("--mutants", is_flag=True, help="Look whether each mutant is found.")
@click.option("--mutant", type=click.Choice(list(MUTANTS)), help="Make this mistake.")
def main(seed: int, seeds: int, logs: bool, mutants: bool, mutant: str | None) -> None:
    """Simulate a server and its clients, with everything that can go wrong between them: seeds from
    SEED (default 0) on. The same seed makes the same events.

    The exit code is 1 if a rule is broken; or, with --mutants, if a mutant is not found.
    """
    if mutants:
        found = [tell_of(name) for name in MUTANTS]
        sys.exit(0 if all(found) else 1)
    begin = time.monotonic()
    failure = find(seed, seeds, mutant)
    if failure is None:
        seconds = time.monotonic() - begin
        if logs:
            with simulated(seed + seeds - 1) as world:
                world.run()
                click.echo(log_text(world.events.log))
        click.echo(
            f"{seeds} seeds from {seed} on: nothing is wrong ({seeds / seconds:.0f} a second)"
        )
        return
    click.echo(log_text(failure.log if logs else failure.log[-_SHOWN:]))
    click.echo(f"seed {failure.seed}: {failure}")
    again = f"./dev simulate {failure.seed}" + (f" --mutant {mutant}" if mutant else "")
    click.echo(f"To repeat it: {again}")
    sys.exit(1)


def tell_of(name: str) -> bool:
    """Look whether a mutant is found, and say so."""
    failure = find(0, MOST_SEEDS, name)
    rule = MUTANTS[name].rule
    if failure is None:
        click.echo(f"{name} ({rule}): NOT FOUND in {MOST_SEEDS} seeds")
        return False
    click.echo(f"{name} ({rule}): seed {failure.seed}, {str(failure)[:160]}")
    return True


if __name__ == "__main__":
    main()
