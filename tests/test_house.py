"""The house as the map in objdb/__init__.py draws it: what is in it, which way imports go, and how
large rooms may be."""

from __future__ import annotations

import ast
import importlib
import inspect
import pkgutil
import re
import subprocess
import sys
from pathlib import Path
from types import FunctionType

import pytest
from zope.interface import providedBy

import objdb
import objdb_zeo
from objdb import interfaces
from tests.storages import STORAGES

ROOT = Path(objdb.__file__).parent
MODULES = sorted(ROOT.rglob("*.py"))
ZEO = ROOT.parent / "objdb_zeo"
ZEO_MODULES = sorted(ZEO.rglob("*.py"))
# Both houses.
ALL_MODULES = [*MODULES, *ZEO_MODULES]

FUNCTIONS = ast.FunctionDef | ast.AsyncFunctionDef
LEAVES = {"ids", "errors", "interfaces", "forks", "_accelerator"}
# Which parts of objdb each part may import, itself aside.
ALLOWED = {
    "ids": set(),
    "version": set(),
    "errors": {"ids"},
    "interfaces": set(),
    "forks": set(),
    "typed": set(),
    "btrees": {"typed"},
    "notebook": set(),
    "records": LEAVES,
    "storage": LEAVES,
    "connection": LEAVES | {"records", "typed"},
    "database": LEAVES | {"connection", "records", "storage"},
    "check": LEAVES | {"records", "storage", "database"},
    "conflictfree": LEAVES | {"records"},
    "safe": LEAVES | {"storage", "database"},
    "tools": LEAVES | {"records", "storage", "database", "check", "safe", "version", "objdb_zeo"},
    "__main__": {"tools"},
    "testing": LEAVES | {"storage", "check"},
    "__init__": LEAVES | {"connection", "database", "storage", "notebook", "typed", "version"},
}
# Their methods are described in safe/table.py.
SAFE_TABLES = {ROOT / "safe" / name for name in ("berkeley.py", "file.py", "sqlite.py")}
# Names that are camelCase and in no interface, with where they come from.
CAMEL_CASE = {
    # persistence and transactions: what `persistent` and `transaction` call
    "newTransaction", "beforeCompletion", "afterCompletion", "readCurrent", "registerSynch",
    "unregisterSynch", "supportsTransactionalUndo", "lastTransaction", "onCloseCallback",
    "setDebugInfo", "getDebugInfo",
    # ZODB's cache functions
    "setCacheSize", "getCacheSize", "setCacheSizeBytes", "getCacheSizeBytes",
    "setCacheDeactivateAfter", "cacheFullSweep", "cacheMinimize", "cacheSize", "cacheDetail",
    "cacheDetailSize", "cacheExtremeDetail", "cacheGC", "setPoolSize", "getPoolSize",
    "invalidateCache",
}


def part_of(path: Path) -> str:
    """The part of the house a module is in."""
    relative = path.relative_to(ROOT)
    return relative.parts[0] if len(relative.parts) > 1 else relative.stem


def imports_of(path: Path, *, top_level: bool = False) -> set[str]:
    """The objdb modules a module imports; with *top_level*, only when it is itself imported."""
    tree = ast.parse(path.read_text())
    nodes = tree.body if top_level else list(ast.walk(tree))
    found = set()
    for node in nodes:
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("objdb"):
            found.add(node.module)
        elif isinstance(node, ast.Import):
            found |= {name.name for name in node.names if name.name.startswith("objdb")}
    return {name for name in found if name}


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_go_one_way(path: Path) -> None:
    """A module imports only from the parts that its part may know."""
    part = part_of(path)
    for name in imports_of(path):
        if name == "objdb":  # a module of it
            continue
        first, *rest = name.split(".")
        other = first if first != "objdb" else rest[0] if rest else "__init__"
        assert other == part or other in ALLOWED[part], f"{path} imports {name}"


def test_no_cycles() -> None:
    """No module imports itself, by whatever way round; not for type checkers either."""
    graph = {}
    for path in MODULES:
        name = ".".join(("objdb", *path.relative_to(ROOT).with_suffix("").parts))
        graph[name.removesuffix(".__init__")] = imports_of(path, top_level=name == "objdb.__init__")

    done: set[str] = set()

    def visit(name: str, above: tuple[str, ...]) -> None:
        assert name not in above, f"cycle: {' → '.join((*above, name))}"
        if name not in done:
            for other in graph.get(name, ()):
                visit(other, (*above, name))
            done.add(name)

    for name in graph:
        visit(name, ())


