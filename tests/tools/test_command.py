"""The `objdb` command, as somebody at a terminal uses it, the right way and the wrong way."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import transaction
from click.testing import CliRunner, Result

import objdb
from objdb.check import check
from objdb.ids import format_oid
from objdb.tools.main import main
from tests.models import Counter, Person


class Terminal:
    """Runs the command on one file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def run(self, *words: str) -> Result:
        command, *rest = words
        return CliRunner().invoke(main, [command, str(self.path), *rest])

    def out(self, *words: str) -> str:
        result = self.run(*words)
        assert result.exit_code == 0, result.output
        return result.output

    def json(self, *words: str) -> Any:
        return json.loads(self.out(*words, "--json"))


@pytest.fixture
def terminal(tmp_path: Path) -> Terminal:
    """On a file with three transactions: by nobody, by ann, by ben."""
    terminal = Terminal(tmp_path / "data.fs")
    with objdb.DB(terminal.path) as db:
        for user, age in ((None, 1), ("ann", 2), ("ben", 3)):
            with db.transaction(note=f"age {age}") as connection:
                if user:
                    connection.transaction_manager.get().user = user
                person = connection.root().setdefault("person", Person("p"))
                person.age = age
                if user == "ben":
                    connection.root()["more"] = Counter()
                    connection.transaction_manager.get().setExtendedInfo("ip", "10.0.0.1")
    return terminal


def test_info(terminal: Terminal) -> None:
    """Size, number of objects, and the last change."""
    assert "3 objects" in terminal.out("info")
    facts = terminal.json("info")
    assert facts["objects"] == 3 and facts["size_bytes"] == terminal.path.stat().st_size
    assert datetime.fromisoformat(facts["last_change"]).tzinfo


def test_check(terminal: Terminal) -> None:
    """A sound file is one; a damaged one ends in exit code 1, with the place of the damage."""
    assert "no problems" in terminal.out("check")
    assert terminal.json("check")["problems"] == []
    content = bytearray(terminal.path.read_bytes())
    content[200] ^= 1
    terminal.path.write_bytes(content)
    for option in ([], ["--json"]):
        result = terminal.run("check", *option)
        assert result.exit_code == 1 and "position" in result.output


