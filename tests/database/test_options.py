"""Options of a database: one declaration that the constructor, URIs, settings, the command and the
documentation agree with."""

from __future__ import annotations

import inspect
import json
import re
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

import objdb
from objdb import AutoPack, UsageError
from objdb.database.options import OPTIONS, Options
from objdb.tools.main import main

ROOT = Path(objdb.__file__).parent.parent

# For each option another value than its default, and that value's text in a URI.
OTHERS: dict[str, tuple[Any, str]] = {
    "pool_size": (3, "3"),
    "cache_size": (40, "40"),
    "cache_size_bytes": (5000, "5000"),
    "cache_deactivate_after": (1.5, "1.5"),
    "isolation": ("serializable", "serializable"),
    "pool_wait": (0.5, "0.5"),
    "database_name": ("mine", "mine"),
    "record_stacks": (True, "yes"),
    "detect_mutations": (True, "true"),
    "historical_pool_size": (0, "0"),
    "historical_timeout": (7.5, "7.5"),
    "historical_cache_size": (9, "9"),
    "version_pool_size": (1, "1"),
    "version_cache_size": (8, "8"),
    "autopack": (AutoPack(days=7, growth_bytes=10**8), "growth_bytes:100000000,days:7"),
    "read_only": (True, "yes"),
}
WRONG: dict[str, list[Any]] = {
    name: [-1, "some", None] for name, option in OPTIONS.items()
    if type(option.default) in (int, float)
} | {
    "isolation": ["chaos", None], "database_name": [7, None], "record_stacks": ["yes", None],
    "detect_mutations": ["yes", None], "read_only": ["yes", None], "autopack": ["weekly", 7, {}],
}


def test_the_constructor_has_each_option() -> None:
    """`DB` takes every option, with its default, and nothing else but what opens storages."""
    parameters = dict(inspect.signature(objdb.DB).parameters)
    assert parameters.pop("storage").default is None
    assert parameters.pop("databases").default is None
    assert {name: each.default for name, each in parameters.items()} == {
        name: option.default for name, option in OPTIONS.items()
    }
    assert set(OTHERS) == set(WRONG) == set(OPTIONS)
    documentation = inspect.getdoc(objdb.DB) or ""
    for name, option in OPTIONS.items():
        assert re.search(rf"\b{name} ", documentation) and option.metadata["meaning"]


@pytest.mark.parametrize("name", OPTIONS)
def test_each_option_from_everywhere(tmp_path: Path, name: str) -> None:
    """An option is the same from the constructor, from a URI, which wins, and from settings."""
    value, text = OTHERS[name]
    objdb.DB(tmp_path / "a.data").close()
    storage = objdb.FileStorage(tmp_path / "a.data", read_only=name == "read_only")
    with objdb.DB(storage, **{name: value}) as db:
        assert getattr(db.options, name) == value != OPTIONS[name].default
    uri = f"file:{tmp_path}/a.data?{name}={text}"
    given = {} if name in ("read_only", "autopack") else {name: OPTIONS[name].default}
    with objdb.DB(uri, **given) as db:
        if name == "read_only":
            assert db.storage.isReadOnly()
        else:
            assert getattr(db.options, name) == value
    if name != "database_name":
        written = {
            "isolation": '"serializable"', "autopack": "{growth_bytes = 100_000_000, days = 7}",
            "record_stacks": "true", "read_only": "true",
        }.get(name, text)
        settings = tmp_path / "objdb.toml"
        settings.write_text(f'[one]\nstorage = "a.data"\n{name} = {written}\n', encoding="utf-8")
        with objdb.open_databases(settings) as databases:
            assert getattr(databases["one"].options, name) == value


def test_read_only_in_a_uri_of_any_storage(tmp_path: Path) -> None:
    """A storage that has no such parameter is shown through a layer."""
    objdb.DB(f"berkeley:{tmp_path}/data").close()
    with objdb.DB(f"berkeley:{tmp_path}/data?read_only=yes") as db:
        assert db.storage.isReadOnly()


@pytest.mark.parametrize("name", OPTIONS)
def test_what_an_option_cannot_be(tmp_path: Path, name: str) -> None:
    """It is refused by name, and the database is not open."""
    objdb.DB(tmp_path / "a.data").close()
    for value in WRONG[name]:
        if name == "autopack" and value is None:
            continue
        with pytest.raises(UsageError, match=name):
            objdb.DB(tmp_path / "a.data", **{name: value})
        objdb.FileStorage(tmp_path / "a.data").close()  # which is not locked any more


@pytest.mark.parametrize(
    "text", ["weekly", "growth_bytes", "growth_bytes:x", "weeks:1", "days:1", "days:1,days:2"],
)
def test_a_setting_for_packing_that_makes_no_sense(text: str) -> None:
    """It is told what can be written."""
    with pytest.raises(UsageError, match="autopack"):
        objdb.DB(f"memory:?autopack={text}")


def test_changes_while_it_is_open() -> None:
    """The historical calls change options, and check them."""
    with objdb.DB() as db:
        for name, call in (
            ("pool_size", "PoolSize"), ("cache_size", "CacheSize"),
            ("cache_size_bytes", "CacheSizeBytes"), ("version_pool_size", "VersionPoolSize"),
            ("version_cache_size", "VersionCacheSize"),
        ):
            getattr(db, f"set{call}")(5)
            assert getattr(db, f"get{call}")() == getattr(db.options, name) == 5
            with pytest.raises(UsageError, match=name):
                getattr(db, f"set{call}")(-1)
            assert getattr(db, f"get{call}")() == 5
        db.setCacheDeactivateAfter(3)
        assert db.options.cache_deactivate_after == 3


def test_the_limit_in_bytes_holds_in_versions() -> None:
    """Changing the size of versions' caches leaves their limit in bytes."""
    with objdb.DB(cache_size_bytes=5000) as db, db.open("plan") as connection:
        db.setVersionCacheSize(7)
        cache = connection._cache
        assert (cache.cache_size, cache.cache_size_bytes) == (7, 5000)


def _plain(text: str) -> str:
    return re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", text)


def test_the_documentations_table() -> None:
    """The table of options in the documentation has them all, with default and meaning."""
    page = (ROOT / "docs" / "opening.md").read_text(encoding="utf-8")
    words = {True: "yes", False: "no", None: "never"}
    for name, option in OPTIONS.items():
        default = option.default
        is_word = default is None or isinstance(default, bool)
        shown = words[default] if is_word else default if isinstance(default, str) else (
            f"{default:,}"
        )
        row = f"| `{name}` | {shown} | {option.metadata['meaning']} |"
        assert row.replace("(beside a writer)", "") in _plain(page).replace(
            "(beside a writer)", ""
        ), row


def test_the_command_lists_them() -> None:
    """`objdb uris` lists storages, layers, and options, for people and as JSON."""
    shown = CliRunner().invoke(main, ["uris"])
    assert shown.exit_code == 0
    listed = json.loads(CliRunner().invoke(main, ["uris", "--json"]).output)
    assert list(listed["options"]) == list(Options.__dataclass_fields__)
    assert "durability" in listed["storages"]["file"] and "key" in listed["layers"]["encrypted"]
    for name in [*listed["options"], *listed["storages"], *listed["layers"]]:
        assert name in shown.output
