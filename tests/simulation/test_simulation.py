"""The simulation: it holds, it finds what it is for, and a seed always makes the same events."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from tests.simulation import __main__ as command
from tests.simulation.mutants import MUTANTS

ROOT = Path(__file__).parents[2]
# Where each mutant is looked for first: that is quick, as long as the code makes the same events.
FIRST = {
    "late-load": 67, "unseen-load": 11, "early-load": 10, "ping": 25, "told-late": 2,
    "replies-first": 18, "stored-late": 29, "deleted": 1, "meanwhile": 123, "found-last": 10,
    "backup": 11, "oids": 19, "turns": 4,
}


def test_nothing_is_wrong() -> None:
    """Some seeds break no rule, and all work gets done."""
    first = int.from_bytes(os.urandom(4), "big")
    failure = command.find(first, 20)
    assert failure is None, f"seed {failure.seed}: {failure}"


@pytest.mark.parametrize("name", MUTANTS)
def test_mutants(name: str) -> None:
    """Each mistake is found within 200 seeds, by a rule."""
    failure = command.find(FIRST.get(name, 0), command.MOST_SEEDS, name)
    assert failure is not None
    assert isinstance(failure.error, command.BrokenRuleError)


def test_the_same_seed_makes_the_same_events() -> None:
    """Two processes whose hashes differ write the same log, byte for byte."""
    logs = []
    for hash_seed in ("1", "2"):
        script = (
            "from tests.simulation.__main__ import log_text\n"
            "from tests.simulation.world import simulated\n"
            "for seed in range(4):\n"
            "    with simulated(seed) as world:\n"
            "        world.run()\n"
            "        print(log_text(world.events.log))\n"
        )
        done = subprocess.run(
            [sys.executable, "-c", script], cwd=ROOT, check=True, capture_output=True,
            env={**os.environ, "PYTHONHASHSEED": hash_seed}, timeout=100,
        )
        logs.append(done.stdout)
    assert logs[0].count(b"\n") > 1000
    assert logs[0] == logs[1]


def test_the_command_says_how_to_repeat_it() -> None:
    """A broken rule is told with the last events, the seed, and a command; the exit code is 1."""
    result = CliRunner().invoke(command.main, ["0", "--seeds", "5", "--mutant", "last-first"])
    assert result.exit_code == 1
    *events, told, again = result.stdout.splitlines()
    assert len(events) == 40 and "the database is told first" in told
    assert again == "To repeat it: ./dev simulate 0 --mutant last-first"
    repeated = CliRunner().invoke(command.main, again.split()[5:])
    assert repeated.stdout == result.stdout


def test_the_command_when_nothing_is_wrong() -> None:
    """Seeds that break no rule are told in a line; the exit code is 0."""
    result = CliRunner().invoke(command.main, ["--seeds", "3"])
    assert result.exit_code == 0
    assert result.stdout.startswith("3 seeds from 0 on: nothing is wrong (")


def test_the_documents_name_the_mutants() -> None:
    """Each mutant is described where the simulation is."""
    text = (ROOT / "docs/architecture/sharing.md").read_text()
    named = {name for line in text.splitlines() if line.startswith("| ")
             for name in line.split(" | ")[0].removeprefix("| ").split(", ")}
    assert named >= set(MUTANTS)
