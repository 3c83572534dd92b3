"""The parts of a URI: kinds of storages, layers over them, and their parameters.

A package adds its own with an entry point of the group `objdb.storages`, whose name is the scheme,
and which is a `Scheme`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple
from urllib.parse import unquote

from objdb.errors import UsageError
from objdb.ids import tid_from_text

Parser = Callable[[str], Any]
GROUP = "objdb.storages"


class InFolder(NamedTuple):
    """The function for a parameter that is a path, or has one: it is called with the text, and
    with the folder that paths are relative to."""

    parse: Callable[[str, str], Any]


class Scheme(NamedTuple):
    """How a storage is made from a URI: `make(path, parameters)`; of a layer, `make(base,
    parameters)` with the storage it is over.

    *parameters* maps the names that can stand in the query to functions that make a value of a
    text (or raise ValueError), `InFolder` for paths. Those in *many* can be given several times,
    and come as a list.
    """

    make: Callable[[Any, dict[str, Any]], Any]
    parameters: Mapping[str, Parser | InFolder] = {}
    many: tuple[str, ...] = ()
    has_path: bool = True  # relative to the folder of the settings
    has_host: bool = False  # then *path* is what follows the two slashes
    # Raises UsageError for parameters that make no sense, before anything is opened.
    check: Callable[[dict[str, Any]], object] | None = None
    most_below: int = 0  # of a layer: over how many storages it can be; `changes` is the second

    @property
    def is_layer(self) -> bool:
        """Whether it goes over another storage."""
        return self.most_below > 0


def boolean(text: str) -> bool:
    """Return what yes, no and their like stand for; ValueError for anything else."""
    values = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
    if text.lower() not in values:
        raise ValueError(f"{text!r} is neither yes nor no")
    return values[text.lower()]


def _secret(text: str, folder: str) -> bytes:
    """Return the secret in `env:NAME` or `file:PATH`. `UsageError` if the variable is not set;
    ValueError for what is a secret itself, which has no place in a URI."""
    kind, _, name = text.partition(":")
    if kind == "env":
        value = os.environ.get(name)
        if value is None:
            raise UsageError(f"the environment variable {name}, which has a key, is not set")
        return value.encode()
    if kind != "file":
        raise ValueError("a secret is never in a URI: write env:NAME or file:PATH")
    with open(os.path.join(folder, name), "rb") as file:
        return file.read()


def _path(scheme: str, path: str, suffix: str) -> str:
    if not path:
        raise UsageError(f"a {scheme}: URI names a path, as in {scheme}:calendar.{suffix}")
    return path


def _file(path: str, parameters: dict[str, Any]) -> Any:
    from objdb.storage.file.storage import FileStorage

    return FileStorage(_path("file", path, "fs"), **parameters)


def _memory(name: str, parameters: dict[str, Any]) -> Any:
    from objdb.storage.memory import MappingStorage

    return MappingStorage(name or "MappingStorage")


def _pickle(path: str, parameters: dict[str, Any]) -> Any:
    from objdb.storage.pickled import PickledMappingStorage

    return PickledMappingStorage(_path("pickle", path, "pickle"), **parameters)


def _sqlite(path: str, parameters: dict[str, Any]) -> Any:
    from objdb.storage.sql.sqlite import SQLiteStorage

    return SQLiteStorage(_path("sqlite", path, "sqlite"), **parameters)


def _compressed(base: Any, parameters: dict[str, Any]) -> Any:
    from objdb.storage.layers.compressed import CompressedStorage

    return CompressedStorage(base, **parameters)


def _require_key(parameters: dict[str, Any]) -> None:
    if not parameters.keys() & {"key", "passphrase"}:
        raise UsageError(
            "encrypted+ needs a key: key=env:NAME or key=file:PATH (32 bytes, or their "
            "hexadecimal digits), or passphrase=env:NAME or passphrase=file:PATH"
        )


def _encrypted(base: Any, parameters: dict[str, Any]) -> Any:
    from objdb.storage.layers.encrypted import EncryptedStorage

    keys = [*parameters.pop("key", []), *parameters.pop("passphrase", [])]
    return EncryptedStorage(base, keys, **parameters)


def _require_moment(parameters: dict[str, Any]) -> None:
    if "before" not in parameters:
        raise UsageError("before+ needs a moment: before=2026-03-01T09:30Z, or a tid")


def _before(base: Any, parameters: dict[str, Any]) -> Any:
    from objdb.storage.layers.before import BeforeStorage

    return BeforeStorage(base, parameters["before"])


def _moment(text: str) -> bytes | str:
    """Return the tid that *text* stands for, else the text: a time."""
    return tid_from_text(text) or text


def _key(text: str, folder: str) -> bytes:
    from objdb.storage.layers.encrypted import KEY_BYTES

    found = _secret(text, folder)
    try:
        key = found if len(found) == KEY_BYTES else bytes.fromhex(found.decode().strip())
    except ValueError:
        key = b""
    if len(key) != KEY_BYTES:
        raise UsageError(
            f"{text} has {len(found)} bytes, which are not a key; a key has {KEY_BYTES}, or twice "
            "as many hexadecimal digits"
        )
    return key


def _passphrase(text: str, folder: str) -> str:
    try:
        return _secret(text, folder).decode().rstrip("\r\n")
    except UnicodeDecodeError:
        raise UsageError(f"{text} is not text, so it is not a passphrase") from None


def _log_directory(text: str, folder: str) -> str:
    return os.path.join(folder, text) if text else text


def _berkeley(path: str, parameters: dict[str, Any]) -> Any:
    from objdb.storage.berkeley.storage import BerkeleyStorage

    return BerkeleyStorage(_path("berkeley", path, "db"), **parameters)


def _readonly(base: Any, parameters: dict[str, Any]) -> Any:
    from objdb.storage.layers.readonly import ReadOnlyStorage

    return ReadOnlyStorage(base)


def _logged(base: Any, parameters: dict[str, Any]) -> Any:
    from objdb.storage.layers.logged import LoggedStorage

    return LoggedStorage(base)


def _demo(base: Any, parameters: dict[str, Any]) -> Any:
    from objdb.storage.layers.demo import DemoStorage

    return DemoStorage(base, parameters.get("changes"))


# Makers import what they make: few programs need more than one of them.
SCHEMES = {
    "file": Scheme(_file, {
        "create": boolean, "read_only": boolean, "durability": str, "preallocate_bytes": int,
        "checkpoint_records": int,
    }),
    "memory": Scheme(_memory, has_path=False),
    "pickle": Scheme(_pickle, {"every_seconds": float, "read_only": boolean}),
    "berkeley": Scheme(_berkeley, {
        "history": boolean, "create": boolean, "durability": str, "cache_bytes": int,
        "log_directory": InFolder(_log_directory), "keep_logs": boolean, "checkpoint_bytes": int,
        "checkpoint_minutes": int,
    }),
    "sqlite": Scheme(_sqlite, {
        "history": boolean, "create": boolean, "read_only": boolean, "durability": str,
        "busy_seconds": float, "cache_bytes": int, "keep_seconds": float,
    }),
    "compressed": Scheme(_compressed, {"method": str, "level": int}, most_below=1),
    "encrypted": Scheme(
        _encrypted,
        {"key": InFolder(_key), "passphrase": InFolder(_passphrase), "plain": str},
        many=("key", "passphrase"), check=_require_key, most_below=1,
    ),
    "readonly": Scheme(_readonly, most_below=1),
    "before": Scheme(_before, {"before": _moment}, check=_require_moment, most_below=1),
    "logged": Scheme(_logged, most_below=1),
    "demo": Scheme(_demo, most_below=2),
}


def is_secret(parameter: str) -> bool:
    """Whether what a parameter has is not to be shown."""
    return parameter.lower() in _SECRET_NAMES


def without_secrets(uri: str) -> str:
    """Return a URI as errors show it: secrets that were written into it are left out."""
    return _PARAMETER.sub(_shown_parameter, _USER.sub("//…@", uri))


def _shown_parameter(found: re.Match[str]) -> str:
    name, value = found.groups()
    where = unquote(value).partition(":")[0]
    return found[0] if not is_secret(unquote(name)) or where in ("env", "file") else f"{name}=…"


_SECRET_NAMES = ("key", "passphrase", "password", "passwd", "pwd", "secret", "token")
_PARAMETER = re.compile(r"([^?&=#()]+)=([^&]*)")
_USER = re.compile(r"//[^/?]*@")


def added_schemes() -> dict[str, Scheme]:
    """Return the schemes that installed packages add, by name. `UsageError` for one that cannot be
    loaded."""
    return {name: _loaded(point, f"{name}:") for name, point in _entry_points().items()}


def _entry_points() -> dict[str, Any]:
    from importlib.metadata import entry_points  # takes a while, for what few need

    return {point.name: point for point in entry_points(group=GROUP)}


def _loaded(point: Any, uri: str) -> Scheme:
    try:
        found = point.load()
    except (ImportError, AttributeError) as error:
        raise UsageError(
            f"{uri}: the entry point {point.name} of the group {GROUP} cannot be loaded: {error}. "
            "Reinstall its package, or report it to its makers"
        ) from error
    if isinstance(found, Scheme):
        return found
    raise UsageError(
        f"{uri}: the entry point {point.name} of the group {GROUP} is {found!r}, which is not an "
        "objdb.database.schemes.Scheme"
    )


def scheme_named(name: str, uri: str) -> Scheme:
    """Return the scheme *name* of *uri*; `UsageError` listing what there is if there is none."""
    if name in SCHEMES:
        return SCHEMES[name]
    added = _entry_points()
    if name in added:
        return _loaded(added[name], uri)
    known = {**SCHEMES, **dict.fromkeys(added)}
    layers = [each for each, scheme in SCHEMES.items() if scheme.is_layer]
    storages = [each for each in known if each not in layers]
    of_layers = f" (and layers: {', '.join(f'{each}+' for each in layers)})" if layers else ""
    raise UsageError(
        f"{uri}: there is no storage {name!r}; there are {', '.join(storages)}{of_layers}. "
        "A path whose name has a colon can be written file:NAME"
    )
