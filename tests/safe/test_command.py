"""`objdb safe`, as somebody at a terminal uses it, the right way and the wrong way."""

from __future__ import annotations

import ast
import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from objdb.safe import Safe, open_safe
from objdb.tools.main import main
from tests.safe.conftest import Open
from tests.safe.test_mapping import Frozen


def run(*words: str) -> Result:
    """Run the subcommand."""
    return CliRunner().invoke(main, ["safe", *words])


def out(*words: str) -> str:
    """Run the subcommand, which has to succeed, and return what it printed."""
    result = run(*words)
    assert result.exit_code == 0, result.output
    return result.stdout


def fails(*words: str, code: int = 1) -> str:
    """Run the subcommand, which has to fail without a traceback, and return what it said."""
    result = run(*words)
    assert result.exit_code == code and isinstance(result.exception, SystemExit), result.output
    return " ".join(result.output.split())


@pytest.fixture
def shop(opened: Open) -> Safe:
    """Two safes, of one module in two cages, and another one."""
    opened("sqlite", "host.zoo.shop.prices")["lion"] = 1
    opened("file", "host.shop.stock")["apple"] = 12
    safe = opened("berkeley", "host.shop.shop.prices")
    safe.update({"apple": [1, 20], 3: {"a": None}})
    for info in ("host.zoo.shop.prices", "host.shop.stock", "host.shop.shop.prices"):
        opened(name=info).close()
    return opened(name="host.shop.shop.prices")


def test_list(shop: Safe) -> None:
    """Every safe, with its parts, backend, number of keys and size."""
    lines = out("list").splitlines()
    assert len(lines) == 4 and "host.shop.shop.prices" in lines[1] and "iB" in lines[1]
    found = {entry["name"]: entry for entry in json.loads(out("list", "--json"))}
    prices = found["host.shop.shop.prices"]
    assert prices.pop("size_bytes") > 10_000
    assert prices == {
        "name": "host.shop.shop.prices", "node": "host", "cage": "shop", "module": "shop.prices",
        "backend": "berkeley", "keys": 2,
    }
    assert found["host.zoo.shop.prices"]["keys"] == 1


def test_list_of_what_cannot_be_opened(shop: Safe) -> None:
    """A safe that cannot be opened is listed, and the reason told."""
    (shop.path.parent / "host.zoo.shop.prices" / "safe.sqlite").write_bytes(b"x" * 5000)
    result = run("list")
    assert result.exit_code == 0 and "?" in result.stdout
    assert "host.zoo.shop.prices: " in result.stderr and "damaged" in result.stderr


def test_get_and_set(shop: Safe) -> None:
    """Literals and plain words, under a name or a module."""
    assert ast.literal_eval(out("get", "host.shop.shop.prices", "apple")) == [1, 20]
    assert out("get", "stock", "apple") == "12\n"
    for word, value in (
        ("42", 42), ("'42'", "42"), ("plain words", "plain words"), ("[1, None]", [1, None]),
        ("(", "("), ("a-b", "a-b"), ("1.5", 1.5), ("None", None), ("{'a': (1,)}", {"a": (1,)}),
    ):
        assert out("set", "stock", "(1, 'k')", word) == ""
        assert ast.literal_eval(out("get", "stock", "(1, 'k')")) == value
    assert out("get", "host.shop.shop.prices", "3") == "{'a': None}\n"


def test_directory(shop: Safe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From elsewhere, with the directory's name."""
    (tmp_path / "other").mkdir()
    monkeypatch.chdir(tmp_path / "other")
    assert "there is no directory" in fails("list")
    where = str(shop.path.parent)
    assert out("get", "stock", "apple", "--directory", where) == "12\n"
    monkeypatch.setenv("OBJDB_SAFE", where)
    assert out("get", "stock", "apple") == "12\n"


def test_wrong_names(shop: Safe) -> None:
    """What there is not is said with what there is, and nothing is made."""
    said = fails("get", "shop.price", "apple")
    assert "there is no safe 'shop.price'" in said and "host.shop.stock" in said
    assert "several safes are 'shop.prices'" in fails("get", "shop.prices", "apple")
    said = fails("get", "stock", "pear")
    assert "there is no key 'pear' in stock; it has 'apple'" in said
    assert "there is no safe" in fails("set", "new", "a", "1")
    assert "cannot be a key" in fails("set", "stock", "[1]", "1", code=2)
    assert "cannot be a key" in fails("get", "stock", "[1]", code=2)
    assert "Missing argument" in fails("get", "stock", code=2)
    assert len(json.loads(out("list", "--json"))) == 3


def test_export(shop: Safe, tmp_path: Path) -> None:
    """All pairs, as literals of Python or as JSON, to the terminal or a file."""
    name = shop.path.name
    pairs = dict(ast.literal_eval(line) for line in out("export", name).splitlines())
    assert pairs == {"apple": [1, 20], 3: {"a": None}}
    file = tmp_path / "pairs.json"
    assert out("export", name, "--format", "json", "-o", str(file)) == ""
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert sorted(lines, key=str) == [["apple", [1, 20]], [3, {"a": None}]]


@pytest.mark.parametrize(
    ("value", "in_python", "in_json"),
    [
        ((1, 2), True, False), ({1: 2}, True, False), (Frozen("a", 1), False, False),
        ({1, 2}, True, False), (b"b", True, False), ([True, 1.5, "ä\n"], True, True),
        (float("inf"), False, False),
    ],
)
def test_export_leaves_out(shop: Safe, value: Any, in_python: bool, in_json: bool) -> None:
    """What would come back as something else is left out, and said; the rest is there."""
    shop["value"] = value
    for form, is_there in (("python", in_python), ("json", in_json)):
        result = run("export", shop.path.name, "--format", form)
        assert result.exit_code == (0 if is_there else 1)
        assert ("left out: 'value'" in result.stderr) == (not is_there)
        assert len(result.stdout.splitlines()) == (3 if is_there else 2)
        with open_safe(shop.path) as again:
            assert again["apple"] == [1, 20]


def test_help() -> None:
    """Every subcommand says what it does, with an example."""
    assert all(word in out("--help") for word in ("list", "get", "set", "export", "SAFE"))
    for word in ("list", "get", "set", "export"):
        assert "Example: objdb safe" in out(word, "--help")
