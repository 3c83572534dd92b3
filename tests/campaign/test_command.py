"""The campaign's command: what it says, and its exit codes."""

from __future__ import annotations

import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from tests.campaign import __main__ as command

ROOT = Path(__file__).parents[2]


def run(*arguments: str) -> Result:
    """Run the command in this process."""
    return CliRunner().invoke(command.main, list(arguments))


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """Two campaigns of no time, and a list of (name, seed) of their runs. The one called sweeps
    fails with seeds that end in 7."""
    done: list[tuple[str, int]] = []

    def races(directory: Path, seed: int) -> None:
        assert directory.is_dir()
        done.append(("races", seed))

    def sweeps(directory: Path, seed: int) -> None:
        done.append(("sweeps", seed))
        assert seed % 10 != 7, f"seed {seed} is a bad one"

    monkeypatch.setattr(command, "CAMPAIGNS", [races, sweeps])
    return done


def test_success(calls: list[tuple[str, int]]) -> None:
    """What holds is told in a line, with how often and the last seed; the exit code is 0."""
    result = run("0", "--seed", "11")
    assert result.exit_code == 0
    assert result.stdout.strip() == "held for 0 minutes (races: 1); the last seed was 11"
    assert calls == [("races", 11)]


def test_failure_and_how_to_repeat_it(calls: list[tuple[str, int]]) -> None:
    """The first failure ends it with exit code 1 and a command, which does nothing but fail in
    the same way."""
    result = run("1", "--seed", "10")
    assert result.exit_code == 1
    assert calls == [(("races", "sweeps")[i % 2], 10 + i) for i in range(8)]
    assert "seed 17 is a bad one" in result.output
    assert "held" not in result.output
    _, told, again = result.stdout.partition("To repeat it: ./dev crash ")
    assert told
    calls.clear()
    repeated = run(*again.split())
    assert repeated.exit_code == 1
    assert calls == [("sweeps", 17)]
    assert "seed 17 is a bad one" in repeated.output
    assert again in repeated.output


def test_only(calls: list[tuple[str, int]]) -> None:
    """--only runs the campaigns it names and no other."""
    assert run("1", "--seed", "2", "--only", "sweeps").exit_code == 1
    assert calls == [("sweeps", seed) for seed in range(2, 8)]


def test_a_seed_of_its_own(calls: list[tuple[str, int]], monkeypatch: pytest.MonkeyPatch) -> None:
    """Without --seed it begins with a random one."""
    monkeypatch.setattr(random, "randrange", lambda *limits: 4711)
    assert "the last seed was 4711" in run("0").stdout


def test_help() -> None:
    """--help names the arguments and the campaigns."""
    result = run("--help")
    assert result.exit_code == 0
    for word in ("MINUTES", "--seed", "--only", *(c.__name__ for c in command.CAMPAIGNS)):
        assert word in result.stdout


@pytest.mark.parametrize(
    "arguments", [["--all"], ["--only", "floods"], ["--seed", "x"], ["soon"], ["--", "-1"]]
)
def test_bad_arguments(arguments: list[str], calls: list[Any]) -> None:
    """A mistake in the arguments is told with exit code 2, and nothing is run."""
    result = run(*arguments)
    assert result.exit_code == 2
    assert "Error: " in result.output
    assert not calls


SHORT = [c.__name__ for c in command.CAMPAIGNS if c is not command.leaks]


@pytest.mark.parametrize("name", SHORT)
def test_each_campaign(name: str) -> None:
    """A part of each campaign holds, in a process of its own (but leaks, which take minutes, and
    have shorter tests)."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.campaign", "0", "--briefly", "--only", name],
        cwd=ROOT, capture_output=True, text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.startswith(f"held for 0 minutes ({name}: 1); ")


def test_what_does_not_end() -> None:
    """A campaign that hangs is ended with exit code 1, all stacks and how to repeat it."""
    script = (
        "import threading\n"
        "from tests.campaign.__main__ import watchdog\n"
        "def hang():\n"
        "    threading.Event().wait()\n"
        "with watchdog(0.1, 'again'):\n"
        "    hang()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 1
    assert "in hang" in done.stderr
    assert "did not end in 0.1 seconds. again" in done.stdout
