"""The directory of a module's safe: `safe/<node>.<cage>.<module>/`, in the current directory.

node     the host's name, so that several hosts can share a directory; or OBJDB_NODE
cage     the application, so that two applications with one module do not share its safe: the name
         of the program's main module; or OBJDB_CAGE
module   its full name; for the module run as `__main__`, the main module's name

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
    """Return the directory of the safes, as an absolute path."""
    return Path(os.path.abspath(directory or os.environ.get("OBJDB_SAFE") or "safe"))


def folder_name(node: str | None, cage: str | None, module: str) -> str:
    """Return the name of a safe's directory. `UsageError` for an empty part."""
    node = node if node is not None else os.environ.get("OBJDB_NODE") or os.uname().nodename
    cage = cage if cage is not None else os.environ.get("OBJDB_CAGE") or main_name()
    for what, name in (("node", node), ("cage", cage), ("module", module)):
        if not isinstance(name, str) or not name:
            raise UsageError(f"the {what} is {name!r}; it must be a name")
    return f"{_without_dots(node)}.{_without_dots(cage)}.{quote(module, safe='')}"


def parts_of(name: str) -> tuple[str, str, str]:
    """Return node, cage and module of a safe's directory. ValueError for any other name."""
    node, cage, module = name.split(".", 2)
    return unquote(node), unquote(cage), unquote(module)


def module_name(name: str) -> str:
    """Return the module part of a safe's name, given the module's `__name__`."""
    # `__mp_main__` is what the main module is called in processes of multiprocessing.
    return main_name() if name in ("__main__", "__mp_main__") else name


def main_name() -> str:
    """Return the main module's name: as given to `python -m`, else that of its file without the
    suffix, or of the directory or archive that is run. `interactive` if there is no file."""
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
