"""The command line: `python -m benchmarks`."""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import click
from rich.console import Console
from rich.markdown import Markdown
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from benchmarks import machine, plot
from benchmarks.against import Against
from benchmarks.measurements.catalogue import catalogue
from benchmarks.measurements.measurement import Measurement
from benchmarks.report import Report
from benchmarks.results import Results
from benchmarks.runner import Runner
from benchmarks.sizes import DEFAULT, FULL, QUICK, SHARING, Sizes
from benchmarks.systems import SERVED, STORAGES, SYSTEMS, System
from benchmarks.systems.served import OF_ALL

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "RESULTS.md"
STORAGE_RESULTS = ROOT / "benchmarks" / "RESULTS-storages.md"
SHARING_RESULTS = ROOT / "benchmarks" / "RESULTS-sharing.md"
# What is measured of storages: these, and what else they take part in.
OF_STORAGES = (
    "bulk-commit", "batch-commit", "small-commit", "threads-commit", "processes-commit",
    "load-in-order", "load-at-random", "open",
)
OF_SHARING = (*sorted(OF_ALL - {"bulk-commit"}), "load-above-round-trip", "reconnection")
PLOT = ROOT / "docs" / "growth.svg"
IN_MEMORY = ("tmpfs", "ramfs")

EPILOG = """\b
Examples:
  python -m benchmarks                      everything, up to 15 minutes
  python -m benchmarks --quick              small sizes, up to 2 minutes
  python -m benchmarks --full               also files of 10,000,000 objects
  python -m benchmarks --storages           objdb's storages, and what they are built on
  python -m benchmarks --sharing            objdb's server and client beside ZEO's and Durus's
  python -m benchmarks --against ../before  objdb beside that of another checkout
  python -m benchmarks --only load-in-order --only tree --systems objdb --systems zodb

A whole run writes benchmarks/RESULTS.md, benchmarks/results.json and docs/growth.svg. A quick run
and a run of a part print their results, and write them only where --output says."""


@click.command(epilog=EPILOG)
@click.option("--quick", is_flag=True, help="Smaller sizes, one round.")
@click.option("--full", is_flag=True, help="Also measure files of 10,000,000 objects.")
@click.option(
    "--storages", is_flag=True,
    help="Measure objdb's storages and layers beside what they are built on, and RelStorage.",
)
@click.option(
    "--sharing", is_flag=True,
    help="Measure objdb's server and client beside those of ZEO and Durus.",
)
@click.option("--rounds", type=click.IntRange(1), help="Repeat each measurement so many times.")
@click.option(
    "--only",
    multiple=True,
    metavar="NAME",
    help="A measurement, or the beginning of its name; may be repeated.",
)
@click.option(
    "--systems",
    multiple=True,
    type=click.Choice(list(SYSTEMS)),
    help="A system to measure; may be repeated.",
)
@click.option(
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Write the report here; the numbers and the plot go beside it.",
)
@click.option(
    "--against", metavar="CHECKOUT",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Measure objdb beside the objdb of another checkout, in pairs, and print the ratios.",
)
@click.option(
    "--directory",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Where the databases are built, instead of the system's temporary directory.",
)
def main(
    quick: bool,
    full: bool,
    storages: bool,
    sharing: bool,
    rounds: int | None,
    only: tuple[str, ...],
    systems: tuple[str, ...],
    output: Path | None,
    against: Path | None,
    directory: Path | None,
) -> None:
    """Measure objdb beside ZODB, Durus, LMDB, Berkeley DB, sqlite3 and bare writes."""
    if quick and full:
        raise click.UsageError("--quick and --full exclude each other")
    sizes = QUICK if quick else FULL if full else SHARING if sharing else DEFAULT
    kind = "storages" if storages else "sharing" if sharing else "usual"
    if rounds:
        sizes = replace(sizes, rounds=rounds)
    usual = [name for name, system in SYSTEMS.items() if system.takes_part_in is None]
    if against is not None:
        usual = ["objdb"]
    names = systems or {"storages": STORAGES, "sharing": SERVED, "usual": usual}[kind]
    wanted = [SYSTEMS[name] for name in SYSTEMS if name in names]
    is_whole = not (only or systems)
    if not only:
        only = {"storages": OF_STORAGES, "sharing": OF_SHARING, "usual": ()}[kind]
    present = [system for system in wanted if system.is_available()]
    if not present:
        raise click.UsageError("none of these systems is installed")
    measurements = _measurements(sizes, only, present)
    if against is not None:
        with _place(directory) as place, _progress() as (bar, progress):
            pairs = Against(sizes, present, measurements, place, progress, against)
            bar.update(bar.task_ids[0], total=pairs.steps())
            pairs.run()
        click.echo(pairs.markdown())
        return
    results, facts = _run(sizes, present, measurements, directory)
    report = Report(
        results,
        sizes,
        present,
        [system for system in wanted if system not in present],
        measurements,
        facts,
        machine.versions(present),
        " ".join(["python -m benchmarks", *sys.argv[1:]]),
        is_whole=is_whole,
        kind=kind,
    )
    if output or (report.is_whole and not quick):
        usual_file = {
            "storages": STORAGE_RESULTS, "sharing": SHARING_RESULTS, "usual": RESULTS
        }[kind]
        _write(report, output or usual_file, PLOT if output is None else None)
    else:
        Console().print(Markdown(report.markdown()))


