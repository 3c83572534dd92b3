"""User code is checked by mypy and pyright, at their strictest."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
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


Lines = dict[str, list[int]]  # by the name of a file


def mypy(files: list[Path], folder: Path) -> Lines:
    """The lines in which mypy finds something."""
    done = subprocess.run(
        [
            sys.executable, "-m", "mypy", "--strict", "--config-file=", "--follow-imports=silent",
            "--no-error-summary", "--cache-dir", str(folder), *map(str, files),
        ],
        cwd=ROOT, capture_output=True, text=True, timeout=100,
    )
    assert done.returncode in (0, 1), done.stdout + done.stderr
    return {
        file.name: [int(at) for at in re.findall(rf"{file.name}:(\d+): error", done.stdout)]
        for file in files
    }


def pyright(files: list[Path], folder: Path) -> Lines:
    """The lines in which pyright finds something."""
    for file in files:
        shutil.copy(file, folder)
    settings = folder / "pyrightconfig.json"
    settings.write_text(json.dumps({
        "include": [file.name for file in files], "typeCheckingMode": "strict",
        "extraPaths": [str(ROOT)], "pythonVersion": "3.10",
    }))
    done = subprocess.run(
        [
            sys.executable, "-m", "pyright", "--outputjson", "--project", str(settings),
            "--pythonpath", sys.executable,
        ],
        capture_output=True, text=True, timeout=100,
    )
    found = json.loads(done.stdout)["generalDiagnostics"]
    errors = [each for each in found if each["severity"] == "error"]
    return {
        file.name: [
            each["range"]["start"]["line"] + 1 for each in errors
            if Path(each["file"]).name == file.name
        ]
        for file in files
    }


@pytest.mark.parametrize("checker", [mypy, pyright])
def test_what_is_found(checker: Callable[[list[Path], Path], Lines], tmp_path: Path) -> None:
    """An application that is right has no errors, and in another one each mistake is found."""
    assert len(MISTAKES) == 7
    found = checker([HERE / "application.py", HERE / "mistakes.py"], tmp_path)
    assert found["application.py"] == []
    assert set(found["mistakes.py"]) == set(MISTAKES)


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
