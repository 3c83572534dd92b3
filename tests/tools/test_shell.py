"""`objdb shell`: a prompt, a line or a program on a database."""

from __future__ import annotations

import os
import pty
import select
import subprocess
import sys
import time
from pathlib import Path

import pytest

import objdb
from tests.zeo.serving import Serving

SHELL = [sys.executable, "-m", "objdb", "shell"]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A database with a class of the directory it is in."""
    source = "import objdb\nclass Item(objdb.Persistent):\n    price = 1\n"
    (tmp_path / "shop.py").write_text(source)
    program = (
        "import objdb, shop\n"
        "with objdb.DB('shop.fs') as db, db.transaction(note='made') as connection:\n"
        "    connection.root()['item'] = shop.Item()\n"
    )
    subprocess.run([sys.executable, "-c", program], cwd=tmp_path, check=True, timeout=60)
    return tmp_path / "shop.fs"


def run(where: str, *options: str, folder: Path, program: str | None = None) -> tuple[int, str]:
    done = subprocess.run(
        [*SHELL, where, *options], cwd=folder, input=program or "", text=True, timeout=60,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )
    return done.returncode, done.stdout


def test_a_line(file: Path) -> None:
    """A line changes, commits, lists and undoes; classes are found in the current directory."""
    line = "root['item'].price = 7; commit('dearer'); log(1); undo(); print(root['item'].price)"
    code, said = run("shop.fs", "-c", line, folder=file.parent)
    assert code == 0 and "dearer" in said and said.splitlines()[-1] == "1"


def test_a_program(file: Path) -> None:
    """A program from the standard input ends where it fails, with its own lines in the traceback;
    what it has not committed is dropped, and that is said."""
    program = "root['item'].price = 9\nprint(root['missing'])\nprint('not reached')\n"
    code, said = run("shop.fs", folder=file.parent, program=program)
    assert code == 1 and 'File "<objdb shell>", line 2' in said and "tools/shell.py" not in said
    assert "not committed is dropped" in said and "not reached" not in said
    with objdb.DB(file) as db:
        assert [entry["description"] for entry in db.undoLog(0, 1)] == ["made"]


def test_wrong_use(file: Path) -> None:
    """A database that there is not, and changes of one that is open for reading, are errors."""
    assert run("other.fs", "-c", "1", folder=file.parent)[0] == 1
    code, said = run("shop.fs", "--read-only", "-c", "root['n'] = 1", folder=file.parent)
    assert code == 1 and "open for reading only" in said


def test_through_a_server(tmp_path: Path) -> None:
    """It works on a server as on a file."""
    with Serving({"1": objdb.MappingStorage()}) as serving:
        where = "zeo://{}:{}".format(*serving.address)
        assert run(where, "-c", "root['n'] = 3; commit()", folder=tmp_path) == (0, "")
        assert run(where, "-c", "print(root['n'])", folder=tmp_path) == (0, "3\n")


def test_a_prompt(file: Path) -> None:
    """On a terminal there is a prompt, which Ctrl-D ends."""
    pid, terminal = pty.fork()
    if pid == 0:
        os.chdir(file.parent)
        os.execv(sys.executable, [*SHELL, "shop.fs", "--prompt", "python"])
    said, deadline, steps = b"", time.monotonic() + 60, [b"root['item'].price\r", b"\x04"]
    while time.monotonic() < deadline:
        if not select.select([terminal], [], [], 1)[0]:
            continue
        try:
            found = os.read(terminal, 4096)
        except OSError:  # it has ended
            break
        said += found
        if said.count(b">>> ") == 3 - len(steps) and steps:
            os.write(terminal, steps.pop(0))
    os.close(terminal)
    _, status = os.waitpid(pid, 0)
    assert status == 0 and b"commit(note)" in said and b"\n1\r\n" in said
