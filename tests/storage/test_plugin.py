"""The plugin of pytest that runs the suite over any storage, and the storage that the docs build
with it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from objdb.testing.plugin import find_factory, try_factory

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "writing-a-storage.md"
BLOCK = re.compile(r"^```python\n(# plainfiles\.py.*?)^```$", re.MULTILINE | re.DOTALL)
FACTORIES = """
import objdb
from objdb.storage.storage import Storage
from plainfiles import PlainFiles, PlainFileStorage

NOTHING = 3

class ForgetfulFiles(PlainFiles):
    def commit(self, transaction):
        super().commit(transaction)
        for oid in transaction.oids:
            if len(self._chains[oid]) > 2:
                self._chains[oid].pop()

def Forgetful(directory):
    return Storage(ForgetfulFiles(directory))

def without_history(directory):
    return objdb.SQLiteStorage(directory, history=False)

def in_memory(directory):
    return objdb.MappingStorage()

def a_dict(directory):
    return {}

def failing(directory):
    raise OSError("no such disk")
"""


def source() -> str:
    """The module that the page builds."""
    return "".join(BLOCK.findall(PAGE.read_text(encoding="utf-8")))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with that module, and another one."""
    (tmp_path / "plainfiles.py").write_text(source(), encoding="utf-8")
    (tmp_path / "others.py").write_text(FACTORIES, encoding="utf-8")
    (tmp_path / "broken.py").write_text("import plainfiles, nonsense", encoding="utf-8")
    return tmp_path


def run(folder: Path, *arguments: str) -> tuple[int, str]:
    """Run pytest in *folder*, as a command; return its exit status and what it printed."""
    done = subprocess.run(
        [
            sys.executable, "-c", "import sys, pytest; sys.exit(pytest.main())", "-W", "error",
            "-p", "objdb.testing.plugin", "-p", "no:cacheprovider", "-p", "no:randomly", "-q",
            *arguments,
        ],
        cwd=folder, env=os.environ | {"PYTHONPATH": str(ROOT), "PYTHONSAFEPATH": "1"},
        capture_output=True, text=True, timeout=110,
    )
    return done.returncode, done.stdout + done.stderr


def test_the_page_is_short() -> None:
    """The storage has less than 150 lines of code, as the page says."""
    lines = [line.strip() for line in source().splitlines()]
    code = [line for line in lines if line and not line.startswith(("#", '"""'))]
    assert 100 < len(code) < 150


def test_the_storage_of_the_page(folder: Path) -> None:
    """It passes the whole suite, and nothing is skipped."""
    status, said = run(folder, "--objdb-storage=plainfiles:PlainFileStorage")
    assert status == 0, said
    assert int(re.search(r"(\d+) passed", said)[1]) > 150
    assert "skipped" not in said


def test_a_broken_storage(folder: Path) -> None:
    """A storage that loses something fails, and it is shown what was expected."""
    status, said = run(
        folder, "--objdb-storage=others:Forgetful", "-k", "reopen or conflict or load"
    )
    assert status == 1
    assert "failed" in said
    assert "test_load_before" in said


def test_what_is_not_declared_is_skipped(folder: Path) -> None:
    """A storage without history passes; what it does not declare is skipped, and why."""
    status, said = run(folder, "--objdb-storage=others:without_history", "-rs")
    assert status == 0, said
    for name in ("History", "Undoable", "Versions"):
        assert f"the storage does not declare IStorage{name}" in said
    assert "IStoragePackable" not in said


def test_a_storage_that_forgets(folder: Path) -> None:
    """With --objdb-forgets nothing is opened again."""
    chosen = ["--objdb-storage=others:in_memory", "-k", "reopen or oids_are_not_used_again"]
    assert run(folder, *chosen)[0] == 1
    status, said = run(folder, *chosen, "--objdb-forgets", "-rs")
    assert status == 0, said
    assert "keeps nothing after it was closed" in said


def test_other_tests_are_named(folder: Path) -> None:
    """Where tests are named, those are run, and no others."""
    (folder / "test_mine.py").write_text("def test_mine(): pass", encoding="utf-8")
    status, said = run(folder, "--objdb-storage=others:in_memory", "test_mine.py")
    assert status == 0
    assert "1 passed" in said
    status, said = run(folder)
    assert "1 passed" in said


@pytest.mark.parametrize(("spec", "what"), [
    ("plainfiles", "it has the form MODULE:FUNCTION"),
    (":PlainFileStorage", "it has the form MODULE:FUNCTION"),
    ("plain:PlainFileStorage", "there is no module plain"),
    ("plainfiles.sub:PlainFileStorage", "there is no module plainfiles.sub"),
    ("broken:open", "broken cannot be imported: No module named 'nonsense'"),
    ("plainfiles:Plain", "the module plainfiles has no Plain"),
    ("others:NOTHING", "NOTHING is 3, which cannot be called"),
    ("others:failing", "called with a directory, it raised OSError: no such disk"),
    ("others:a_dict", "it returned {}, which does not declare objdb.interfaces.IStorage"),
])
def test_wrong_names(
    folder: Path, monkeypatch: pytest.MonkeyPatch, spec: str, what: str
) -> None:
    """What cannot be tested is told in a line that says why."""
    monkeypatch.syspath_prepend(folder)
    modules = set(sys.modules)
    try:
        with pytest.raises(pytest.UsageError) as raised:
            try_factory(spec, find_factory(spec), folder / "storage")
    finally:
        for name in set(sys.modules) - modules:
            del sys.modules[name]
    assert str(raised.value) == f"--objdb-storage={spec}: {what}"


@pytest.mark.parametrize(("spec", "what"), [
    ("plainfiles:Plain", "the module plainfiles has no Plain"),
    ("others:failing", "called with a directory, it raised OSError: no such disk"),
])
def test_wrong_usage(folder: Path, spec: str, what: str) -> None:
    """That line is all that is printed, and the exit code says wrong usage."""
    status, said = run(folder, f"--objdb-storage={spec}")
    assert status == pytest.ExitCode.USAGE_ERROR
    assert said.strip() == f"ERROR: --objdb-storage={spec}: {what}"


def test_half_written_transactions_are_ignored(folder: Path) -> None:
    """What a crash left, before a transaction's own file or in the middle of a pack, is cleared
    up when the storage of the page is opened."""
    script = """
import json, os
import objdb
from objdb.storage.storage import Storage
from plainfiles import PlainFiles, PlainFileStorage
with objdb.DB(PlainFileStorage("data")) as db, db.transaction() as connection:
    connection.root()["a"] = 1
names = set(os.listdir("data"))
oid, tid = "0" * 16, "7" + "0" * 15
open(f"data/{oid}-{tid}", "wb").write(b"\\0half")
open(f"data/{tid}.new", "wb").write(b"half")
with objdb.DB(PlainFileStorage("data")) as db:
    assert dict(db.open().root()) == {"a": 1}
assert set(os.listdir("data")) == names
first = min(name for name in names if "-" in name)
open("data/amend", "w").write(json.dumps({first: None, first[17:]: None}))
with objdb.DB(PlainFileStorage("data")) as db:
    assert dict(db.open().root()) == {"a": 1}
assert set(os.listdir("data")) == names - {first, first[17:]}
open("data/notes.txt", "w").close()
try:
    PlainFileStorage("data")
except objdb.FileFormatError as error:
    print(error)
"""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", script], cwd=folder, text=True, capture_output=True,
        env=os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{folder}"}, timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "data: notes.txt is none of our files\n"
