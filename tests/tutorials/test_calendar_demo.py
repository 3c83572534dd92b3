"""The demo, from its first line to the crash, and the crash by itself."""

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

import objdb
from tutorials.calendar.app import main
from tutorials.calendar.check import double_bookings, index_faults
from tutorials.calendar.crash import Outcome, crash
from tutorials.calendar.errors import CalendarError

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    """The folder in which the demo has run, and what it said."""
    folder = tmp_path_factory.mktemp("demo")
    search = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    done = subprocess.run(
        [sys.executable, "-W", "error", "-m", "tutorials.calendar", "demo", "--year", "2026"],
        cwd=folder, env={**os.environ, "PYTHONPATH": search, "COLUMNS": "150"},
        stdin=subprocess.DEVNULL, capture_output=True, encoding="utf-8", timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return folder, done.stdout


def test_the_story(told):
    """The demo fills, shows a month, meets a conflict, retries, edits, and survives two kills."""
    _, text = told
    for part in (
        "9 public holidays of DE and 26 appointments", "May 2026", "Ascension Day",
        "ConflictError: ", "PersonBusy: anna is busy with 'Budget'",
        "books 'Strategy' for 15:00 instead", "'Budget' moves from", "no person 'zoe'",
        "'Strategy' is still there: True", "SIGKILL at some moment: ",
        "SIGKILL between the two phases of a commit: ", "nobody is double-booked",
    ):  # fmt: skip
        assert part in text
    assert text.count("nothing acknowledged was lost, nothing is there by half") == 2


def test_the_file_it_leaves(told):
    """The demo's file is in order: nobody double-booked, the indexes in agreement."""
    folder, _ = told
    with objdb.DB(folder / "cal.fs") as db, db.transaction() as connection:
        calendar = connection.root()["calendar"]
        assert len(calendar) == 38
        assert double_bookings(calendar) == []
        assert index_faults(calendar) == []


def test_a_second_demo(told):
    """The demo's own file is replaced only with --fresh, and --interactive opens it as it is;
    without a word, the story is told beside it. What its last line says can be typed."""
    file = ["--file", str(told[0] / "cal.fs")]
    beside = CliRunner().invoke(main, ["demo", *file])
    assert beside.exit_code == 0 and "stays as it is" in beside.output, beside.output
    with objdb.DB(told[0] / "cal-2.fs") as db, db.transaction() as connection:
        assert len(connection.root()["calendar"]) == 38
    words = shlex.split(beside.output.rpartition("Use it: ")[2])
    assert words[:2] == ["./dev", "demo"]
    last = CliRunner().invoke(main, words[1:], input="q\n")
    assert last.exit_code == 0 and "q quit" in last.output
    used = CliRunner().invoke(main, ["demo", "--interactive", *file], input="q\n")
    assert used.exit_code == 0 and "q quit" in used.output and "SIGKILL" not in used.output
    bad = CliRunner().invoke(main, ["demo", "--fresh", "--country", "XX", *file])
    assert bad.exit_code == 1 and "unknown country" in bad.output
    with objdb.DB(told[0] / "cal.fs") as db, db.transaction() as connection:
        assert len(connection.root()["calendar"]) == 38


def test_what_was_typed_is_kept(told):
    """After a wrong answer in the menu, the others need not be typed again."""
    file = ["--file", str(told[0] / "cal.fs")]
    typed = ["a", "Choir", "some day", "2h", "", "a", "", "2026-03-03 20:00", "", "", "q"]
    used = CliRunner().invoke(main, ["demo", "--interactive", *file], input="\n".join(typed) + "\n")
    assert used.exit_code == 0 and "Your answers are kept" in used.output
    assert "added: " in used.output and "Choir" in used.output.rpartition("added: ")[2]
    CliRunner().invoke(main, ["remove", "Choir", *file])


def test_fresh_begins_again(told):
    """With --fresh the story is told again on the same file, with another country."""
    file = ["--file", str(told[0] / "cal.fs")]
    options = ["--fresh", "--country", "PT", "--zone", "Europe/Lisbon", "--year", "2027"]
    again = CliRunner().invoke(main, ["demo", *options, *file])
    assert again.exit_code == 0, again.output
    assert "public holidays of PT" in again.output
    CliRunner().invoke(main, ["demo", "--fresh", "--year", "2026", *file])


@pytest.mark.parametrize("uri", [
    "berkeley:cal", "sqlite:cal.sqlite", "pickle:cal.pickle",
    "compressed+sqlite:cal.sqlite?level=1",
])
def test_other_storages(tmp_path, monkeypatch, uri):
    """The same story is told on other storages, with the crashes, and the commands go on there."""
    monkeypatch.chdir(tmp_path)
    told = CliRunner().invoke(main, ["demo", "--year", "2026", "--storage", uri])
    assert told.exit_code == 0, told.output
    assert told.output.count("nothing acknowledged was lost, nothing is there by half") == 2
    found = CliRunner().invoke(main, ["--storage", uri, "find", "Strategy"])
    assert found.exit_code == 0 and "Strategy" in found.output
    again = CliRunner().invoke(main, ["demo", "--storage", uri])
    said = " ".join(again.output.split())
    assert again.exit_code == 0 and "--fresh begins it again" in said
    assert uri.replace("cal", "cal-2") in said
    assert not list(tmp_path.glob("*.fs"))


def test_without_a_storage_that_stays():
    """In memory there is no crash, and it is said why."""
    told = CliRunner().invoke(main, ["demo", "--year", "2026", "--storage", "memory:"])
    assert told.exit_code == 0, told.output
    assert "goes when it is closed, so nobody is killed" in told.output
    assert "nobody is double-booked" in told.output and "SIGKILL" not in told.output


@pytest.mark.parametrize(("uri", "answer"), [
    ("nosql:cal", "there is no storage 'nosql'; there are file,"),
    ("sqlite:cal.sqlite?histroy=no", "unknown parameter 'histroy'; known are history"),
    ("sqlite:notes.txt", "is not an SQLite database"),
    ("file+sqlite:cal.sqlite", "file is not a layer"),
])
def test_wrong_uris(tmp_path, monkeypatch, uri, answer):
    """A URI that makes no sense is one line that says what there is, and nothing is made."""
    monkeypatch.chdir(tmp_path)
    Path("notes.txt").write_text("my notes, more than sixteen bytes")
    for command in ("demo", "init", "month"):
        result = CliRunner().invoke(main, [command, "--storage", uri])
        assert result.exit_code == 1 and answer in result.output
        assert result.output.count("\n") == 1
    assert os.listdir() == ["notes.txt"]


def test_the_demo_leaves_other_files_alone(tmp_path):
    """The demo does not touch a file that it has not made, even with --fresh."""
    notes = tmp_path / "notes.txt"
    notes.write_text("my notes")
    other = tmp_path / "other.fs"
    with objdb.DB(other) as db, db.transaction() as connection:
        connection.root()["mine"] = 1
    for path in (notes, other, tmp_path):
        result = CliRunner().invoke(main, ["demo", "--fresh", "--file", str(path)])
        assert result.exit_code == 1 and "left alone" in result.output
    assert notes.read_text() == "my notes"
    with objdb.DB(other) as db, db.transaction() as connection:
        assert dict(connection.root()) == {"mine": 1}


@pytest.mark.parametrize("in_mid_commit", [False, True])
def test_a_crash_loses_nothing_acknowledged(tmp_path, in_mid_commit):
    """After SIGKILL every acknowledged commit is there, and none by half, crash after crash."""
    path = tmp_path / "cal.fs"
    before = 0
    for _ in range(3):
        outcome = crash(path, 5, in_mid_commit)
        assert outcome.kept
        assert outcome.promised >= before + 5
        if in_mid_commit:
            assert outcome.found == outcome.promised == before + 5
        before = outcome.found


def test_a_loss_would_be_noticed():
    """The check of a crash fails when a promised commit is missing, or one is there by half."""
    assert Outcome(promised=5, found=6, whole=True).kept
    assert not Outcome(promised=5, found=4, whole=True).kept
    assert not Outcome(promised=5, found=5, whole=False).kept


def test_a_child_that_fails_is_no_crash(tmp_path):
    """When the committing process ends by itself, that is an error and no proof."""
    path = tmp_path / "cal.fs"
    with objdb.DB(path) as db, db.transaction() as connection:
        connection.root()["journal"] = "not a journal"
    with pytest.raises(CalendarError, match="ended by itself"):
        crash(path, 5, False)
