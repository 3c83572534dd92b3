"""The fuzzer: `python -m tests.fuzzing [MINUTES]`, or `./dev fuzz [MINUTES]`.

atheris makes up inputs that reach other lines than those before; each target (see `targets`) runs
in a process of its own. An input that breaks a rule is kept in the folder, and `--input FILE` runs
it again.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import click

TARGETS = ("messages", "server", "client")
_LONGEST_BYTES = 2000


def target(name: str) -> Callable[[bytes], None]:
    """Return the function of a target, under the audit hook."""
    from tests.fuzzing import targets

    function = targets.Server() if name == "server" else getattr(targets, name)
    audit = targets.Audit()
    for data in targets.corpus():  # imports what it imports
        function(data)

    def run(data: bytes) -> None:
        audit.is_on = True
        try:
            function(data)
        finally:
            audit.is_on = False

    return run


def fuzz(name: str, folder: Path, seconds: int) -> None:
    """Fuzz a target for so many seconds; ends the process."""
    import logging

    import atheris

    logging.disable(logging.CRITICAL)
    with atheris.instrument_imports(include=["objdb_zeo", "msgpack"]):
        run = target(name)
    from tests.fuzzing import targets

    inputs = folder / name
    inputs.mkdir(exist_ok=True)
    for number, data in enumerate(targets.corpus()):
        (inputs / f"given-{number}").write_bytes(data)
    atheris.Setup(
        [
            sys.argv[0], f"-max_total_time={seconds}", f"-max_len={_LONGEST_BYTES}",
            f"-artifact_prefix={folder}/{name}-", "-timeout=20", "-rss_limit_mb=2048",
            "-verbosity=1", str(inputs),
        ],
        run,
    )
    atheris.Fuzz()


@click.command()
@click.argument("minutes", type=float, default=3.0)
@click.option(
    "--target", "names", type=click.Choice(TARGETS), multiple=True, help="Which one; default: all."
)
@click.option(
    "--folder", type=click.Path(file_okay=False, path_type=Path),
    help="Where inputs are kept, and gone on with; default: a temporary one.",
)
@click.option("--input", "path", type=click.Path(exists=True, path_type=Path), help="Run this one.")
@click.option("--child", is_flag=True, hidden=True)
def main(
    minutes: float, names: tuple[str, ...], folder: Path | None, path: Path | None, child: bool
) -> None:
    """Fuzz the messages and both ends of a connection, for MINUTES altogether."""
    names = names or TARGETS
    if path is not None:
        for name in names:
            target(name)(path.read_bytes())
        return
    folder = folder or Path(tempfile.mkdtemp(prefix="objdb-fuzz-"))
    folder.mkdir(exist_ok=True)
    seconds = max(1, int(minutes * 60 / len(names)))
    if child:
        fuzz(names[0], folder, seconds)
    failed = False
    for name in names:
        click.echo(f"{name}: {seconds} seconds, inputs in {folder}")
        done = subprocess.run([
            sys.executable, "-m", "tests.fuzzing", str(seconds / 60), "--target", name, "--folder",
            str(folder), "--child",
        ])
        failed = failed or bool(done.returncode)
    sys.exit(int(failed))


if __name__ == "__main__":
    main()
