"""The objects of the benchmarks, as plain classes.

`Item` is what the containers hold: three attributes, a record of about 150 bytes. Systems that
store plain objects pickle these classes as they are; the object databases store subclasses of
them with the same names (`persistent_model.py`, `durus_model.py`), so all write the same state.

`Node` makes a plain tree. The rest is the schema of OO7 (Carey, DeWitt and Naughton, "The OO7
Benchmark", SIGMOD 1993), without the manual's accessors. A connection between two atomic parts
carries attributes of its own, so it is an object, as in the paper, and an atomic part knows the
connections in both directions.
"""

from __future__ import annotations

from hashlib import blake2b
from typing import Any


def text_of(number: int, length: int = 44) -> str:
    """Text that looks random, is the same in every run, and has `length` characters."""
    seed = blake2b(number.to_bytes(8, "big"), digest_size=32).hexdigest()
    return (seed * (length // len(seed) + 1))[:length]


class Item:
    """The value in a container."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.name = f"item {number}"
        self.text = text_of(number)


class Node:
    """A node of the tree that is walked."""

    def __init__(self, number: int, children: list[Any]) -> None:
        self.number = number
        self.text = text_of(number)
        self.children = children


class Design:
    """What all parts of an OO7 design have."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.kind = f"type{number % 10:03d}"
        self.build_date = 1000 + number % 1000


class Module(Design):
    """The whole design: the assembly at its top, and its manual."""

    manual: Any
    top: Any


class Manual:
    """One large text: 100 KB in the small configuration."""

    def __init__(self, text: str) -> None:
        self.text = text


class ComplexAssembly(Design):
    """An inner node of the assembly tree."""

    children: list[Any]
    parent: Any


class BaseAssembly(Design):
    """A leaf of the assembly tree: uses three composite parts."""

    parts: list[Any]
    parent: Any


class CompositePart(Design):
    """A graph of atomic parts, entered at `root`, with a document."""

    document: Any
    parts: list[Any]
    root: Any


class Document:
    """The text that describes a composite part: 2,000 bytes in the small configuration."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.title = f"Composite Part {number}"
        self.text = text_of(number, 2000)


class AtomicPart(Design):
    """A node of the graph; `outgoing` and `incoming` are its connections."""

    def __init__(self, number: int, composite: Any) -> None:
        super().__init__(number)
        self.x = number % 99_999
        self.y = number * 7 % 99_999
        self.composite = composite
        self.outgoing: list[Any] = []
        self.incoming: list[Any] = []


class Connection:
    """An edge of the graph."""

    def __init__(self, source: Any, target: Any, length: int) -> None:
        self.kind = f"type{length % 10:03d}"
        self.length = length
        self.source = source
        self.target = target
