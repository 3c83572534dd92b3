"""The plugin of pytest that runs the conformance suite over any storage.

    pytest --objdb-storage=mypackage.storage:open_storage

The part after the colon is a function or class. It is called with a directory (a `pathlib.Path`,
not made yet) and returns the storage; called again with the same one, it opens the same storage.
"""

from __future__ import annotations

import importlib
import sys
import tempfile
from collections.abc import Callable
from functools import reduce
from pathlib import Path
from typing import Any

import pytest

Factory = Callable[[Path], Any]
SUITE = Path(__file__).with_name("suite.py")
_REWRITTEN = (
    "conformance", "copying", "helpers", "history", "packing", "suite", "threads", "undoing",
    "undolog", "versions",
)
factory_key = pytest.StashKey[Factory]()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options."""
    group = parser.getgroup("objdb", "objdb: tests of storages")
    group.addoption(
        "--objdb-storage", metavar="MODULE:FUNCTION",
        help="Run objdb's conformance suite over the storage that this function returns for a "
        "directory (a pathlib.Path).",
    )
    group.addoption(
        "--objdb-forgets", action="store_true",
        help="The storage keeps nothing when it is closed.",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Find the function, try it, and let the suite be collected if nothing else is named."""
    spec = config.getoption("--objdb-storage")
    if spec is None:
        return
    for name in _REWRITTEN:
        pytest.register_assert_rewrite(f"objdb.testing.{name}")
    here = str(config.invocation_params.dir)
    if here not in sys.path:
        sys.path.insert(0, here)
    factory = find_factory(spec)
    with tempfile.TemporaryDirectory(prefix="objdb-storage-") as directory:
        try_factory(spec, factory, Path(directory) / "storage")
    config.stash[factory_key] = factory
    if config.args_source is not pytest.Config.ArgsSource.ARGS:
        config.args = [str(SUITE)]


def find_factory(spec: str) -> Factory:
    """Return what `module:name` names; `pytest.UsageError` if it is nothing that can be called."""
    module_name, colon, path = spec.partition(":")
    if not (module_name and colon and path):
        raise _wrong(spec, "it has the form MODULE:FUNCTION")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise _wrong(spec, f"{module_name} cannot be imported: {error}") from error
        raise _wrong(spec, f"there is no module {error.name}") from error
    except Exception as error:
        raise _wrong(
            spec, f"{module_name} cannot be imported: {type(error).__name__}: {error}"
        ) from error
    try:
        found: Any = reduce(getattr, path.split("."), module)
    except AttributeError:
        raise _wrong(spec, f"the module {module_name} has no {path}") from None
    if not callable(found):
        raise _wrong(spec, f"{path} is {found!r}, which cannot be called")
    factory: Factory = found
    return factory


def try_factory(spec: str, factory: Factory, directory: Path) -> None:
    """Open and close a storage; `pytest.UsageError` if that fails, or gives something else."""
    from objdb.interfaces import IStorage

    try:
        storage = factory(directory)
    except Exception as error:
        raise _wrong(
            spec, f"called with a directory, it raised {type(error).__name__}: {error}"
        ) from error
    if not IStorage.providedBy(storage):
        raise _wrong(
            spec, f"it returned {storage!r}, which does not declare objdb.interfaces.IStorage"
        )
    try:
        storage.close()
    except Exception as error:
        raise _wrong(
            spec, f"its storage could not be closed: {type(error).__name__}: {error}"
        ) from error


def _wrong(spec: str, what: str) -> pytest.UsageError:
    return pytest.UsageError(f"--objdb-storage={spec}: {what}")


@pytest.fixture
def objdb_storage_factory(request: pytest.FixtureRequest) -> Factory:
    """The function that --objdb-storage names."""
    if factory_key not in request.config.stash:
        pytest.skip("no --objdb-storage was given")
    return request.config.stash[factory_key]
