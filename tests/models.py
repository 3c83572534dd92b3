"""Persistent classes that the tests store."""

from __future__ import annotations

from typing import Any

from persistent import Persistent


class Person(Persistent):
    """Three attributes, and whatever a test adds."""

    def __init__(self, name: str = "", **attributes: Any) -> None:
        self.name = name
        self.__dict__.update(attributes)


class Point(Persistent):
    """Made with arguments for `__new__`."""

    def __new__(cls, x: int, y: int) -> Point:
        point = Persistent.__new__(cls)
        point.__dict__["made_with"] = (x, y)
        return point

    def __getnewargs__(self) -> tuple[int, int]:
        return self.__dict__["made_with"]


class Counter(Persistent):
    """Merges concurrent additions."""

    value = 0

    def add(self, amount: int) -> None:
        self.value += amount

    def _p_resolveConflict(self, old: dict, committed: dict, new: dict) -> dict:
        merged = committed.get("value", 0) + new.get("value", 0) - old.get("value", 0)
        return {**new, "value": merged}


class Fussy(Persistent):
    """Refuses its stored state when told to."""

    refuse = False

    def __setstate__(self, state: dict) -> None:
        if type(self).refuse:
            raise ValueError("this state is not to my taste")
        super().__setstate__(state)


class Custom(Persistent):
    """A state of its own form."""

    def __init__(self, items: list) -> None:
        self.items = items

    def __getstate__(self) -> tuple:
        return tuple(self.items)

    def __setstate__(self, state: tuple) -> None:
        self.__dict__["items"] = list(state)


class Plain:
    """Not persistent: stored inside what refers to it."""

    def __init__(self, **attributes: Any) -> None:
        self.__dict__.update(attributes)

    def __eq__(self, other: object) -> bool:
        return type(other) is Plain and other.__dict__ == self.__dict__

    __hash__ = None  # type: ignore[assignment]


class HashingByName(Persistent):
    """A key whose hash loads its state."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __hash__(self) -> int:
        return hash(self.name)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, HashingByName) and other.name == self.name