def test_the_map() -> None:
    """The map in the package names every module, in its folder; the one in the documentation is the
    same."""
    comments = [
        line.removeprefix("#").removeprefix("   ").rstrip()
        for line in (ROOT / "__init__.py").read_text().splitlines() if line.startswith("#")
    ]
    drawn = "\n".join(comments[comments.index("objdb/") : comments.index("", 2)])
    assert f"```text\n{drawn}\n```" in (ROOT.parent / "docs/architecture/index.md").read_text()
    folders: dict[str, str] = {}
    above: list[tuple[int, str]] = []
    for line in drawn.splitlines():
        indent, name = len(line) - len(line.lstrip()), line.split()[0]
        if name.endswith("/"):
            above = [(depth, each) for depth, each in above if depth < indent]
            above.append((indent, name))
        elif indent < 15:
            above = [(depth, each) for depth, each in above if depth < indent]
        folder = "".join(each for _, each in above)
        folders[folder] = folders.get(folder, "") + line + "\n"
    for path in MODULES:
        folder = f"objdb/{path.relative_to(ROOT).parent.as_posix()}/".replace("/./", "/")
        if path.stem not in ("__init__", "__main__") and folder != "objdb/storage/tables/":
            assert re.search(rf"\b{path.stem}\b", folders[folder]), f"{folder}{path.stem}"


@pytest.mark.parametrize("path", ALL_MODULES, ids=lambda path: str(path.relative_to(ROOT.parent)))
def test_rooms_are_small(path: Path) -> None:
    """Modules have at most 500 lines, functions at most 60, and no except without a type."""
    text = path.read_text()
    assert len(text.splitlines()) <= 500
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, FUNCTIONS):
            assert node.end_lineno - node.lineno < 60, node.name
        assert not (isinstance(node, ast.ExceptHandler) and node.type is None)


@pytest.mark.parametrize("path", ALL_MODULES, ids=lambda path: str(path.relative_to(ROOT.parent)))
def test_public_things_say_what_they_are(path: Path) -> None:
    """Every module, and every public class and function in it, has a docstring; methods that an
    interface describes, of a file, lock, file system or safe's table, say it there."""
    tree = ast.parse(path.read_text())
    assert ast.get_docstring(tree), path
    is_seam = path.name in ("files.py", "faults.py") or path in SAFE_TABLES
    for node in tree.body:
        if not isinstance(node, ast.ClassDef | FUNCTIONS) or node.name.startswith("_"):
            continue
        assert ast.get_docstring(node), node.name
        for method in node.body if isinstance(node, ast.ClassDef) else ():
            if isinstance(method, FUNCTIONS) and not method.name.startswith("_"):
                assert is_seam or ast.get_docstring(method), f"{node.name}.{method.name}"


def test_the_other_house() -> None:
    """The map of objdb_zeo names every module of it; the client knows nothing of the server, and
    what talks the protocol knows neither sockets nor the event loop."""
    drawn = (ZEO / "__init__.py").read_text()
    for path in ZEO_MODULES:
        assert path.stem == "__init__" or re.search(rf"\b{path.stem}\b", drawn), path
        named = re.findall(r"^(?:import|from) (\w+)", path.read_text(), re.MULTILINE)
        imported = imports_of(path) | set(named)
        is_protocol = path.parent.name == "protocol"
        if is_protocol or path.stem in ("messages", "errors", "addresses", "cache"):
            assert not imported & {"socket", "asyncio", "select"}, path
        if not is_protocol and path.stem not in ("server", "service", "upkeep", "__init__"):
            assert not any(name.startswith(("objdb_zeo.server", "objdb_zeo.protocol"))
                           for name in imported), path


def test_no_towers() -> None:
    """A class has one class of ours behind it, at most."""
    packages = (objdb.__path__, "objdb."), (objdb_zeo.__path__, "objdb_zeo.")
    for info in (each for package in packages for each in pkgutil.walk_packages(*package)):
        if info.name.endswith("__main__") or info.name.startswith("objdb.testing."):
            continue  # suites of tests are collected from many
        for name, value in vars(importlib.import_module(info.name)).items():
            if isinstance(value, type) and value.__module__ == info.name:
                is_value = issubclass(value, (Exception, tuple))
                assert _levels(value) <= 2 or is_value, name


def _levels(cls: type) -> int:
    ours = [base for base in cls.__bases__ if base.__module__.startswith(("objdb.", "objdb_zeo."))]
    return 1 + max(map(_levels, ours), default=0)


