"""IPython: objects are shown short, ghosts are completed, and `help` speaks to a user."""

from __future__ import annotations

import pydoc
import subprocess
import sys
from pathlib import Path

import objdb

SESSION = """
from IPython.core.interactiveshell import InteractiveShell
shell = InteractiveShell.instance()
shell.Completer.use_jedi = False
shell.run_cell('''
import objdb
from tests.models import Person
db = objdb.DB("data.fs")
with db.transaction() as connection:
    for number in range(30):
        connection.root()[f"name {number}"] = Person(f"Ann {number}")
connection = db.open()
connection.cacheMinimize()
ann = connection.root()["name 3"]
''')
assert shell.user_ns["ann"]._p_changed is None
print(shell.complete("ann.", "ann.")[1])
for name in (
    "connection.root()", "objdb.PersistentList(range(100))", "db.storage", "connection.root",
):
    print(shell.display_formatter.format(eval(name, shell.user_ns))[0]["text/plain"])
shell.run_cell("connection.close(); db.close()")
"""


def test_a_session(tmp_path: Path) -> None:
    """What is completed and shown in a session of IPython."""
    done = subprocess.run(
        [sys.executable, "-c", SESSION], cwd=tmp_path, capture_output=True, text=True, timeout=100,
        env={"PYTHONPATH": str(Path(__file__).parents[1]), "HOME": str(tmp_path), "PATH": ""},
    )
    assert done.returncode == 0, done.stderr
    completed, root, items, storage, names = done.stdout.splitlines()
    assert ".name'" in completed and "_p_activate" not in completed
    assert root.startswith("{'name 0': <Person, not loaded>") and root.endswith("… 20 more}")
    assert items == "[0, 1, 2, 3, 4, 5, 6, 7, 8, 9, … 90 more]"
    assert storage == "<FileStorage data.fs>" and names.startswith("<root: name 0 name 1")


def test_help() -> None:
    """`help(objdb)` begins with what a user does."""
    text = pydoc.plain(pydoc.render_doc(objdb))
    first = text[: text.index("PACKAGE CONTENTS")]
    assert "objdb.DB(" in first and "docs/quickstart.md" in first and "loadpath" not in first


def test_reprs(tmp_path: Path) -> None:
    """A storage says what it is, and whether it is closed."""
    for make in (objdb.FileStorage, objdb.SQLiteStorage, objdb.PickledMappingStorage):
        storage = make(tmp_path / make.__name__)
        assert repr(storage) == f"<{make.__name__} {tmp_path / make.__name__}>"
        storage.close()
        assert repr(storage).endswith(", closed>")
