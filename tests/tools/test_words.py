"""What can be typed for a transaction and for a time."""

from __future__ import annotations

import base64
import os
import time
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path

import click
import pytest

import objdb
from objdb.tools.words import MomentType, parse_time
from tests.models import Counter
from tests.tools.test_command import Terminal

NOW = datetime(2026, 3, 31, 9, 30, 15)


@pytest.fixture(autouse=True)
def _in_berlin(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("TZ", "Europe/Berlin")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("now", "2026-03-31 09:30:15"), ("today", "2026-03-31"), ("yesterday", "2026-03-30"),
        ("Yesterday 18:00", "2026-03-30 18:00"), ("yesterday at 8:05", "2026-03-30 08:05"),
        ("tomorrow", "2026-04-01"), ("9:15", "2026-03-31 09:15"),
        ("09:15:30", "2026-03-31 09:15:30"),
        ("2 hours ago", "2026-03-31 07:30:15"), ("2h ago", "2026-03-31 07:30:15"),
        ("an hour ago", "2026-03-31 08:30:15"), ("90 seconds  ago", "2026-03-31 09:28:45"),
        ("1.5 min ago", "2026-03-31 09:28:45"), ("3 days ago", "2026-03-28 09:30:15"),
        ("a week ago", "2026-03-24 09:30:15"), ("1 month ago", "2026-02-28 09:30:15"),
        ("2 years ago", "2024-03-31 09:30:15"), ("2026-03-01", "2026-03-01"),
        ("2026-03-01 09:30", "2026-03-01 09:30"), ("2026-03-01T09:30Z", "2026-03-01 10:30"),
        ("2026-03-01T09:30+05:00", "2026-03-01 05:30"), ("1767225600", "2026-01-01 01:00"),
        ("1767225600.0", "2026-01-01 01:00"),
    ],
)
def test_times(text: str, expected: str) -> None:
    """Times are local where they name no zone."""
    found = parse_time(text, NOW)
    assert found.tzinfo and found == datetime.fromisoformat(expected).astimezone()


def test_hours_over_the_change_of_clocks() -> None:
    """An hour has 60 minutes, and a day ends at the same time on the clock."""
    after = datetime(2026, 3, 29, 12)
    assert parse_time("12 hours ago", after).astimezone(timezone.utc).hour == 22
    assert parse_time("1 day ago", after).astimezone(timezone.utc).hour == 11


@pytest.mark.parametrize(
    "text",
    ["", "soon", "hours ago", "2 ago", "3 fortnights ago", "yesterday 25:00", "1e400 days ago",
     "9999999 years ago", "99999999999999 days ago", "2026-13-01", "next week", "1.5 months ago",
     "0x12", "-1 day ago"],
)
def test_no_times(text: str) -> None:
    """What is no time is told, with what is one."""
    with pytest.raises(click.BadParameter, match="'2 hours ago'"):
        MomentType().convert(text, None, None)


def test_transactions_everywhere(tmp_path: Path) -> None:
    """A transaction is named with 0x, without, and by its id in the undo log, wherever one is."""
    terminal = Terminal(tmp_path / "data.fs")
    with objdb.DB(terminal.path) as db:
        tids = []
        for i in range(3):
            with db.transaction(f"step {i}") as connection:
                connection.root().setdefault("counter", Counter()).value = i
            tids.append(db.storage.lastTransaction())
    for name in (
        bytes.hex, lambda tid: f"0x{tid.hex()}", lambda tid: f"0x{tid.hex().upper()}",
        lambda tid: base64.urlsafe_b64encode(tid).decode(),
    ):
        first, _, last = map(name, tids)
        assert terminal.json("diff", "1", first, last) == {"value": ["0", "2"]}
        assert terminal.json("undo", last, "--dry-run")["changes"][0]["oid"] == "0x1"
        assert len(terminal.json("undolog", "--since", last)) == 1
        assert "objects" in terminal.out("pack", "--before", first, "--dry-run")
        with objdb.DB(f"before+file:{terminal.path}?read_only=1&before={last}") as db:
            assert db.storage.lastTransaction() == tids[1]
        with objdb.DB(terminal.path, read_only=True) as db, db.open(at=first) as connection:
            assert connection.root()["counter"].value == 0


def test_times_everywhere(tmp_path: Path) -> None:
    """Every subcommand that takes a time takes all forms of it."""
    terminal = Terminal(tmp_path / "data.fs")
    with objdb.DB(terminal.path) as db, db.transaction("first") as connection:
        connection.root()["x"] = 1
    assert len(terminal.json("undolog", "--since", "2 hours ago")) == 2
    assert terminal.json("undolog", "--until", "yesterday") == []
    assert terminal.json("diff", "0", "now", "now") == {}
    assert "is the same" in terminal.out("diff", "0", "now")
    later = (datetime.now() - timedelta(seconds=0)).astimezone().isoformat()
    assert terminal.json("diff", "0", later) == {}
    assert "objects" in terminal.out("pack", "--before", "yesterday", "--dry-run")
    assert os.environ["TZ"] == "Europe/Berlin" and "+0" in terminal.out("info")
