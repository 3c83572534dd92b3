"""What the command prints on a terminal, in a pipe that is closed, and when it is interrupted."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
import traceback
import unicodedata
from pathlib import Path
from typing import NoReturn

import pytest

import objdb
from objdb.__main__ import run
from objdb.tools.terminal import echo, escaped, show_json, show_table
from tests.tools.test_command import Terminal

# Sets the clipboard; deletes a line; rings; DEL; C1's CSI; a line end; turns what follows around.
EVIL = "\x1b]52;c;cm0=\x07\x1b[2K\r\x7f\x9b1A\n\u2028\u202egnp.\u2066x\u200f\udc9b"
OBEYED = {*map(chr, range(32)), *map(chr, range(0x7F, 0xA0)), *"\u061c\u200e\u200f\u2028\u2029"}
OBEYED |= {*map(chr, range(0x202A, 0x202F)), *map(chr, range(0x2066, 0x206A))}


def on_terminal(*words: str) -> str:
    """What a terminal gets from the command, its own colours and line ends aside."""
    leader, follower = pty.openpty()
    with subprocess.Popen(
        [sys.executable, "-m", "objdb", *words], stdout=follower, stderr=follower,
        env={**os.environ, "NO_COLOR": "1", "TERM": "dumb"},
    ):
        os.close(follower)
        return said_to(leader)


def on_terminal_of_a_fork(*words: str) -> str:
    """The same of a fork of this process, which has imported all already."""
    process, leader = pty.fork()
    if not process:
        run_as_a_program(*words)
    output = said_to(leader)
    os.waitpid(process, 0)
    return output


def run_as_a_program(*words: str) -> NoReturn:
    """Be the command, as `python -m objdb` is, with the standard streams as they are."""
    try:
        os.environ.update(NO_COLOR="1", TERM="dumb")
        sys.argv = ["objdb", *words]
        sys.stdin, sys.stdout = open(0), open(1, "w")
        sys.stderr = open(2, "w", errors="backslashreplace")
        run()
    except SystemExit:
        pass
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)


def said_to(leader: int) -> str:
    """Return what is written to a terminal until nobody has the other side."""
    output = b""
    while True:
        try:
            read = os.read(leader, 65536)
        except OSError:  # how Linux says that nobody has the other side
            break
        output += read
    os.close(leader)
    return output.decode().replace("\r\n", "\n")


@pytest.fixture
def hostile(tmp_path: Path) -> Path:
    """A database in which every text is hostile, and so is its name."""
    path = tmp_path / "a\x1b[2Jb.fs"
    # Names in pickles end at a line end.
    name = EVIL.replace(".", "_").replace("\n", "").encode("utf-8", "replace").decode()
    evil = type(name, (objdb.Persistent,), {})
    evil.__module__ = "no_such_module"
    sys.modules["no_such_module"] = type(sys)("no_such_module")
    text = EVIL.encode("utf-8", "replace").decode()
    setattr(sys.modules["no_such_module"], evil.__name__, evil)
    evil.__qualname__ = evil.__name__
    try:
        with objdb.DB(path) as db:
            with db.transaction() as connection:
                connection.root()["evil"] = evil()
            with db.transaction(text) as connection:
                txn = connection.transaction_manager.get()
                txn.user = text
                txn.setExtendedInfo(text.replace(".", ""), text)
                setattr(connection.root()["evil"], text, text)
                connection.root()[text] = text
            with db.transaction(text, version=text) as connection:
                setattr(connection.root()["evil"], text, b"\x1b")
    finally:
        del sys.modules["no_such_module"]
    return path


@pytest.mark.parametrize(
    "words",
    [
        ["info"], ["check"], ["history", "1"], ["history", "0"], ["undolog"], ["versions"],
        ["versions", EVIL.encode("utf-8", "replace").decode()],
        ["versions", "\x1b[31mnone", "--commit"], ["diff", "0", "yesterday\x1b["],
        ["diff", "1", "LAST"], ["diff", "0", "LAST"], ["undo", "LAST", "--dry-run"],
        ["undo", "\x1b]x", "--dry-run"], ["undo", "LAST"], ["pack", "--now", "--dry-run"],
        ["history", "99"], ["history", "\x1b[1m"], ["--\x1b[1m"],
        ["migrate", "/nowhere/\x1b[1m"], ["undolog", "--where", "'\x1b' > 1"],
    ],
    ids=lambda words: ascii(" ".join(words))[:40],
)
@pytest.mark.parametrize("as_json", [False, True], ids=["text", "json"])
def test_nothing_that_a_terminal_obeys(hostile: Path, words: list[str], as_json: bool) -> None:
    """Whatever comes from a database, its name or the command line is shown with its control
    characters escaped, in messages of errors, too."""
    with objdb.DB(hostile, read_only=True) as db:
        entries = db.history(b"\0" * 7 + b"\1", 2)
    tid = entries[-1]["tid"].hex()
    command, *rest = [tid if word == "LAST" else word for word in words]
    shown = on_terminal_of_a_fork(command, str(hostile), *rest, *["--json"] * as_json)
    assert shown and "Traceback" not in shown
    assert OBEYED & set(shown.replace("\n", "")) == set(), ascii(shown)


def test_escapes() -> None:
    """What a terminal obeys is written as Python does; letters and signs of all scripts stay."""
    assert OBEYED & set(escaped(EVIL)) == set()
    assert escaped("\x1b\x7f\x9b\u202e\n\udc9b") == r"\x1b\x7f\x9b\u202e\n\udc9b"
    kept = "Grüße, 日本語, שלום, 👩\u200d👧, क्\u200dष \\ \"'"
    assert escaped(kept) == kept
    hidden = [c for c in map(chr, range(sys.maxunicode + 1)) if unicodedata.category(c) == "Cf"]
    assert all(escaped(c) != c for c in hidden if c not in "\u200c\u200d")


def test_json_is_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    """What is printed as JSON is read again as it was, without a control character in between."""
    value = {"a": EVIL + "\U000e0041", EVIL: [EVIL, {1: None, b"\x9b": b"\x9b"}], "ü": "👩\u200d👧"}
    show_json(value)
    text = capsys.readouterr().out
    assert OBEYED & set(text.replace("\n", "")) == set()
    read = json.loads(text)
    assert read["a"] == value["a"] and read["ü"] == value["ü"]
    assert read[EVIL] == [EVIL, {"1": None, r"b'\x9b'": "9b"}]


def test_what_the_terminal_cannot_show(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Characters that the terminal's encoding lacks are escaped."""
    with (tmp_path / "out").open("w", encoding="ascii") as stream:
        monkeypatch.setattr("sys.stdout", stream)
        echo("grüße")
        show_table(["a"], [["ü"]])
    assert (tmp_path / "out").read_text() == "gr\\xfc\u00dfe\na\n\\xfc\n".replace("ß", "\\xdf")


