"""The list of mutations fits the code, and the command says what came of each."""

from __future__ import annotations

import ast
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from objdb.testing.conformance import SCRIPTS
from tests.mutations import MUTATIONS, running
from tests.mutations import __main__ as command
from tests.mutations.mutation import Mutation
from tests.mutations.running import ROOT, Outcome, Runner

ONE = Mutation("one", "ids.py", "old", "new", "It holds.", ("tests/test_one.py",))
TWO = Mutation("two", "ids.py", "old", "new", "It holds.", ("tests/test_two.py",), is_pure=True)

# Tests that storages inherit.
SUITE = "".join(path.read_text() for path in (ROOT / "objdb" / "testing").glob("*.py"))


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.name)
def test_a_mutation_fits_the_code(mutation: Mutation) -> None:
    """Its old text is in the module once, its new text makes another module that is Python, and
    the tests that it names exist."""
    text = (ROOT / "objdb" / mutation.path).read_text()
    mutated = mutation.applied(text)
    assert ast.dump(ast.parse(mutated)) != ast.dump(ast.parse(text))
    assert mutation.promise.endswith(".")
    assert mutation.tests
    for test in mutation.tests:
        path, *names = test.split("::")
        source = (ROOT / path).read_text() + SUITE
        for name in names:
            name, _, script = name.removesuffix("]").partition("[")
            assert f"def {name}(" in source or f"class {name}(" in source, test
            assert name != "test_script" or script in {each.id for each in SCRIPTS}


def test_names() -> None:
    """There are many mutations, each with a name and a mistake of its own."""
    assert len(MUTATIONS) >= 40
    assert len({mutation.name for mutation in MUTATIONS}) == len(MUTATIONS)
    assert len({(mutation.path, mutation.old, mutation.new) for mutation in MUTATIONS}) == len(
        MUTATIONS
    )


def run(*arguments: str) -> Result:
    """Run the command in this process."""
    return CliRunner().invoke(command.main, list(arguments))


@pytest.fixture
def outcomes(monkeypatch: pytest.MonkeyPatch) -> dict[str, Outcome]:
    """How the tests of two mutations end, by name, and those without one, as ""; to be changed."""
    found = {"": Outcome(None, 1.0, False, ""), "one": Outcome("test_a", 2.0, False, "")}
    found["two"] = Outcome("test_b", 3.0, True, "")
    monkeypatch.setattr(command, "MUTATIONS", (ONE, TWO))
    monkeypatch.setattr(Runner, "copy_checkout", lambda runner: None)
    monkeypatch.setattr(Runner, "run", lambda runner, *arguments: found[""])
    monkeypatch.setattr(Runner, "run_mutated", lambda runner, mutation: found[mutation.name])
    return found


def test_all_are_caught(outcomes: dict[str, Outcome]) -> None:
    """A line for each mutation says what caught it, and in what time; the exit code is 0."""
    result = run()
    assert result.exit_code == 0
    *lines, last = result.stdout.splitlines()
    assert sorted(lines) == [
        "one: caught by test_a in 2.0 s", "two: caught by test_b in 3.0 s, by a hang"
    ]
    assert last.startswith("2 of 2 mutations were caught, in ")


def test_one_survives(outcomes: dict[str, Outcome]) -> None:
    """A mutation that its tests do not notice is told, and the exit code is 1."""
    outcomes["two"] = outcomes[""]
    result = run()
    assert result.exit_code == 1
    assert "two: SURVIVED tests/test_two.py in 1.0 s" in result.stdout
    assert "1 of 2 mutations were caught" in result.stdout
    assert result.stdout.endswith("./dev mutations two\n")


def test_tests_that_fail_anyway(outcomes: dict[str, Outcome]) -> None:
    """Tests that fail without a mutation say nothing about one: the exit code is 2."""
    outcomes[""] = Outcome("test_a", 1.0, False, "FAILED test_a")
    result = run()
    assert result.exit_code == 2
    assert "without a mutation there fails test_a" in result.stdout
    assert "caught" not in result.stdout


def test_some_by_name(outcomes: dict[str, Outcome]) -> None:
    """Only those that are named are run; a name that there is not is a mistake."""
    assert run("two", "two").stdout.startswith("two: caught")
    result = run("two", "three")
    assert result.exit_code == 2
    assert "there is no mutation three" in result.output


def test_the_list(outcomes: dict[str, Outcome]) -> None:
    """--list says what each breaks, and which tests it has, and runs nothing."""
    outcomes.clear()
    result = run("--list")
    assert result.exit_code == 0
    assert result.stdout.splitlines() == [
        "one  (objdb/ids.py)", "    It holds.", "    tests/test_one.py",
        "two  (objdb/ids.py, without the accelerator)", "    It holds.", "    tests/test_two.py",
    ]


@pytest.fixture
def runner(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Runner]:
    """A runner over a checkout of one module and one test of it."""
    checkout = tmp_path / "checkout"
    (checkout / "objdb").mkdir(parents=True)
    (checkout / "objdb" / "__init__.py").write_text("")
    (checkout / "objdb" / "ids.py").write_text("def wait(): pass\nNUMBER = 1\n")
    (checkout / "tests").mkdir()
    (checkout / "tests" / "test_one.py").write_text(
        "import objdb.ids, subprocess, sys\n"
        "SCRIPT = 'import objdb.ids, sys; sys.exit(objdb.ids.NUMBER)'\n"
        "def test_number():\n"
        "    objdb.ids.wait()\n"
        "    assert subprocess.run([sys.executable, '-c', SCRIPT]).returncode == 1\n"
    )
    monkeypatch.setattr(running, "ROOT", checkout)
    monkeypatch.setattr(running, "_COPIED", ("objdb", "tests"))
    (tmp_path / "folder").mkdir()
    with Runner(tmp_path / "folder", 1) as runner:
        yield runner


def test_the_copy_is_what_runs(runner: Runner, tmp_path: Path) -> None:
    """The mutated copy is imported, by processes that a test starts too; the checkout stays as it
    is, and no copy is left but the base."""
    runner.copy_checkout()
    before = (running.ROOT / "objdb" / "ids.py").read_text()
    mutation = ONE._replace(old="NUMBER = 1", new="NUMBER = 2")
    assert runner.run_unmutated([mutation]) is None
    outcome = runner.run_mutated(mutation)
    assert outcome.failed == "tests/test_one.py::test_number", outcome.output
    assert not outcome.hung
    assert (running.ROOT / "objdb" / "ids.py").read_text() == before
    assert [path.name for path in (tmp_path / "folder").glob("*/objdb")] == ["objdb"]


def test_a_hang_counts_as_caught(runner: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests that do not end are killed, and told as a hang."""
    monkeypatch.setattr(running, "LONGEST_SECONDS", 0.5)
    runner.copy_checkout()
    hang = "import time\nwait = lambda: time.sleep(99)"
    mutation = ONE._replace(old="def wait(): pass", new=hang)
    outcome = runner.run_mutated(mutation)
    assert (outcome.failed, outcome.hung) == ("a hang", True)


def test_interrupted(tmp_path: Path) -> None:
    """Who ends it finds no process and no file left."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.mutations"], cwd=ROOT, stderr=subprocess.PIPE,
        env={**os.environ, "TMPDIR": str(tmp_path)},
    )
    with process:
        assert b"first" in process.stderr.readline()
        assert list(tmp_path.iterdir())
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 1
    assert list(tmp_path.iterdir()) == []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            assert os.fsencode(tmp_path) not in path.read_bytes()
        except OSError:  # it has just ended
            continue
