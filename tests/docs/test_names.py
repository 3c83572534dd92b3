"""What the architecture pages name is there."""

import importlib
import pkgutil
import re
from pathlib import Path

import pytest

import objdb
import objdb_zeo

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted(
    [*(ROOT / "docs" / "architecture").glob("*.md"), *(ROOT / "docs" / "decisions").glob("*.md")]
)


def everything():
    """Return every function and class of objdb, and every method, as `name` and `Class.name`."""
    names = set()
    packages = (objdb.__path__, "objdb."), (objdb_zeo.__path__, "objdb_zeo.")
    for info in (each for package in packages for each in pkgutil.walk_packages(*package)):
        if info.name.startswith(("objdb.testing", "objdb._accelerator")):
            continue
        module = importlib.import_module(info.name)
        for name, value in vars(module).items():
            names.add(name)
            if isinstance(value, type):
                names |= {f"{name}.{attribute}" for attribute in dir(value)} | set(dir(value))
    return names


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.stem)
def test_functions_exist(page):
    """Every function or method that a page names as `name()` is one of objdb's."""
    text = page.read_text(encoding="utf-8")
    named = set(re.findall(r"`(?:\w+\.)?([A-Z]\w*\.\w+|[a-z_]\w*)\(\)`", text))
    python = {"fork", "repr"}
    assert named - everything() - python == set()
