"""The registry of what is done around a fork: its order, and calls that fail."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import Any

import pytest

from objdb import forks
from objdb.forks import Stage, at_fork


def in_a_fork(told: Callable[[], str]) -> str:
    """Return what *told* returns in a forked process."""
    reader, writer = os.pipe()
    pid = os.fork()
    if not pid:
        os.write(writer, told().encode())
        os._exit(0)
    os.close(writer)
    with open(reader, encoding="utf-8") as file:
        text = file.read()
    assert os.waitpid(pid, 0)[1] == 0
    return text


def test_the_order(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is registered last, and stands further out, rests first and goes on last; a call that
    fails is told, and keeps nobody from being called."""
    monkeypatch.setattr(forks, "_registered", [])
    unraisable: list[Any] = []
    monkeypatch.setattr(sys, "unraisablehook", unraisable.append)
    calls: list[str] = []

    def noting(text: str) -> Callable[[], None]:
        return lambda: calls.append(text)

    def failing() -> None:
        calls.append("failing")
        raise ValueError("it cannot be paused")

    for stage in (Stage.FILES, Stage.SAFES, Stage.STORAGES, Stage.DATABASES):
        name = stage.name.lower()
        at_fork(stage, before=noting(f"before {name}"), in_parent=noting(f"parent {name}"),
                in_child=noting(f"child {name}"))
    at_fork(Stage.SAFES, before=failing)
    outward = ["files", "storages", "databases", "safes"]
    before = [f"before {name}" for name in reversed(outward)]
    before.insert(1, "failing")
    child = in_a_fork(lambda: "\n".join(calls))
    assert child.split("\n") == before + [f"child {name}" for name in outward]
    assert calls == before + [f"parent {name}" for name in outward]
    assert [str(each.exc_value) for each in unraisable] == ["it cannot be paused"]