@pytest.mark.parametrize("kind", [*STORAGES, "database", "connection", "work"])
def test_objects_are_small(tmp_path: Path, kind: str) -> None:
    """An object has at most 30 methods through all its classes, beside those that the interfaces
    it declares name."""
    with objdb.DB(STORAGES.get(kind, STORAGES["memory"])(tmp_path)) as db, db.transaction() as c:
        c.root()["a"] = 1
        objects = {"database": db, "connection": c, "work": c.work}
        examined = objects.get(kind, db.storage)
        named = {name for each in providedBy(examined).flattened() for name in each}
        methods = {
            name for cls in type(examined).__mro__ if cls.__module__.startswith("objdb.")
            for name, value in vars(cls).items()
            if isinstance(value, (FunctionType, property, classmethod, staticmethod))
            and not name.startswith("__")
        }
        assert len(methods - named) <= 30, sorted(methods - named)


def test_the_facade() -> None:
    """Everything in __all__ is there, once, and the package says that it is typed."""
    assert len(set(objdb.__all__)) == len(objdb.__all__)
    assert all(hasattr(objdb, name) for name in objdb.__all__)
    assert (ROOT / "py.typed").exists()


def test_camel_case_names_are_the_fields() -> None:
    """A public name in camelCase is one of ZODB's, by interface or by the list."""
    known = set(CAMEL_CASE)
    for interface in vars(interfaces).values():
        if isinstance(interface, type(interfaces.IStorage)):
            known |= set(interface)
    for path in MODULES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, FUNCTIONS) and not node.name.startswith("_"):
                is_camel = node.name != node.name.lower() and "_" not in node.name
                assert not is_camel or node.name in known, f"{path.name}: {node.name}"


def test_import_is_light() -> None:
    """`import objdb` loads neither the command line's libraries, nor those of layers and of
    safes' backends, nor ZODB."""
    script = "import objdb, sys; print(sorted({m.split('.')[0] for m in sys.modules}))"
    loaded = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    ).stdout
    for name in (
        "click", "rich", "ZODB", "pytest", "hypothesis", "berkeleydb", "sqlite3", "cryptography",
        "zstandard", "asyncio", "BTrees",
    ):
        assert repr(name) not in loaded


IN_USE = """
import sys, objdb
with objdb.DB("a.fs") as db:
    db.run(lambda connection: connection.root().update(x=objdb.PersistentMapping()))
    connection = db.open()
    connection.close()
unwanted = "asyncio BTrees ZODB rich click cryptography sqlite3".split()
layers = "compressed encrypted demo before logged readonly".split()
unwanted += [f"objdb.storage.layers.{name}" for name in layers]
unwanted += ["objdb.storage.memory", "objdb.database.settings"]
sys.exit(", ".join(name for name in unwanted if name in sys.modules) or 0)
"""


def test_what_is_not_used_is_not_imported(tmp_path: Path) -> None:
    """A program of threads on a file imports neither asyncio, nor layers, nor other storages."""
    done = subprocess.run(
        [sys.executable, "-c", IN_USE], capture_output=True, text=True, check=False, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr


def test_the_plugin_is_light() -> None:
    """The plugin that pytest loads in every project imports no part of objdb that it does not
    need until a storage is named."""
    script = (
        "import sys, pytest, objdb.testing.plugin\n"
        "print([m for m in sys.modules if m.startswith('objdb.') and m.count('.') > 1], "
        "'asyncio' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout == "['objdb.testing.plugin'] False\n"


def test_names_on_demand() -> None:
    """Each public name, and each part that a program may reach, is there after `import objdb`
    alone; a name that there is not is an AttributeError."""
    script = (
        "import objdb\n"
        "for name in objdb.__all__: getattr(objdb, name)\n"
        "objdb.errors.ObjdbError, objdb.storage, objdb.ids, objdb.database, objdb.check.check\n"
        "assert set(objdb.__all__) <= set(dir(objdb)) and not hasattr(objdb, 'nonsense')"
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)


def test_interfaces_are_described() -> None:
    """Every method of every interface says what it does."""
    for interface in vars(interfaces).values():
        if isinstance(interface, type(interfaces.IStorage)) and interface.__module__.startswith(
            interfaces.__name__
        ):
            assert inspect.getdoc(interface) or interface.__doc__
            for name in interface:
                assert interface[name].__doc__, f"{interface.__name__}.{name}"
