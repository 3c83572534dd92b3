"""The terminal application: its commands, its menu, and what it says to mistakes."""

from datetime import date, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from click.testing import CliRunner

import objdb
from tutorials.calendar.app import main
from tutorials.calendar.errors import CalendarError
from tutorials.calendar.inputs import (
    parse_day,
    parse_duration,
    parse_month,
    parse_repeat,
    parse_when,
)
from tutorials.calendar.model import Calendar

COMMANDS = [
    "init", "demo", "menu", "month", "day", "find", "add", "change", "invite", "remove", "person",
    "holidays", "import", "export", "log", "undo", "plans",
    "pack",
]  # fmt: skip


@pytest.fixture
def path(tmp_path):
    """A file with a calendar of two people."""
    path = tmp_path / "cal.fs"
    with objdb.DB(path) as db, db.transaction() as connection:
        calendar = connection.root()["calendar"] = Calendar("Europe/Berlin")
        calendar.add_person("anna", "Anna Berger")
        calendar.add_person("ben")
    return path


@pytest.fixture
def cal(path):
    """Run a command on the file; expect it to go well, or to fail with a line and no traceback."""

    def run(*words, fails=False, keys=None):
        result = CliRunner().invoke(main, [*words, "--file", str(path)], input=keys)
        assert result.exception is None or isinstance(result.exception, SystemExit)
        assert (result.exit_code != 0) == fails, result.output
        if fails:
            assert result.output.count("\n") == 1 or result.output.startswith("Usage"), (
                result.output
            )
        return result.output

    return run


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(command):
    """The help names every command, and every command has its own help."""
    assert command in CliRunner().invoke(main, ["--help"]).output
    result = CliRunner().invoke(main, [command, "--help"])
    assert result.exit_code == 0
    assert "--file" in result.output


def test_a_life_in_commands(cal, path):
    """An appointment is made, shown, found, moved, joined and removed, each in a command."""
    assert "added: Mon 02 Mar 2026 14:30 CET  Board meeting" in cal(
        "add",
        "Board meeting",
        "2026-03-02 14:30",
        "--for",
        "90m",
        "--with",
        "anna",
        "--where",
        "Room 1",
    )
    assert "14:30" in cal("month", "2026-03") and "March 2026" in cal("month", "2026-03")
    shown = cal("day", "2026-03-02")
    for word in ("14:30-16:00", "Board meeting", "Room 1", "Anna"):
        assert word in shown
    assert "Board meeting" in cal("find", "board")
    assert "Anna Berger, ben" in cal("invite", "Board", "ben")
    assert "changed: Tue 03 Mar 2026 09:00 CET  Strategy" in cal(
        "change", "Board", "--to", "2026-03-03 09:00", "--subject", "Strategy"
    )
    assert "nothing" in cal("day", "2026-03-02")
    assert "removed: Strategy" in cal("remove", "Strategy")
    with objdb.DB(path) as db, db.transaction() as connection:
        assert len(connection.root()["calendar"]) == 0


def test_series_and_whole_days(cal):
    """A series is made with a word and an end; a date without a time is a whole day."""
    cal("add", "Swim", "2026-03-02 18:00", "--repeat", "weekly", "--count", "3", "--with", "anna")
    cal("add", "Fair", "2026-03-09", "--for", "2d")
    cal("add", "Birthday", "2000-03-16", "--repeat", "yearly")
    assert "FREQ=WEEKLY;COUNT=3" in cal("find", "swim")
    shown = cal("day", "2026-03-09")
    assert "Swim ↻" in shown and "all day" in shown
    assert "Birthday" in cal("day", "2030-03-16")


def test_people(cal):
    """People are entered and listed."""
    cal("person", "zoe", "--name", "Zoë Müller", "--email", "zoe@example.org")
    shown = cal("person")
    assert "Zoë Müller" in shown and "zoe@example.org" in shown and "Anna Berger" in shown


def test_holidays_import_and_export(cal, tmp_path):
    """Holidays and a file's events come in, and go out to another calendar."""
    assert "9 of them are new" in cal("holidays", "DE", "2026")
    assert "0 of them are new" in cal("holidays", "de", "2026")
    ics = tmp_path / "out.ics"
    cal("add", "Board", "2026-03-02 14:30", "--with", "anna")
    cal("export", str(ics))
    assert "exists; --force" in cal("export", str(ics), fails=True)
    cal("export", str(ics), "--force")
    assert "BEGIN:VCALENDAR" in cal("export", "-")
    other = str(tmp_path / "other.fs")
    runner = CliRunner()
    assert runner.invoke(main, ["--file", other, "init", "--zone", "UTC"]).exit_code == 0
    result = runner.invoke(main, ["--file", other, "import", str(ics)])
    assert "10 added, 0 changed" in result.output
    assert "0 added, 0 changed" in runner.invoke(main, ["--file", other, "import", str(ics)]).output


