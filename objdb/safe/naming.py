"""Where a module's safe is: `safe/<node>.<cage>.<module>/`, under the current directory.

node     the host's name, so that several hosts can share a directory; or OBJDB_NODE
cage     the application, so that two that use one module do not share its safe: the name of the
         program's main module; or OBJDB_CAGE
module   its full name; for the one that is run as `__main__`, the main module's name

Characters other than letters, digits, `_`, `-` and `~` are written as in URLs (%20), dots in node
and cage as well, so that the three parts can be told from the name. OBJDB_SAFE is another
directory in place of `safe`.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from urllib.parse import quote, unquote

from objdb.errors import UsageError


def directory_of_safes(directory: str | os.PathLike[str] | None = None) -> Path:
    """Return the directory that has the safes, as an absolute path."""
    return Path(os.path.abspath(directory or os.environ.get("OBJDB_SAFE") or "safe"))


def folder_name(node: str | None, cage: str | None, module: str) -> str:
    """Return the name of a safe's directory. `UsageError` for an empty part."""
    node = node if node is not None else os.environ.get("OBJDB_NODE") or os.uname().nodename
    cage = cage if cage is not None else os.environ.get("OBJDB_CAGE") or main_name()
    for what, name in (("node", node), ("cage", cage), ("module", module)):
        if not isinstance(name, str) or not name:
            raise UsageError(f"the {what} is {name!r}; it is a name")
    return f"{_without_dots(node)}.{_without_dots(cage)}.{quote(module, safe='')}"


def parts_of(name: str) -> tuple[str, str, str]:
    """Return node, cage and module of a safe's directory. ValueError if it has no such name."""
    node, cage, module = name.split(".", 2)
    return unquote(node), unquote(cage), unquote(module)


def module_name(name: str) -> str:
    """Return the name by which a module's safe goes, given its `__name__`."""
    # `__mp_main__` is what the main module is called in processes of multiprocessing.
    return main_name() if name in ("__main__", "__mp_main__") else name


def main_name() -> str:
    """Return the main module's name: as given to `python -m`, else its file's, without the
    ending; a directory or archive that is run goes by its name. `interactive` if there is no
    file."""
    main = sys.modules["__main__"]
    spec = getattr(main, "__spec__", None)
    if spec is not None and spec.name != "__main__":
        return str(spec.name).removesuffix(".__main__")
    file = getattr(main, "__file__", None)
    if not file:
        return "interactive"
    path = Path(os.path.abspath(file))
    return path.parent.stem if path.stem == "__main__" else path.stem


def _without_dots(name: str) -> str:
    return quote(name, safe="").replace(".", "%2E")
