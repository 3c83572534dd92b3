"""Whose safe is whose, what keeps it, and what stands in the way of opening it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from objdb.errors import (
    CorruptedDataError,
    FileFormatError,
    MissingPackageError,
    ObjdbError,
    POSError,
    SafeError,
    StorageError,
    UsageError,
)
from objdb.safe import Safe, list_safes, module_safe, open_safe
from objdb.safe.naming import folder_name, parts_of
from tests.safe.conftest import Open
from tests.safe.test_processes import in_child

ROOT = Path(__file__).parents[2]
NODE = os.uname().nodename
names = st.text(st.characters(exclude_categories=["Cs"]), min_size=1)

ASK = "from objdb.safe import module_safe\ndef ask(**options): return module_safe(**options)\n"


def module(name: str) -> Any:
    """A module of that name whose `ask` asks for its safe."""
    made = ModuleType(name)
    exec(ASK, made.__dict__)
    return made


def run(folder: Path, *words: str, check: bool = True, **environment: str) -> str:
    """Run Python in a folder, and return what it printed."""
    variables = {
        name: value for name, value in os.environ.items() if not name.startswith("OBJDB_")
    }
    found = subprocess.run(
        [sys.executable, *words], cwd=folder, capture_output=True, text=True, timeout=60,
        env={**variables, "PYTHONPATH": str(ROOT), **environment},
    )
    assert not check or found.returncode == 0, found.stderr
    return found.stdout.strip() + found.stderr.strip() if not check else found.stdout.strip()


@given(node=names, cage=names, module=names)
def test_names_are_reversible(node: str, cage: str, module: str) -> None:
    """A directory's name tells the three parts again, whatever characters they have."""
    name = folder_name(node, cage, module)
    assert parts_of(name) == (node, cage, module)
    assert set(name) <= set("%-_.~") | {chr(n) for n in range(128) if chr(n).isalnum()}


def test_each_module_has_its_own(opened: Open) -> None:
    """Two modules have two safes; one gets the same open object every time."""
    one, other = module("pkg.one"), module("other")
    safe = one.ask(cage="app", node="host")
    assert safe.path == Path("safe/host.app.pkg.one").absolute()
    assert one.ask(cage="app", node="host") is safe
    assert other.ask(cage="app", node="host") is not safe
    safe["a"] = 1
    assert "a" not in other.ask(cage="app", node="host")
    assert one.ask(cage="app 2", node="a.b").path.name == "a%2Eb.app%202.pkg.one"
    with module_safe(cage="app", node="host") as mine:
        assert mine.path.name == f"host.app.{__name__}"
    assert mine.is_closed
    again = module_safe(cage="app", node="host")
    assert not again.is_closed
    for info in list_safes():
        open_safe(info.path).close()