def test_tables_on_a_terminal(tmp_path: Path) -> None:
    """A terminal gets long cells folded, and square brackets as they are."""
    terminal = Terminal(tmp_path / "data.fs")
    with objdb.DB(terminal.path) as db, db.transaction("[red]" + "word " * 60) as connection:
        connection.root()["x"] = 1
    lines = on_terminal("undolog", str(terminal.path)).splitlines()
    assert max(map(len, lines)) <= 80 and "[red]" in "".join(lines)
    assert sum(line.count("word") for line in lines) == 60


def many(path: Path) -> Path:
    """A database with more transactions than a pipe takes."""
    with objdb.DB(path) as db:
        for i in range(30):
            with db.transaction("word " * 1000) as connection:
                connection.root()["x"] = i
    return path


@pytest.mark.parametrize("option", [[], ["--json"]])
def test_a_reader_that_goes(tmp_path: Path, option: list[str]) -> None:
    """`objdb … | head -1` ends quietly."""
    path = many(tmp_path / "data.fs")
    process = subprocess.Popen(
        [sys.executable, "-m", "objdb", "undolog", str(path), "--limit", "1000", *option],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        # Without a buffer, Python does not notice what was not written.
        env={name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"},
    )
    assert process.stdout and process.stderr
    process.stdout.read(1)
    process.stdout.close()
    assert process.stderr.read() == b""
    process.stderr.close()
    assert process.wait(60) == 141


def test_output_that_cannot_be_written(tmp_path: Path) -> None:
    """A full disk under the output is told."""
    path = many(tmp_path / "data.fs")
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            [sys.executable, "-m", "objdb", "info", str(path)], stdout=full,
            stderr=subprocess.PIPE, text=True, timeout=60, check=False,
        )
    assert done.returncode == 1 and done.stderr == "Error: No space left on device\n"


INTERRUPTED = """
import os, signal, sys
sys.argv = ["objdb", *sys.argv[1:]]
import {module}
original = {module}.{name}
def interrupted(*arguments, **options):
    os.kill(os.getpid(), signal.SIGINT)
    return original(*arguments, **options)
{module}.{name} = interrupted
from objdb.__main__ import run
run()
"""


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("objdb.tools.looking", "check_storage"), ("objdb.tools.looking", "open_database"),
        ("objdb.tools.main", "main"), ("objdb.tools.looking", "echo"),
    ],
)
def test_ctrl_c(tmp_path: Path, module: str, name: str) -> None:
    """Ctrl-C ends the command at any moment with 130, and without a traceback."""
    path = many(tmp_path / "data.fs")
    done = subprocess.run(
        [sys.executable, "-c", INTERRUPTED.format(module=module, name=name), "check", str(path)],
        capture_output=True, text=True, timeout=60, check=False,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    assert done.returncode == 130 and done.stderr.strip() == ""


def test_completion() -> None:
    """The shell completes subcommands, options, and paths of databases."""
    for words, cword, expected in (("objdb un", "1", "undolog"), ("objdb info ", "2", "file"),
                                   ("objdb pack --no", "2", "--now")):
        done = subprocess.run(
            [sys.executable, "-c", "from objdb.__main__ import run; run('objdb')"],
            env={**os.environ, "_OBJDB_COMPLETE": "bash_complete", "COMP_WORDS": words,
                 "COMP_CWORD": cword},
            capture_output=True, text=True, timeout=60, check=False,
        )
        assert expected in done.stdout, done
