"""Storages from paths and URIs.

    calendar.fs                          a FileStorage
    file:calendar.fs?durability=os       the same, with parameters
    file:///var/lib/app/calendar.fs
    memory:                              a MappingStorage
    encrypted+file:calendar.fs?key=…     a layer over a storage; several are joined by +
    demo:(file:calendar.fs)              changes over a storage, in memory
    demo:(file:calendar.fs)(file:tries.fs)   … or in another one

All parameters stand in one query: each goes to the storage or layer that knows it, or to the
database (`pool_size`, `cache_size` …).
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, NamedTuple
from urllib.parse import parse_qsl, quote, unquote, urlsplit

from objdb.database.options import PARSERS
from objdb.database.schemes import (
    SCHEMES,
    InFolder,
    Parser,
    Scheme,
    is_secret,
    scheme_named,
    without_secrets,
)
from objdb.errors import UsageError
from objdb.storage.foreign import require_servable


def open_storage(
    where: Any, folder: str = "", *, read_only: bool = False
) -> tuple[Any, dict[str, Any]]:
    """Return (storage, database parameters) for a storage, a path, a URI, None (memory) or a
    callable that makes a storage. Relative paths are relative to *folder*.

    *read_only*: open it for reading only; a storage that was opened for writing, or knows no
    other way, is shown through a `ReadOnlyStorage`.

    `UsageError` for an unknown scheme, parameter or value; the storage's own errors.
    """
    if read_only and isinstance(where, (str, os.PathLike)):
        where = with_parameter(_as_uri(where), "read_only", "true")
    storage, options = _open_storage(where, folder)
    # A URI says so to the database where its storage knows no other way.
    if (read_only or options.get("read_only")) and not storage.isReadOnly():
        storage = SCHEMES["readonly"].make(storage, {})
    return storage, options


def _as_uri(where: str | os.PathLike[str]) -> str:
    """Return the URI for a path, or a URI as it is."""
    if isinstance(where, os.PathLike):
        return _file_uri(os.fsdecode(where))
    if is_uri(where):
        return where
    _require_no_layer(where)
    return _file_uri(where)


def _file_uri(path: str) -> str:
    return "file:" + quote(path, errors="surrogateescape")


def _open_storage(where: Any, folder: str) -> tuple[Any, dict[str, Any]]:
    if where is None:
        return SCHEMES["memory"].make("", {}), {}
    if callable(where):
        return _require_storage(where(), where), {}
    if isinstance(where, os.PathLike):
        return _file(os.path.join(folder, where)), {}
    if not isinstance(where, str):
        return _require_storage(where), {}
    if not is_uri(where):
        _require_no_layer(where)
        return _file(os.path.join(folder, where)), {}
    storage, options = _Uri.parse(where).open(folder)
    return _require_storage(storage, where), options


def _file(path: Any) -> Any:
    from objdb.storage.file.storage import FileStorage

    return FileStorage(path)


def _require_storage(given: Any, maker: Any = None) -> Any:
    """Return what was given, or returned by *maker*, if it is a storage; else `UsageError`."""
    if hasattr(given, "loadBefore"):
        return require_servable(given)
    what = f"{given!r} is" if maker is None else f"{maker!r} returned {given!r}, which is"
    raise UsageError(
        f"{what} no storage. Give a storage, a path, a URI, a function that makes a storage, or "
        "None for one in memory"
    )


def is_uri(where: str) -> bool:
    """Whether *where* is a URI; else it is a path."""
    scheme, colon, _ = where.partition(":")
    # A single letter is a drive, and what has a separator before the colon is a path.
    return bool(colon) and len(scheme) > 1 and "/" not in scheme and os.sep not in scheme


def _require_no_layer(path: str) -> None:
    """Raise `UsageError` for what begins as a URI with a layer, and would be a plain file."""
    name, plus, rest = without_secrets(path).partition("+")
    if plus and name in SCHEMES and SCHEMES[name].is_layer:
        raise UsageError(
            f"{without_secrets(path)} is a path, which has no layers. Write "
            f"{name}+file:{quote(rest)}; or, if the name of the file begins so, begin with ./"
        )


def with_parameter(where: str, name: str, value: str) -> str:
    """Return the URI for *where* (a path or URI) with a parameter more, if its storage has it, and
    it is not given yet."""
    uri = _as_uri(where)
    parsed = _Uri.parse(uri)
    given = {each for each, _ in parse_qsl(parsed.query, keep_blank_values=True)}
    if name not in parsed.schemes[-1].parameters or name in given:
        return uri
    return f"{uri}{'&' if parsed.has_query else '?'}{name}={value}"


class _Uri(NamedTuple):
    """A URI's parts: the URI without secrets; the schemes and their names, the outermost first; the
    path, or what stands in parentheses; its parameters."""

    uri: str
    names: list[str]
    schemes: list[Scheme]
    path: str
    groups: list[str]
    query: str
    has_query: bool

    @classmethod
    def parse(cls, uri: str) -> _Uri:
        head, _, rest = uri.partition(":")
        uri = without_secrets(uri)  # what errors show
        names = head.split("+")
        schemes = [scheme_named(name, uri) for name in names]
        if any(not scheme.is_layer for scheme in schemes[:-1]):
            wrong = next(n for n, s in zip(names, schemes, strict=True) if not s.is_layer)
            raise UsageError(f"{uri}: {wrong} is not a layer, so nothing can follow {wrong}+")
        if schemes[-1].is_layer and not rest.startswith("("):
            raise UsageError(
                f"{uri}: {names[-1]} is a layer, which needs a storage below it: "
                f"{names[-1]}+file:PATH, or {names[-1]}:(URI)"
            )
        if rest.startswith("("):
            groups, rest = _groups(uri, rest)
            path, mark, query = rest.partition("?")
            if path:
                raise UsageError(f"{uri}: {path!r} after the parentheses is not valid")
            if len(groups) > schemes[-1].most_below:
                raise UsageError(
                    f"{uri}: {names[-1]} goes over {schemes[-1].most_below} storages at most"
                )
            return cls(uri, names, schemes, "", groups, query, bool(mark))
        try:
            parts = urlsplit(f"{names[-1]}:{rest}")
        except ValueError as error:
            raise UsageError(f"{uri}: {error}") from None
        host = parts.netloc if schemes[-1].has_host else ""
        if parts.netloc and not host:
            raise UsageError(f"{uri}: a host cannot be given; write file:///absolute/path")
        if parts.fragment:
            raise UsageError(f"{uri}: a # in a path is written %23")
        path = host + unquote(parts.path, errors="surrogateescape")
        return cls(uri, names, schemes, path, [], parts.query, "?" in rest)

    def open(self, folder: str) -> tuple[Any, dict[str, Any]]:
        """Return (storage, database parameters)."""
        values = self._values(folder)
        for scheme, given in zip(self.schemes, values, strict=False):
            if scheme.check is not None:
                scheme.check(given)
        *layers, innermost = zip(self.schemes, values[:-1], strict=True)
        scheme, given = innermost
        of_database = values[-1]
        if self.groups:
            storage, of_database = self._open_groups(scheme, given, folder, of_database)
        else:
            path = os.path.join(folder, self.path) if scheme.has_path else self.path
            storage = scheme.make(path, given)
        for scheme, given in reversed(layers):
            try:
                storage = scheme.make(storage, given)
            except BaseException:
                storage.close()
                raise
        return storage, of_database

    def _open_groups(
        self, scheme: Scheme, given: dict[str, Any], folder: str, of_database: dict[str, Any]
    ) -> tuple[Any, dict[str, Any]]:
        """Open the storages in parentheses, and the layer over them."""
        opened: list[Any] = []
        try:
            for group in self.groups:
                storage, options = open_storage(group, folder)
                opened.append(storage)
                of_database = {**options, **of_database}
            if len(opened) > 1:
                given = {**given, "changes": opened[1]}
            return scheme.make(opened[0], given), of_database
        except BaseException:
            for storage in opened:
                storage.close()
            raise

    def _values(self, folder: str) -> list[dict[str, Any]]:
        """Return the parameters' values: for each scheme, and for the database."""
        owners: list[tuple[Mapping[str, Any], tuple[str, ...]]] = [
            (scheme.parameters, scheme.many) for scheme in self.schemes
        ]
        owners.append((PARSERS, ()))
        values: list[dict[str, Any]] = [{} for _ in owners]
        # In a URI a plus is a plus; a space only in what a form of the web sends.
        query = self.query.replace("+", "%2B")
        for name, text in parse_qsl(query, keep_blank_values=True):
            owner = next((i for i in range(len(owners)) if name in owners[i][0]), None)
            if owner is None:
                known = ", ".join(each for parameters, _ in owners for each in parameters)
                raise UsageError(f"{self.uri}: unknown parameter {name!r}; known are {known}")
            parameters, many = owners[owner]
            value = self._value(name, text, parameters[name], folder)
            if name in many:
                values[owner].setdefault(name, []).append(value)
            elif name in values[owner]:
                raise UsageError(f"{self.uri}: {name} is given twice")
            else:
                values[owner][name] = value
        return values

    def _value(self, name: str, text: str, parser: Parser | InFolder, folder: str) -> Any:
        try:
            return parser.parse(text, folder) if isinstance(parser, InFolder) else parser(text)
        except UsageError:
            raise
        except ValueError as error:
            why = f": {error}" if parser not in (int, float) else ""
            shown = "what was given" if is_secret(name) else repr(text)
            raise UsageError(f"{self.uri}: {name} cannot be {shown}{why}") from None


def _groups(uri: str, rest: str) -> tuple[list[str], str]:
    """Return what stands in the parentheses that *rest* begins with, and what comes after."""
    groups, depth, start = [], 0, 0
    for i, character in enumerate(rest):
        if character == "(":
            if not depth:
                start = i + 1
            depth += 1
        elif character == ")":
            depth -= 1
            if not depth:
                groups.append(rest[start:i])
                if rest[i + 1 : i + 2] != "(":
                    return groups, rest[i + 1 :]
    raise UsageError(f"{uri}: a parenthesis is not closed")
