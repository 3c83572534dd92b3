"""The options of a database: declared here, once.

    DB(…, pool_size=3)          ╮
    "file:a.fs?pool_size=3"     ├─► Options: default, check ─► DB.options
    objdb.toml: pool_size = 3   ╯

`objdb uris` and the documentation's table list them from here. Each field's metadata has what
parses it from the text of a URI, what checks it, and what it means.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import Field, dataclass, field, fields, replace
from typing import Any

from objdb.connection.isolation import ISOLATIONS, require_isolation
from objdb.database.packing import AutoPack, autopack_of
from objdb.database.schemes import boolean
from objdb.errors import UsageError, require_at_least

Check = Callable[[str, Any], object]


def _at_least(least: int) -> Check:
    return lambda name, value: require_at_least(least, **{name: value})


def _seconds(name: str, value: Any) -> None:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not is_number or math.isnan(value) or value < 0:
        raise UsageError(f"{name} is {value!r}; it is a number of seconds, 0 or more")


def _flag(name: str, value: Any) -> None:
    if not isinstance(value, (bool, int)):
        raise UsageError(f"{name} is {value!r}; it is True or False")


def _text(name: str, value: Any) -> None:
    if not isinstance(value, str):
        raise UsageError(f"{name} is {value!r}; it is text")


def _option(default: Any, parse: Callable[[str], Any], check: Check, meaning: str) -> Any:
    return field(default=default, metadata={"parse": parse, "check": check, "meaning": meaning})


@dataclass(frozen=True)
class Options:
    """How a database works. `UsageError` for a value that an option cannot have."""

    pool_size: int = _option(
        7, int, _at_least(1), "how many connections can be out at once")
    cache_size: int = _option(
        10_000, int, _at_least(0), "objects that each connection keeps loaded")
    cache_size_bytes: int = _option(
        0, int, _at_least(0), "bytes of records that each connection keeps loaded; 0: no limit")
    cache_deactivate_after: float = _option(
        60, float, _seconds, "the age in seconds that `cacheFullSweep` goes by")
    isolation: str = _option(
        "snapshot", str, lambda name, value: require_isolation(value),
        f"what transactions see of one another: {', '.join(f'`{each}`' for each in ISOLATIONS)}")
    pool_wait: float = _option(
        30, float, _seconds, "how many seconds `open` waits for a connection")
    database_name: str = _option(
        "unnamed", str, _text, "its name in references from other databases")
    record_stacks: bool = _option(
        False, boolean, _flag,
        "remember where connections were opened, for `PoolTimeoutError`")
    detect_mutations: bool = _option(
        False, boolean, _flag, "for development: find changes that would be lost")
    historical_pool_size: int = _option(
        3, int, _at_least(0), "how many unused historical connections are kept")
    historical_timeout: float = _option(
        300, float, _seconds, "for how many seconds they are kept")
    historical_cache_size: int = _option(
        1000, int, _at_least(0), "objects that each historical connection keeps loaded")
    version_pool_size: int = _option(
        3, int, _at_least(1), "how many connections can be out at once in each version")
    version_cache_size: int = _option(
        100, int, _at_least(0), "objects that each connection in a version keeps loaded")
    autopack: AutoPack | None = _option(  # noqa: RUF009  it is frozen
        None, AutoPack.from_text, lambda name, value: None,
        "when the database packs itself: `days`, `growth_bytes`, `every_days`")
    read_only: bool = _option(
        False, boolean, _flag,
        "change nothing (beside a writer); a storage that is open already is shown through a "
        "`ReadOnlyStorage`")

    def __post_init__(self) -> None:
        for option in fields(self):
            option.metadata["check"](option.name, getattr(self, option.name))

    @classmethod
    def chosen(cls, arguments: Mapping[str, Any], given: Mapping[str, Any]) -> Options:
        """Return the options among the *arguments* of a call; what the URI has *given* wins."""
        values = {**{option.name: arguments[option.name] for option in fields(cls)}, **given}
        values["autopack"] = autopack_of(values["autopack"])
        return cls(**values)


    def changed(self, **values: Any) -> Options:
        """Return these options, with other *values* of some."""
        return replace(self, **values)


OPTIONS: dict[str, Field[Any]] = {option.name: option for option in fields(Options)}
PARSERS: dict[str, Callable[[str], Any]] = {
    name: option.metadata["parse"] for name, option in OPTIONS.items()
}
"""Parsers of options in a URI, by the option's name."""


def described(indent: str = "") -> str:
    """Return a line about each option: its name, its default, and what it means."""
    width = max(map(len, OPTIONS))
    return "\n".join(
        f"{indent}{name:{width}}  {option.default!r}: {option.metadata['meaning']}"
        for name, option in OPTIONS.items()
    )