def _measurements(sizes: Sizes, only: tuple[str, ...], systems: list[System]) -> list[Measurement]:
    everything = catalogue(sizes)
    unknown = [name for name in only if not any(known.startswith(name) for known in everything)]
    if unknown:
        names = ", ".join(everything)
        raise click.UsageError(f"no measurement is called {unknown[0]!r}; there are: {names}")
    return [
        measurement
        for name, measurement in everything.items()
        if (not only or name.startswith(only))
        and not (only == OF_STORAGES and name == "open-after-kill")
        and any(measurement.takes(system) for system in systems)
    ]


def _run(
    sizes: Sizes, systems: list[System], measurements: list[Measurement], directory: Path | None
) -> tuple[Results, dict[str, str]]:
    """Measure, with a progress bar, in a temporary directory on a disk."""
    with _place(directory) as place, _progress() as (bar, progress):
        runner = Runner(sizes, systems, measurements, place, progress)
        bar.update(bar.task_ids[0], total=runner.steps())
        results = runner.run()
        return results, machine.machine(place)


@contextmanager
def _place(directory: Path | None) -> Iterator[Path]:
    """Give a temporary directory on a disk."""
    place = Path(tempfile.mkdtemp(prefix="objdb-benchmarks-", dir=directory))
    try:
        kind = machine.file_system(place)
        if kind in IN_MEMORY:
            raise click.UsageError(
                f"the temporary directory is on {kind}, where a sync costs nothing: "
                "say --directory with one on a disk"
            )
        yield place
    finally:
        shutil.rmtree(place, ignore_errors=True)


@contextmanager
def _progress() -> Iterator[tuple[Progress, Callable[[str], None]]]:
    """Give a progress bar with one task, and what tells it of a step."""
    columns = (
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    )
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("starting")
        yield bar, lambda description: bar.update(task, description=description, advance=1)


def _write(report: Report, output: Path, plot_file: Path | None) -> None:
    """Write the report, and beside it the numbers and the plot."""
    numbers = {
        "command": report.command,
        "machine": report.machine,
        "versions": report.versions,
        **report.results.to_json(),
    }
    output.write_text(report.markdown(), encoding="utf-8")
    numbers_file = output.with_name(output.stem.replace("RESULTS", "results") + ".json")
    numbers_file.write_text(json.dumps(numbers, indent=1, ensure_ascii=False), encoding="utf-8")
    written = [output, numbers_file]
    if any(measurement.name.startswith("growth-") for measurement in report.measurements):
        plot_file = plot_file or output.with_name("growth.svg")
        plot.draw(report.results, report.sizes, report.systems, plot_file)
        written.append(plot_file)
    click.echo("wrote " + ", ".join(os.path.relpath(file) for file in written))


if __name__ == "__main__":
    main()
