"""The root object by two names: `connection.root()`, and what is in it as attributes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from objdb.connection.jar import Jar
from objdb.errors import POSKeyError
from objdb.ids import ROOT_OID, format_tid

if TYPE_CHECKING:
    from collections.abc import Iterator

    from objdb.typed import PersistentMapping


class Root:
    """Returns the root object of *jar* when it is called; its attributes are what is in that."""

    __slots__ = ("_jar",)

    def __init__(self, jar: Jar) -> None:
        object.__setattr__(self, "_jar", jar)

    def __call__(self) -> PersistentMapping[str, Any]:
        jar = self._jar
        try:
            root: PersistentMapping[str, Any] = jar.get(ROOT_OID)
            return root
        except POSKeyError:
            if jar.view.past is None:
                raise
            error = POSKeyError(
                f"{jar.db().name} had no root object before {format_tid(jar.view.past)}: there "
                "was nothing in it yet", database=jar.db().name,
            )
            error.oid = ROOT_OID
            raise error from None

    def __getattr__(self, name: str) -> Any:
        _require_name(name)
        try:
            return self()[name]
        except KeyError:
            raise AttributeError(f"there is nothing under {name!r} in the root object") from None

    def __setattr__(self, name: str, value: Any) -> None:
        _require_name(name)
        self()[name] = value

    def __delattr__(self, name: str) -> None:
        try:
            del self()[name]
        except KeyError:
            raise AttributeError(f"there is nothing under {name!r} in the root object") from None

    def __contains__(self, name: object) -> bool:
        return name in self()

    def __dir__(self) -> Iterator[str]:
        found = self() if self._jar.is_open else ()
        return (name for name in found if isinstance(name, str))

    def __repr__(self) -> str:
        if not self._jar.is_open:
            return f"<root of {self._jar!r}>"
        names = sorted(map(str, self()))
        shown = " ".join(names[:20]) + (" …" if len(names) > 20 else "")
        return f"<root: {shown}>"


def _require_name(name: str) -> None:
    """Raise AttributeError for what is an attribute of the root object itself, or of any object."""
    if name.startswith(("_p_", "__")):
        raise AttributeError(
            f"{name} is nothing that is in the root object. For an attribute of that itself, call "
            f"it: connection.root().{name}"
        )
