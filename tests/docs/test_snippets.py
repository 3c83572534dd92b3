"""The Python in the README and the docs runs: each file's blocks in order, in an empty folder.

    ```python             runs, in one namespace per file, as the module __main__
    ```python             one whose first line is `# shapes.py` is written to that file instead,
    # shapes.py           and an older module of that name is forgotten;
                          `# shapes.py, continued` adds to it
    ```pycon              runs in the same namespace; what it prints, or raises, is compared
"""

import doctest
import gc
import importlib
import re
import sys
from pathlib import Path
from types import FunctionType, ModuleType

import pytest
import transaction

import objdb
from objdb.check import check
from objdb.safe.opening import _open_safes

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCK = re.compile(r"^```(python|pycon)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
MODULE = re.compile(r"# (\w+)\.py(, continued)?\n")
DOCTEST_OPTIONS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
# What a page needs beyond objdb itself.
NEEDS = {
    "docs/berkeley.md": ["berkeleydb"],
    "docs/django.md": ["django"],
    "docs/fastapi.md": ["fastapi"],
    "docs/flask.md": ["flask"],
    "docs/formats/zeo.md": ["msgpack"],
    "docs/layers.md": ["cryptography", "zstandard"],
    "docs/opening.md": ["cryptography"],
    "docs/serving.md": ["msgpack"],
    "docs/sharing.md": ["msgpack"],
    "docs/writing-a-storage.md": ["cryptography"],
    "docs/zodb.md": ["ZODB"],
}

pytestmark = pytest.mark.filterwarnings("error")


def name_of(page):
    return page.relative_to(ROOT).as_posix()


def write_module(name, source, *, continued=False):
    """Write a module into the current folder, or add to it, and forget the one that had its
    name."""
    with open(f"{name}.py", "a" if continued else "w", encoding="utf-8") as file:
        file.write(source)
    sys.modules.pop(name, None)
    importlib.invalidate_caches()


def run_python(source, page, line, namespace):
    # The empty lines make the line numbers of a traceback those of the page.
    code = compile("\n" * line + source, str(page), "exec")
    FunctionType(code, namespace)()


def run_pycon(source, page, line, namespace):
    test = doctest.DocTestParser().get_doctest(source, {}, name_of(page), str(page), line)
    test.globs = namespace
    assert test.examples, f"{name_of(page)}:{line}: a pycon block without a >>> line"
    said = []
    runner = doctest.DocTestRunner(optionflags=DOCTEST_OPTIONS)
    failed, _ = runner.run(test, out=said.append, clear_globs=False)
    assert not failed, "".join(said)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty folder to run in; modules that are written there are forgotten afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    modules = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - modules:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(tmp_path)):
            del sys.modules[name]


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_the_snippets_run(page, folder, monkeypatch):
    """Every block of a page does what the page says, after the blocks before it."""
    for module in NEEDS.get(name_of(page), []):
        pytest.importorskip(module)
    main = ModuleType("__main__")
    monkeypatch.setitem(sys.modules, "__main__", main)
    try:
        run_page(page, main.__dict__)
    finally:
        transaction.abort()
        forget(main.__dict__)
    check_databases(folder)


def run_page(page, namespace):
    """Run the blocks of *page* in *namespace*."""
    text = page.read_text(encoding="utf-8")
    for block in BLOCK.finditer(text):
        line = text.count("\n", 0, block.start(2))
        kind, source = block.groups()
        module = MODULE.match(source)
        if module:
            write_module(module[1], source, continued=bool(module[2]))
        elif kind == "python":
            run_python(source, page, line, namespace)
        else:
            run_pycon(source, page, line, namespace)


def forget(namespace):
    """Close the databases of a page that did not come to its end, and forget its objects."""
    for value in list(namespace.values()):
        if isinstance(value, (objdb.DB, objdb.FileStorage)):
            value.close()
    for safe in _open_safes.values():
        safe.close()
    namespace.clear()
    gc.collect()


def check_databases(folder):
    """Whatever a page leaves behind is a sound database, closed."""
    for path in sorted(folder.glob("*.fs")):
        with objdb.DB(path) as db:
            assert check(db.storage).problems == [], path.name


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_somewhere(page):
    """Every link to a file, and to a heading in it, names one that is there."""
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if re.match(r"\w+:", target):
            continue
        path, _, heading = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), target
        if heading:
            assert heading in headings(file), target


def headings(page):
    """Return the anchors of a page's headings, as they are commonly made."""
    lines = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", line.lower()).replace(" ", "-") for line in lines}


def test_every_page_can_be_reached():
    """Following links from the README leads to every page of the docs."""
    reached, todo = set(), [ROOT / "README.md"]
    while todo:
        page = todo.pop()
        if page in reached or page.suffix != ".md":
            continue
        reached.add(page)
        for target in re.findall(r"\]\(([^)#\s:]+)", page.read_text(encoding="utf-8")):
            todo.append((page.parent / target).resolve())
    assert set(PAGES) <= reached


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_blocks_are_of_known_kinds(page):
    """Every block says what it is, so that none is left out of the tests by a slip."""
    fences = re.findall(r"^```(.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    assert set(fences[::2]) <= {"python", "pycon", "text", "bash"}
    assert set(fences[1::2]) <= {""}