@pytest.mark.parametrize(("words", "answer"), [
    (["add", "Board", "tomorrow"], "is no date"),
    (["add", "Board", "2026-02-30"], "is no date"),
    (["add", "Board", "2026-03-02 25:00"], "is no date"),
    (["add", "Board", "2026-03-02 14:00", "--for", "a while"], "is no duration"),
    (["add", "Board", "2026-03-02 14:00", "--for", "2000000d"], "is no duration"),
    (["add", "Board", "2026-03-02 14:00", "--with", "zoe"], "there is anna, ben"),
    (["add", "Board", "2026-03-02 14:00", "--repeat", "often"], "needs FREQ"),
    (["add", "Board", "2026-03-02 14:00", "--repeat", "daily", "--with", "ben"], "for ever"),
    (["add", "Board", "2026-03-02 14:00", "--count", "3"], "need --repeat"),
    (["add", "Board", "2026-03-02", "--repeat", "daily", "--count", "3", "--until", "2026-04-01"],
     "not both"),
    (["add", " ", "2026-03-02"], "needs a subject"),
    (["month", "2026-13"], "is no month"),
    (["month", "yesterday"], "is no month"),
    (["day", "2026-3-2x"], "is no date"),
    (["find", "nothing"], "no appointment 'nothing'"),
    (["change", "nothing", "--to", "2026-03-02"], "no appointment 'nothing'"),
    (["remove", "nothing"], "no appointment 'nothing'"),
    (["invite", "nothing", "anna"], "no appointment 'nothing'"),
    (["person", "anna"], "already a person"),
    (["holidays", "Atlantis"], "unknown country 'ATLANTIS'"),
    (["holidays", "DE", "2026", "--region", "XX"], "no region"),
    (["import", "missing.ics"], "missing.ics: No such file"),
    (["export", "missing/out.ics"], "No such file"),
    (["init"], "exists; it is left alone"),
    (["demo"], "was not made by the demo"),
])  # fmt: skip
def test_mistakes_get_one_line(cal, words, answer):
    """A user's mistake is answered with one line that says what is wrong, and an exit status."""
    assert answer in cal(*words, fails=True)


@pytest.mark.parametrize("command", ["month", "add", "menu", "export"])
def test_a_file_that_is_missing_or_foreign(tmp_path, command):
    """A missing file, an empty one, a folder and a file of another kind are refused, untouched."""
    arguments = {"add": ["x", "2026-03-02"], "export": ["-"]}.get(command, [])
    empty, text, folder = tmp_path / "empty.fs", tmp_path / "notes.txt", tmp_path / "folder"
    empty.touch()
    text.write_text("my notes")
    folder.mkdir()
    for path, answer in (
        (tmp_path / "none.fs", "there is no calendar in"), (empty, "it is not a database"),
        (text, "is not a database file"), (folder, "is a directory"),
    ):  # fmt: skip
        result = CliRunner().invoke(main, [command, *arguments, "--file", str(path)])
        assert result.exit_code == 1
        assert isinstance(result.exception, SystemExit)
        assert answer in result.output and result.output.count("\n") == 1
    assert sorted(one.name for one in tmp_path.iterdir()) == ["empty.fs", "folder", "notes.txt"]
    assert text.read_text() == "my notes"


def test_a_database_without_a_calendar(tmp_path):
    """A database of another program is left alone."""
    path = tmp_path / "other.fs"
    with objdb.DB(path) as db, db.transaction() as connection:
        connection.root()["calendar"] = "on the wall"
    result = CliRunner().invoke(main, ["add", "x", "2026-03-02", "--file", str(path)])
    assert result.exit_code == 1 and "without a calendar" in result.output
    with objdb.DB(path) as db, db.transaction() as connection:
        assert dict(connection.root()) == {"calendar": "on the wall"}


def test_init_takes_the_zone(tmp_path):
    """A calendar is made in the given zone, or none at all."""
    path = tmp_path / "cal.fs"
    runner = CliRunner()
    result = runner.invoke(main, ["init", "--zone", "Nowhere/Land", "--file", str(path)])
    assert result.exit_code == 1 and not path.exists()
    result = runner.invoke(main, ["init", "--zone", "Asia/Tokyo", "--file", str(path)])
    assert "Asia/Tokyo" in result.output
    with objdb.DB(path) as db, db.transaction() as connection:
        assert connection.root()["calendar"].zone == ZoneInfo("Asia/Tokyo")


