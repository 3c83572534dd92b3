"""`objdb pack`, the right way and the wrong way."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner, Result

import objdb
from objdb.storage.packing import PackResult
from objdb.tools.main import main
from objdb.tools.packing import _told
from tests.models import Person


def run(*words: object) -> Result:
    return CliRunner().invoke(main, ["pack", *map(str, words)])


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A file in which an object was changed ten times, and another one is garbage."""
    with objdb.DB(tmp_path / "data.fs") as db:
        for age in range(10):
            with db.transaction() as connection:
                root = connection.root()
                root.setdefault("person", Person("p")).age = age
                root["other"] = Person("o" * 1000)
    return tmp_path / "data.fs"


def test_pack(path: Path) -> None:
    """What is old goes, and it is said how much; what is current stays."""
    size = path.stat().st_size
    dry = run(path, "--now", "--dry-run")
    assert dry.exit_code == 0 and "would go" in dry.output and path.stat().st_size == size
    result = run(path, "--now")
    assert result.exit_code == 0 and "9 objects are gone" in result.output, result.output
    assert path.stat().st_size < size
    with objdb.DB(path) as db, db.transaction() as connection:
        assert connection.root()["person"].age == 9 and len(db.storage) == 3


def test_history_stays(path: Path) -> None:
    """The last day stays, or what --days or --before say; --no-gc keeps garbage; --keep-old keeps
    the file."""
    size = path.stat().st_size
    for options in (
        [], ["--days", "1"], ["--before", "2 hours ago"], ["--before", "2026-01-01"],
        ["--days", "0.5", "--no-gc"],
    ):
        result = run(path, *options)
        assert result.exit_code == 0 and "0 objects" in result.output, result.output
        assert path.stat().st_size == size
    assert run(path, "--now", "--no-gc", "--keep-old").exit_code == 0
    old = Path(f"{path}.old")
    assert old.stat().st_size == size
    with objdb.DB(path) as db:
        assert len(db.storage) == 12


def test_a_dry_run_beside_a_writer(path: Path) -> None:
    """A dry run can be made while another process has the file open; a pack cannot."""
    with objdb.DB(path):
        assert run(path, "--dry-run").exit_code == 0
        result = run(path)
        assert result.exit_code == 1 and "is open for writing" in result.output


def test_mistakes(path: Path, tmp_path: Path) -> None:
    """What is wrong is said in a sentence."""
    for words, sentence, code in (
        ([path, "--days", "1", "--before", "2026-01-01"], "give one", 1),
        ([path, "--days", "1", "--now"], "give one", 1),
        ([path, "--days", "-1"], "--days", 2),
        ([path, "--before", "soon"], "neither a time", 2),
        ([path, "--before", "2100-01-01"], "future", 1),
        ([tmp_path / "missing.fs"], "missing.fs", 1),
    ):
        result = run(*words)
        assert result.exit_code == code and sentence in result.output, result.output
        assert "Traceback" not in result.output
    assert "Example" in run("--help").output


def test_more_afterwards_than_before() -> None:
    """What others commit during a pack is no negative number of objects that are gone."""
    said = _told(PackResult(1000, 3000, 10, 108), dry_run=False)
    assert "10 -> 108 objects" in said and "-" not in said.replace("->", "")
