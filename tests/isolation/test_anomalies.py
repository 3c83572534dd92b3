"""Which anomalies happen in which mode, on which storage; `docs/isolation.md` has the table."""

from __future__ import annotations

import importlib
import pkgutil
from pathlib import Path
from types import ModuleType

import pytest

import objdb
from objdb.connection.isolation import ISOLATIONS
from objdb.testing.schedule import Schedule
from tests.conftest import Databases
from tests.isolation import anomalies
from tests.storages import STORAGES

PAGE = Path(__file__).resolve().parents[2] / "docs" / "isolation.md"
MODULES = [
    importlib.import_module(f"{anomalies.__name__}.{info.name}")
    for info in pkgutil.iter_modules(anomalies.__path__)
]


@pytest.mark.parametrize("kind", STORAGES)
@pytest.mark.parametrize("isolation", ISOLATIONS)
@pytest.mark.parametrize("module", MODULES, ids=lambda m: m.__name__.rpartition(".")[2])
def test_anomaly(
    databases: Databases, module: ModuleType, isolation: str, kind: str
) -> None:
    """An anomaly happens in the modes it is said to, and in no other."""
    db = databases.open(STORAGES[kind](databases.directory), pool_size=20)
    with Schedule(db, {"x": 0, "y": 0}, isolation=isolation) as schedule:
        try:
            happened = module.happens(schedule)
        except objdb.ReadConflictError:  # who could have seen it was refused to read
            assert isolation == "read-current"
            happened = False
        assert happened == (isolation in module.ALLOWED_IN), f"\n{schedule}"


def test_the_table_is_true() -> None:
    """The table in the documentation says what these tests say."""
    rows = ["| anomaly | " + " | ".join(ISOLATIONS) + " |", "|---" * (len(ISOLATIONS) + 1) + "|"]
    for module in MODULES:
        assert module.__doc__ is not None
        title, _, text = module.__doc__.partition(": ")
        text = " ".join(text.split("\n\n")[0].split())
        marks = ["happens" if mode in module.ALLOWED_IN else "no" for mode in ISOLATIONS]
        rows.append(f"| **{title}**: {text} | " + " | ".join(marks) + " |")
    table = "\n".join(rows)
    assert table in PAGE.read_text(encoding="utf-8"), f"the table should be:\n{table}"
