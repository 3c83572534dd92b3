"""Whether the tests notice mistakes: `python -m tests.mutations [NAME ...]`, or `./dev mutations`.
"""

from __future__ import annotations

import signal
import sys
import time

import click

from tests.mutations import MUTATIONS
from tests.mutations.mutation import Mutation
from tests.mutations.running import Outcome, Runner, temporary_folder


@click.command(epilog="Example: ./dev mutations savepoint-journal undo-part")
@click.argument("names", nargs=-1, metavar="[NAME ...]")
@click.option("--list", "lists", is_flag=True, help="List the mutations, and run nothing.")
@click.option(
    "--jobs", type=click.IntRange(min=1), default=2, help="So many at a time (default 2)."
)
def main(names: tuple[str, ...], lists: bool, jobs: int) -> None:
    """Make mistakes in a copy of the checkout, one at a time, and see whether the tests that each
    names notice it: all mistakes, or those of these NAMEs.

    The exit code is 1 if a mistake survived its tests, and 2 if tests fail without any.
    """
    mutations = chosen(names)
    if lists:
        for mutation in mutations:
            click.echo(described(mutation))
        return
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    begin = time.monotonic()
    with (
        temporary_folder() as folder,
        Runner(folder, jobs) as runner,
    ):
        survived = run(runner, mutations)
    seconds = time.monotonic() - begin
    caught = len(mutations) - len(survived)
    click.echo(f"{caught} of {len(mutations)} mutations were caught, in {seconds:.0f} s")
    if survived:
        click.echo(f"To repeat the rest: ./dev mutations {' '.join(survived)}")
        sys.exit(1)


def chosen(names: tuple[str, ...]) -> list[Mutation]:
    """Return the mutations of these names; all if there are none."""
    known = {mutation.name: mutation for mutation in MUTATIONS}
    unknown = [name for name in names if name not in known]
    if unknown:
        raise click.BadParameter(
            f"there is no mutation {', '.join(unknown)}; --list tells which there are",
            param_hint="NAME",
        )
    return [known[name] for name in dict.fromkeys(names)] if names else list(MUTATIONS)


def described(mutation: Mutation) -> str:
    """Return what --list says of a mutation."""
    without = ", without the accelerator" if mutation.is_pure else ""
    return (
        f"{mutation.name}  (objdb/{mutation.path}{without})\n    {mutation.promise}\n"
        + "\n".join(f"    {test}" for test in mutation.tests)
    )


def run(runner: Runner, mutations: list[Mutation]) -> list[str]:
    """Run the tests of *mutations*, tell of each what came of it, and return the names of those
    that survived. Exits with 2 if tests fail without any."""
    runner.copy_checkout()
    click.echo("first the tests without a mutation …", err=True)
    failure = runner.run_unmutated(mutations)
    if failure is not None:
        click.echo(failure.output)
        click.echo(f"without a mutation there fails {failure.failed}: nothing can be said")
        sys.exit(2)
    survived = []
    for mutation, outcome in runner.run_all(mutations):
        click.echo(told(mutation, outcome))
        if outcome.failed is None:
            survived.append(mutation.name)
    return survived


def told(mutation: Mutation, outcome: Outcome) -> str:
    """Return the line about a mutation whose tests have run."""
    if outcome.failed is None:
        return f"{mutation.name}: SURVIVED {' '.join(mutation.tests)} in {outcome.seconds:.1f} s"
    hung = ", by a hang" if outcome.hung else ""
    return f"{mutation.name}: caught by {outcome.failed} in {outcome.seconds:.1f} s{hung}"


if __name__ == "__main__":
    main()
