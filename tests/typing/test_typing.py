"""User code is checked by mypy and pyright, at their strictest."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import objdb
from objdb import btrees
from tests.typing import application

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
MISTAKES = [
    number for number, line in enumerate((HERE / "mistakes.py").read_text().splitlines(), 1)
    if "# wrong" in line
]


def mypy(file: Path, folder: Path) -> list[int]:
    """The lines in which mypy finds something."""
    done = subprocess.run(
        [
            sys.executable, "-m", "mypy", "--strict", "--config-file=", "--follow-imports=silent",
            "--no-error-summary", "--cache-dir", str(folder), str(file),
        ],
        cwd=ROOT, capture_output=True, text=True, timeout=100,
    )
    assert done.returncode in (0, 1), done.stdout + done.stderr
    return [int(found) for found in re.findall(rf"{file.name}:(\d+): error", done.stdout)]


def pyright(file: Path, folder: Path) -> list[int]:
    """The lines in which pyright finds something."""
    shutil.copy(file, folder)
    settings = folder / "pyrightconfig.json"
    settings.write_text(json.dumps({
        "include": [file.name], "typeCheckingMode": "strict", "extraPaths": [str(ROOT)],
        "pythonVersion": "3.10",
    }))
    done = subprocess.run(
        [
            sys.executable, "-m", "pyright", "--outputjson", "--project", str(settings),
            "--pythonpath", sys.executable,
        ],
        capture_output=True, text=True, timeout=100,
    )
    found = json.loads(done.stdout)["generalDiagnostics"]
    return [each["range"]["start"]["line"] + 1 for each in found if each["severity"] == "error"]


@pytest.mark.parametrize("checker", [mypy, pyright])
def test_an_application(checker: object, tmp_path: Path) -> None:
    """An application that is right has no errors."""
    assert callable(checker) and checker(HERE / "application.py", tmp_path) == []


@pytest.mark.parametrize("checker", [mypy, pyright])
def test_mistakes(checker: object, tmp_path: Path) -> None:
    """Each mistake is found."""
    assert len(MISTAKES) == 7
    assert callable(checker) and set(checker(HERE / "mistakes.py", tmp_path)) == set(MISTAKES)


def test_it_runs(tmp_path: Path) -> None:
    """What was checked does what it says."""
    application.main(tmp_path)
    with objdb.DB(tmp_path / "people.fs") as db:
        assert asyncio.run(application.names(db)) == ["Ann", "Bob"]
        with db.transaction() as connection:
            assert list(application.register_of(connection).born(1980, 1986)) == ["Bob"]


def test_the_trees_are_those_of_the_package() -> None:
    """Every name is a class of `BTrees`, with the methods that it is said to have."""
    from BTrees.Length import Length
    from BTrees.OOBTree import OOBTree

    assert btrees.OOBTree is OOBTree and btrees.Length is Length
    for name in btrees.__all__:
        assert getattr(btrees, name).__name__.removesuffix("Py") == name
    with pytest.raises(AttributeError, match="XXBTree"):
        _ = btrees.XXBTree  # type: ignore[attr-defined]
    types = Path(btrees.__file__).with_suffix(".pyi").read_text()
    said = re.findall(r"^    def ([a-z]\w*)", types, re.MULTILINE)
    methods = {*dir(OOBTree), *dir(btrees.OOTreeSet), *dir(Length)}
    assert len(said) > 20 and set(said) <= methods