def test_check_tells_how_far_it_is(terminal: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever checks a database is told how far it is: transactions, then objects."""
    monkeypatch.setattr("objdb.check._BETWEEN_REPORTS", 2)
    told: list[tuple[str, int, int]] = []
    with objdb.DB(terminal.path) as db:
        check(db.storage, lambda *facts: told.append(facts))
    assert told == [
        ("transactions", 2, 0), ("transactions", 4, 0), ("objects", 2, 3), ("objects", 3, 3),
    ]


def test_users_with_a_path(terminal: Terminal) -> None:
    """--user takes a name as setUser was given it, too."""
    with objdb.DB(terminal.path) as db, db.transaction() as connection:
        connection.transaction_manager.get().setUser("sue")
        connection.root()["sue"] = 1
    (entry,) = terminal.json("undolog", "--user", "sue")
    assert entry["user_name"] == "/ sue"
    assert terminal.json("undolog", "--user", "/ sue") == [entry]
    assert terminal.json("undolog", "--user", "s") == []


def test_lines_stay_lines(terminal: Terminal) -> None:
    """A table has a line for each entry, however long it is."""
    with objdb.DB(terminal.path) as db, db.transaction(note="x\n" * 300) as connection:
        connection.root()["more"] = 1
    assert len(terminal.out("undolog").splitlines()) == 1 + len(terminal.json("undolog"))


def test_history_and_diff(terminal: Terminal) -> None:
    """The revisions of an object, and what differs between two of them."""
    entries = terminal.json("history", "1")
    assert [entry["description"] for entry in entries] == ["age 3", "age 2", "age 1"]
    assert terminal.json("history", "0x1", "--limit", "1") == entries[:1]
    assert "ann" in terminal.out("history", "1")
    old, new = entries[2]["tid"], entries[0]["tid"]
    assert terminal.json("diff", "1", old, new) == {"age": ["1", "3"]}
    assert "age: 1 -> 3" in terminal.out("diff", "1", f"0x{old}", new)
    assert terminal.json("diff", "0", old, new) == {"more": [None, "<reference to 0x2>"]}
    assert "more: (nothing) -> <reference to 0x2>" in terminal.out("diff", "0", old, new)


def notes(terminal: Terminal, *options: str) -> list[str]:
    return [entry["description"] for entry in terminal.json("undolog", *options)]


def test_undolog(terminal: Terminal) -> None:
    """Newest first; by user, text, time, object, and expression."""
    everything = ["age 3", "age 2", "age 1", "initial database creation"]
    assert notes(terminal) == everything
    assert notes(terminal, "--limit", "2") == everything[:2]
    assert notes(terminal, "--user", "ann") == ["age 2"]
    assert notes(terminal, "--text", "age") == everything[:3]
    assert notes(terminal, "--object", "0") == ["age 3", "age 1", "initial database creation"]
    assert notes(terminal, "--object", "0x2") == ["age 3"]
    assert notes(terminal, "--where", "entry.get('ip', '').startswith('10.')") == ["age 3"]
    assert notes(terminal, "--where", "any(n in description for n in '12')") == everything[1:3]
    assert notes(terminal, "--where", "'3' in description or len(user_name) == 3") == everything[:2]
    tomorrow = (datetime.now() + timedelta(days=1)).isoformat()
    assert notes(terminal, "--since", tomorrow) == []
    assert notes(terminal, "--until", tomorrow, "--since", "2020-01-01") == everything
    table = terminal.out("undolog")
    assert "ben" in table and table.index("age 3") < table.index("age 1")


def test_undo(terminal: Terminal) -> None:
    """An undo can be looked at first; it says what it changes; undoing it is redoing."""
    newest = terminal.json("undolog")[0]["id"]
    size = terminal.path.stat().st_size
    preview = terminal.json("undo", newest, "--dry-run")
    assert {change["class"] for change in preview["changes"]} >= {"tests.models.Person"}
    assert "age: 3 -> 2" in terminal.out("undo", newest, "--dry-run")
    assert terminal.path.stat().st_size == size
    assert terminal.out("undo", newest, "--user", "admin").endswith("done\n")
    assert state(terminal) == (2, False)
    entry = terminal.json("undolog")[0]
    assert (entry["user_name"], entry["description"]) == ("admin", f"undo {newest}")
    terminal.out("undo", entry["id"], "--note", "sorry")
    assert state(terminal) == (3, True)
    assert notes(terminal)[0] == "sorry"


def test_what_is_in_the_way(terminal: Terminal) -> None:
    """An object that was changed later is named, and nothing is changed."""
    older = terminal.json("undolog")[1]["id"]
    for options in (["--dry-run"], []):
        result = terminal.run("undo", older, *options)
        assert result.exit_code == 1
        assert "in the way: tests.models.Person 0x1" in result.output
        assert "Traceback" not in result.output
    assert state(terminal) == (3, True)
    both = [entry["id"] for entry in terminal.json("undolog")[:2]]
    terminal.out("undo", *both)
    assert state(terminal) == (1, False)


def state(terminal: Terminal) -> tuple[int, bool]:
    with objdb.DB(terminal.path) as db, db.transaction() as connection:
        return connection.root()["person"].age, "more" in connection.root()


def test_migrate(terminal: Terminal, tmp_path: Path) -> None:
    """A copy is as the source is; copying once more takes what has come since."""
    target = str(tmp_path / "copy of it.fs")
    assert terminal.json("migrate", target, "--dry-run")["transactions_to_copy"] == 4
    assert not Path(target).exists()
    facts = terminal.json("migrate", target)
    assert (facts["transactions_copied"], facts["problems"]) == (4, [])
    newest = terminal.json("undolog")[0]["id"]
    terminal.out("undo", newest)
    assert terminal.json("migrate", target, "--dry-run")["transactions_to_copy"] == 1
    assert "transactions copied: 1" in terminal.out("migrate", target)
    assert terminal.json("migrate", target)["transactions_copied"] == 0
    copy = Terminal(Path(target))
    assert copy.json("undolog") == terminal.json("undolog")
    assert state(copy) == (2, False)


def test_migrating_to_what_is_no_copy(terminal: Terminal, tmp_path: Path) -> None:
    """A database of its own is refused, and left as it is; so is the source itself."""
    other = tmp_path / "other.fs"
    with objdb.DB(other) as db, db.transaction() as connection:
        connection.root()["mine"] = 1
    before = other.read_bytes()
    result = terminal.run("migrate", str(other))
    assert result.exit_code == 1 and "not an earlier copy" in result.output
    assert other.read_bytes() == before
    result = terminal.run("migrate", str(terminal.path))
    assert result.exit_code == 1 and "same file" in result.output


def test_strange_names(terminal: Terminal, tmp_path: Path) -> None:
    """A path with characters that mean something in a URI is a path."""
    strange = Terminal(tmp_path / "a?b=c%20 d#e.fs")
    terminal.path.rename(strange.path)
    assert strange.json("info")["objects"] == 3


WRONG: list[tuple[list[str], int, str]] = [
    (["history"], 2, "Missing argument 'OID'"),
    (["history", "x"], 2, "is not an oid"),
    (["history", "-1"], 2, ""),
    (["history", "99"], 1, "0x63"),
    (["history", "1", "--limit", "0"], 2, "0"),
    (["diff", "1", "abc", "def"], 2, "16 hexadecimal digits"),
    (["diff", "1", "next week"], 2, "16 hexadecimal digits"),
    (["diff", "1", "00" * 8, "00" * 8], 1, "0x1"),
    (["undolog", "--since", "soon"], 2, "neither a time"),
    (["undolog", "--where", "size >"], 1, "is not a Python expression"),
    (["undolog", "--where", "nonsense"], 1, "NameError"),
    (["undolog", "--where", "__import__('os')"], 1, "NameError"),
    (["undo"], 2, "Missing argument"),
    (["undo", "garbage"], 1, "not the id of a transaction"),
    (["undo", "AAAAAAAAAAA="], 1, ""),
    (["migrate"], 2, "Missing argument"),
    (["nonsense"], 2, "No such command"),
]


@pytest.mark.parametrize(("words", "code", "text"), WRONG, ids=[" ".join(w) for w, _, _ in WRONG])
def test_mistakes(terminal: Terminal, words: list[str], code: int, text: str) -> None:
    """A mistake is told in words, without a traceback, by an exit code, and changes nothing."""
    before = terminal.path.read_bytes()
    result = terminal.run(*words)
    assert (result.exit_code, text in result.output) == (code, True), result.output
    assert isinstance(result.exception, SystemExit)
    assert terminal.path.read_bytes() == before


def test_files_that_are_none(tmp_path: Path) -> None:
    """A file that is not there is not made; a file that is something else is left alone."""
    for command in ("info", "check", "undolog"):
        result = Terminal(tmp_path / "none.fs").run(command)
        assert result.exit_code == 1 and "none.fs" in result.output
        assert list(tmp_path.iterdir()) == []
    text = tmp_path / "text.txt"
    text.write_text("this is no database")
    result = Terminal(text).run("info")
    assert result.exit_code == 1 and "text.txt" in result.output
    assert text.read_text() == "this is no database"


def test_beside_a_writer(terminal: Terminal) -> None:
    """While another process has the file, looking works, and undoing says who has it."""
    with objdb.DB(terminal.path) as db:
        assert len(terminal.json("undolog")) == 4
        newest = terminal.json("undolog")[0]["id"]
        result = terminal.run("undo", newest)
        assert result.exit_code == 1 and "open" in result.output
        assert db.storage.lastTransaction()


@pytest.mark.parametrize("command", sorted(main.commands))
def test_help(command: str) -> None:
    """Each command's help has an example."""
    result = CliRunner().invoke(main, [command, "--help"])
    assert result.exit_code == 0
    assert re.search(rf"Example:\s+objdb\s+{command}", result.output)


def test_as_a_program(terminal: Terminal) -> None:
    """`python -m objdb` is the command."""
    done = subprocess.run(
        [sys.executable, "-m", "objdb", "info", str(terminal.path)], capture_output=True,
        text=True, check=True, timeout=60,
    )
    assert "3 objects" in done.stdout
    assert format_oid(b"\0" * 8) == "0x0"
    transaction.abort()


@pytest.fixture
def planned(terminal: Terminal) -> Terminal:
    """The same, with a version, "next year", that changes one object and makes another."""
    with (
        objdb.DB(terminal.path) as db,
        db.transaction(note="older, by then", version="next year") as connection,
    ):
        connection.transaction_manager.get().user = "ann"
        connection.root()["person"].age = 40
        connection.root()["person"].friend = Person("friend")
    return terminal


def age(terminal: Terminal, version: str = "") -> int:
    """The age of the person in a version."""
    with objdb.DB(terminal.path) as db, db.transaction(version=version) as connection:
        return int(connection.root()["person"].age)


def test_versions(planned: Terminal) -> None:
    """The versions, and what is in one."""
    (entry,) = planned.json("versions")
    assert (entry["version"], entry["changed"], entry["new"]) == ("next year", 1, 1)
    assert entry["users"] == ["ann"]
    assert "next year" in planned.out("versions")
    person, friend = planned.json("versions", "next year")
    assert person["attributes"]["age"] == ["3", "40"] and not person["new"]
    assert friend["new"] and friend["by"][0]["description"] == "older, by then"
    shown = planned.out("versions", "next year")
    assert "age: 3 -> 40" in shown and "ann older, by then" in shown and ", new" in shown
    assert planned.out("versions", "of nobody") == ""
    assert "next year" in planned.out("history", person["oid"])


def test_the_end_of_a_version(planned: Terminal) -> None:
    """A version is committed, moved, aborted; not with --dry-run."""
    for option in ("--commit", "--abort"):
        planned.out("versions", "next year", option, "--dry-run")
        assert len(planned.json("versions")) == 1
    assert planned.out("versions", "next year", "--commit", "--to", "2028").endswith("done\n")
    assert (age(planned, "next year"), age(planned, "2028")) == (3, 40)
    planned.out("versions", "2028", "--commit", "--user", "ben", "--note", "settled")
    assert age(planned) == 40 and planned.json("versions") == []
    (entry,) = planned.json("undolog", "--limit", "1")
    assert (entry["user_name"], entry["description"]) == ("ben", "settled")
    planned.out("undo", entry["id"])
    assert age(planned) == 3
    planned.out("versions", "2028", "--abort", "--json")
    assert age(planned, "2028") == 3
    (entry,) = planned.json("undolog", "--limit", "1")
    assert entry["description"] == "abort the version 2028"


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        (["--commit"], 2, "VERSION"), (["next year", "--to", "x"], 2, "--commit"),
        (["next year", "--commit", "--abort"], 2, "exclude"),
        (["nobody's", "--commit"], 1, "'next year'"), (["nobody's", "--abort"], 1, "'next year'"),
        (["next year", "--commit", "--to", "next year"], 1, "different"),
        (["x" * 70_000], 1, "65535"), (["", "--abort"], 1, "name is empty"),
    ],
)
def test_wrong_words_about_versions(
    planned: Terminal, words: list[str], code: int, told: str
) -> None:
    """What makes no sense is told in a sentence, and changes nothing."""
    result = planned.run("versions", *words)
    assert result.exit_code == code and told in result.output
    assert "Traceback" not in result.output
    assert (age(planned), age(planned, "next year")) == (3, 40)