def test_the_menu(cal, path):
    """The menu makes, moves, joins, shows and removes, and goes on after a mistake."""
    keys = [
        "g", "2026-03", "n", "p",
        "a", "Board", "2026-03-02 14:30", "1h", "anna",
        "a", "Clash", "2026-03-02 14:00", "1h", "anna",
        "i", "Board", "ben",
        "c", "Board", "2026-03-03 09:00",
        "d", "2026-03-03",
        "a", "Party", "2026-03-07", "1d", "",
        "r", "Party",
        "d", "never", "w", "?", "q",
    ]  # fmt: skip
    output = cal("menu", keys="\n".join(keys) + "\n")
    for text in (
        "March 2026", "April 2026", "added: Mon 02 Mar 2026 14:30 CET", "anna is busy with 'Board'",
        "invited ben to Board", "moved: Tue 03 Mar 2026 09:00 CET  Board", "removed: Party",
        "'never' is no date", "Anna Berger",
    ):  # fmt: skip
        assert text in output
    with objdb.DB(path) as db, db.transaction() as connection:
        (board,) = connection.root()["calendar"]
        assert [one.username for one in board.participants] == ["anna", "ben"]


def test_the_menu_ends_with_its_input(cal):
    """The end of the input, also within a question, ends the menu without a complaint."""
    cal("menu", keys="")
    cal("menu", keys="a\nBoard\n")


def test_what_people_type():
    """Dates, durations, months and repetitions are read as people write them."""
    berlin = ZoneInfo("Europe/Berlin")
    assert parse_when("2026-03-02", berlin) == date(2026, 3, 2)
    assert parse_when(" 2026-03-02 14:30 ", berlin) == datetime(2026, 3, 2, 14, 30, tzinfo=berlin)
    assert parse_when("2026-03-02T14:30+00:00", berlin).hour == 15
    assert parse_day("Today") == date.today()
    assert parse_month("2026-3") == (2026, 3)
    assert parse_duration("45") == parse_duration("45m") == timedelta(minutes=45)
    assert parse_duration("1h 30m") == timedelta(minutes=90)
    assert parse_duration("2D") == timedelta(days=2)
    assert parse_repeat("Weekly", until=date(2026, 4, 1)) == "FREQ=WEEKLY;UNTIL=20260401"
    assert parse_repeat("FREQ=DAILY", count=3) == "FREQ=DAILY;COUNT=3"
    for text in ("", "h", "-5", "1.5h", "5m1h"):
        with pytest.raises(CalendarError, match="is no duration"):
            parse_duration(text)


def test_log_and_undo(cal):
    """What was done is listed with numbers, and undone by them; so is the undo."""
    cal("add", "Board", "2026-03-02 09:00", "--with", "anna")
    cal("remove", "Board")
    cal("add", "Review", "2026-03-03 14:00", "--with", "anna")
    lines = cal("log", "--last", "3").splitlines()
    assert [line.split("  ")[-1] for line in lines] == ["add Review", "remove Board", "add Board"]
    assert "remove Board" in cal("undo", "2")
    assert "Board" in cal("day", "2026-03-02") and "Review" in cal("day", "2026-03-03")
    assert "undo: remove Board" in cal("undo")
    assert "Board" not in cal("day", "2026-03-02")
    assert "100" in cal("undo", "100", fails=True)
    cal("undo", "0", fails=True)


def test_undo_books_nobody_twice(cal):
    """What cannot come back without a second booking is refused, with a line."""
    cal("add", "Board", "2026-03-02 09:00", "--with", "anna")
    cal("remove", "Board")
    cal("add", "Dentist", "2026-03-02 09:30", "--with", "anna")
    assert "cannot be undone" in cal("undo", "2", fails=True)
    assert "Board" not in cal("day", "2026-03-02")


def test_plans(cal):
    """A plan is seen with --plan only, until it is committed; or it is dropped."""
    cal("add", "Board", "2027-01-11 09:00", "--with", "anna", "--plan", "2027")
    cal("add", "Review", "2027-01-11 14:00", "--with", "anna", "--plan", "2027")
    assert "Board" in cal("day", "2027-01-11", "--plan", "2027")
    assert "Board" not in cal("day", "2027-01-11")
    assert "2027" in cal("plans")
    assert [line.split("  ")[-1] for line in cal("plans", "2027").splitlines()] == [
        "add Board", "add Review",
    ]
    assert "2027" in cal("add", "Board", "2027-01-12 09:00", fails=True)
    cal("plans", "2027", "--commit")
    assert "Board" in cal("day", "2027-01-11") and cal("plans") == ""
    cal("remove", "Board", "--plan", "cheap")
    cal("plans", "cheap", "--drop")
    assert "Board" in cal("day", "2027-01-11", "--plan", "cheap")
    for words in ("--commit", "cheap --commit --drop", "nobody's", "cheap --drop"):
        cal("plans", *words.split(), fails=True)
    cal("day", "2027-01-11", "--plan", "x" * 70_000, fails=True)


def test_pack(cal):
    """Packing forgets what is old; with --days, nothing that is younger."""
    cal("add", "Board", "2026-03-02 09:00", "--with", "anna")
    cal("remove", "Board")
    assert "bytes" in cal("pack", "--days", "1")
    assert "remove Board" in cal("log")
    cal("pack")
    assert cal("log") == ""
    cal("undo", fails=True)
    assert "anna" in cal("person")
    cal("pack", "--days", "-1", fails=True)