def test_environment(opened: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Environment variables name node, cage, directory and backend; arguments come first."""
    for name, value in {
        "OBJDB_SAFE": str(tmp_path / "elsewhere"), "OBJDB_CAGE": "zoo", "OBJDB_NODE": "n",
        "OBJDB_SAFE_BACKEND": "sqlite",
    }.items():
        monkeypatch.setenv(name, value)
    with module("m").ask() as safe:
        assert safe.path == tmp_path / "elsewhere" / "n.zoo.m"
        assert safe.backend == "sqlite"
    with module("m").ask(directory="d", cage="c", node="k", backend="berkeley") as safe:
        assert safe.path == tmp_path / "d" / "k.c.m"
        assert safe.backend == "berkeley"


def test_main_module(tmp_path: Path) -> None:
    """The main module goes by its file's name, by the name given to -m, or its package's."""
    (tmp_path / "script.py").write_text(
        "import mod\nfrom objdb.safe import module_safe\n"
        "print(module_safe().path.name, mod.safe.path.name)"
    )
    (tmp_path / "mod.py").write_text("from objdb.safe import module_safe\nsafe = module_safe()")
    package = tmp_path / "pkg" / "sub"
    package.mkdir(parents=True)
    (package / "__main__.py").write_text((tmp_path / "script.py").read_text())
    node = NODE.replace(".", "%2E")
    assert run(tmp_path, "script.py") == f"{node}.script.script {node}.script.mod"
    assert run(tmp_path, "-m", "script") == f"{node}.script.script {node}.script.mod"
    assert run(tmp_path, "-m", "pkg.sub") == f"{node}.pkg%2Esub.pkg.sub {node}.pkg%2Esub.mod"
    asks = (tmp_path / "script.py").read_text()
    assert run(tmp_path, "-c", asks) == f"{node}.interactive.interactive {node}.interactive.mod"
    (tmp_path / "pkg" / "__main__.py").write_text("import sys; sys.path.append('.')\n" + asks)
    assert run(tmp_path, "pkg") == f"{node}.pkg.pkg {node}.pkg.mod"


def test_closed_at_exit(tmp_path: Path, backend: str) -> None:
    """What a program put in is there for the next one, closed or not; handlers at exit, too, can
    use it."""
    (tmp_path / "script.py").write_text(
        "import atexit, sys\nfrom objdb.safe import module_safe\n"
        "safe = module_safe(backend=sys.argv[1])\n"
        "print(sorted(safe))\nsafe['a'] = 1\natexit.register(safe.setdefault, 'b', 2)\n"
    )
    assert run(tmp_path, "script.py", backend) == "[]"
    assert run(tmp_path, "script.py", backend) == "['a', 'b']"


def test_default_backend(opened: Open) -> None:
    """Berkeley DB, unless told; a safe that is there stays with what made it."""
    assert opened(name="n.c.a").backend == "berkeley"
    assert opened("sqlite", name="n.c.b").backend == "sqlite"
    opened(name="n.c.b").close()
    assert opened("file", name="n.c.b").backend == "sqlite"
    with pytest.raises(UsageError, match="backend 'gdbm'; it can be berkeley, sqlite, file"):
        opened("gdbm")
    with pytest.raises(UsageError, match="the cage is ''"):
        module_safe(cage="")


def test_without_the_package(opened: Open, tmp_path: Path) -> None:
    """Without berkeleydb, a new safe is SQLite's, and one of Berkeley DB's names what to
    install."""
    opened("berkeley", name="n.c.old")["a"] = 1
    script = (
        "import sys; sys.modules['berkeleydb'] = None\n"
        "from objdb.errors import MissingPackageError\n"
        "from objdb.safe import module_safe, open_safe\n"
        "print(module_safe(cage='c').backend)\n"
        "for ask in (lambda: open_safe('safe/n.c.old'),\n"
        "            lambda: module_safe(cage='d', backend='berkeley')):\n"
        "    try: ask()\n"
        "    except MissingPackageError as error: print(error.package, error.extra, error)\n"
    )
    lines = run(tmp_path, "-c", script).splitlines()
    assert lines[0] == "sqlite" and len(lines) == 3
    for line in lines[1:]:
        assert line.startswith("berkeleydb objdb[berkeley]")
        assert "pip install 'objdb[berkeley]'" in line
    assert opened(name="n.c.old") == {"a": 1}
    assert issubclass(MissingPackageError, SafeError) and issubclass(SafeError, POSError)


def test_foreign_directory(opened: Open, tmp_path: Path) -> None:
    """A directory of something else is left alone."""
    folder = tmp_path / "safe" / "n.c.m"
    folder.mkdir(parents=True)
    (folder / "thesis.txt").write_text("mine")
    with pytest.raises(FileFormatError, match=r"not a safe: it has no safe\.json, but other files"):
        opened(name="n.c.m")
    assert [path.name for path in folder.iterdir()] == ["thesis.txt"]
    (tmp_path / "safe" / "n.c.file").write_text("mine")
    with pytest.raises(SafeError, match="cannot be opened"):
        opened(name="n.c.file")


def test_marker(opened: Open) -> None:
    """A marker that cannot be read, or of a later format, is an error that says so."""
    safe = opened("sqlite")
    safe["a"] = 1
    safe.close()
    marker = safe.path / "safe.json"
    good = marker.read_text()
    for content, match in (
        ("", "Restore it"), ("[]", "Restore it"),
        (json.dumps({"format": 2, "backend": "lmdb"}), "newer release"),
    ):
        marker.write_text(content)
        with pytest.raises(FileFormatError, match=match):
            opened()
    marker.write_text(good)
    assert opened() == {"a": 1}


def test_half_made(opened: Open, tmp_path: Path) -> None:
    """Who died while making a safe leaves nothing in the way."""
    folder = tmp_path / "safe" / "n.c.m"
    folder.mkdir(parents=True)
    (folder / "lock").touch()
    (folder / "safe.json.new").write_text("{")
    safe = opened(name="n.c.m")
    safe["a"] = 1
    assert safe == {"a": 1}


def test_no_permission(opened: Open, backend: str, tmp_path: Path) -> None:
    """Where the operating system says no, the error says where, and what to do."""
    safe = opened(backend)
    safe["a"] = 1
    safe.close()
    (tmp_path / "new").mkdir(mode=0o555)

    def work() -> None:
        if os.getuid() == 0:
            os.setuid(65534)
        for path in (safe.path, tmp_path / "new" / "n.c.m"):
            with pytest.raises(SafeError, match="OBJDB_SAFE"):
                open_safe(path)

    safe.path.chmod(0o000)
    in_child(work)
    safe.path.chmod(0o755)
    assert opened() == {"a": 1}


def test_files_that_may_not_be_written(opened: Open, backend: str, tmp_path: Path) -> None:
    """A safe that may only be read cannot be opened, and the error is one of objdb's."""
    if os.getuid() != 0:
        pytest.skip("needs another user to be")
    safe = opened(backend)
    safe["a"] = 1
    safe.close()
    for folder in [tmp_path, *list(tmp_path.parents)[:3]]:
        folder.chmod(0o755)
    for file in safe.path.iterdir():
        file.chmod(0o644)

    def work() -> None:
        os.setuid(65534)
        with pytest.raises((SafeError, StorageError)):
            open_safe(safe.path)["b"] = 2

    in_child(work)
    assert opened() == {"a": 1}


@pytest.mark.abandons
def test_damaged(opened: Open, backend: str) -> None:
    """Damaged files are an error that says where they are, when they are read."""
    safe = opened(backend)
    safe.update((number, os.urandom(100)) for number in range(200))
    safe.close()
    (path,) = (safe.path / name for name in ("safe.bdb", "safe.sqlite", "safe.fs")
               if (safe.path / name).exists())
    content = bytearray(path.read_bytes())
    content[5000:] = os.urandom(len(content) - 5000)
    path.write_bytes(content)

    def read(safe: Safe) -> None:
        for _ in safe.items():
            pass

    with pytest.raises(CorruptedDataError, match=r"host\.app\.module"):
        read(opened())


@pytest.mark.parametrize("name", ["", "a\0b", "a\ud800"], ids=ascii)
def test_no_name(name: str) -> None:
    """What no directory can have as its name is refused."""
    with pytest.raises(UsageError, match=r"is empty|is not a path"):
        open_safe(name)


def test_a_missing_file(opened: Open, backend: str) -> None:
    """A safe whose file was removed is not a new one: it is an error that says which file, and
    with it the safe is whole again."""
    safe = opened(backend)
    safe["a"] = 1
    safe.close()
    (path,) = (safe.path / name for name in ("safe.bdb", "safe.sqlite", "safe.fs")
               if (safe.path / name).exists())
    moved = path.rename(safe.path.parent / "moved")
    for _ in range(2):
        with pytest.raises(CorruptedDataError, match=f"its file {path.name} is missing"):
            opened()
    moved.rename(path)
    assert opened() == {"a": 1}


def test_a_safe_that_was_not_finished(opened: Open, backend: str) -> None:
    """One that a crash left with nothing but what it is to be kept by is finished."""
    safe = opened(backend)
    safe.close()
    marker = json.loads((safe.path / "safe.json").read_text())
    assert marker.pop("complete")
    for file in safe.path.iterdir():
        file.unlink()
    (safe.path / "safe.json").write_text(json.dumps(marker))
    safe = opened()
    safe["a"] = 1
    safe.close()
    assert opened() == {"a": 1}


@pytest.mark.abandons
@pytest.mark.parametrize("spoilt", ["gate", "users", "safe.bdb", "safe.sqlite"])
def test_opening_that_fails(opened: Open, tmp_path: Path, spoilt: str) -> None:
    """What cannot be opened leaves nothing open that keeps others out, or waiting."""
    safe = opened("sqlite" if spoilt == "safe.sqlite" else "berkeley")
    safe.close()
    path = safe.path / spoilt
    path.unlink()
    if spoilt in ("gate", "users"):
        path.mkdir()
    else:
        path.write_bytes(b"something else" * 1000)
    with pytest.raises(ObjdbError) as raised:
        opened()
    left = {Path(file).name for file in open_files() if file.startswith(str(safe.path))}
    assert not left & {"gate", "users", "safe.sqlite"} and raised.tb is not None


def open_files() -> Iterator[str]:
    """Yield the files that this process has open."""
    for entry in list(Path("/proc/self/fd").iterdir()):
        with suppress(OSError):
            yield os.readlink(entry)


@pytest.mark.abandons
def test_missing_logs(opened: Open) -> None:
    """A safe of Berkeley DB whose log was removed is an error that changes nothing: with the log,
    it is whole again."""
    safe = opened("berkeley")
    safe.update((number, "x" * 100) for number in range(100))
    safe.close()
    (log,) = safe.path.glob("log.*")
    moved = log.rename(safe.path.parent / "log")
    for _ in range(2):
        with pytest.raises(CorruptedDataError, match="damaged or missing"):
            opened()
    for made in safe.path.glob("log.*"):
        made.unlink()
    moved.rename(log)
    assert len(opened()) == 100


@pytest.mark.parametrize("part", ["all safes", "its own"])
@pytest.mark.parametrize("whose", ["everybody's", "another user's"])
def test_a_directory_of_somebody_else(
    part: str, whose: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A safe that is found in the current directory is refused if others can write there; one that
    is named is opened."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("OBJDB_SAFE", raising=False)
    name = folder_name(None, "cage", __name__)
    with open_safe(f"safe/{name}", backend="sqlite") as safe:
        safe["a"] = 1
    folder = tmp_path / "safe" if part == "all safes" else tmp_path / "safe" / name
    if whose == "everybody's":
        folder.chmod(0o777)
    else:  # seen from another user, who is not root
        monkeypatch.setattr(os, "geteuid", lambda: os.stat(folder).st_uid + 1)
        if os.stat(folder).st_uid == 0:
            os.chown(folder, 12345, -1)
    with pytest.raises(SafeError, match="runs code that its values name"):
        module_safe(cage="cage")
    with module_safe(cage="cage", directory="safe") as safe:
        assert safe["a"] == 1


@pytest.mark.parametrize("is_there", [True, False])
def test_who_can_read_a_safe(backend: str, is_there: bool, tmp_path: Path) -> None:
    """Only who made it: values are as they were given. A directory that was a safe before stays as
    somebody made it."""
    folder = tmp_path / "safe"
    if is_there:
        folder.mkdir(mode=0o755)
    with closing(open_safe(folder, backend=backend)) as safe:
        safe["secret"] = 1
        assert folder.stat().st_mode & 0o777 == 0o700
    folder.chmod(0o750)
    with closing(open_safe(folder)) as safe:
        assert safe["secret"] == 1
        assert folder.stat().st_mode & 0o777 == 0o750
