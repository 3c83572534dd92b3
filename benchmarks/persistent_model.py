"""The shapes as persistent classes, for objdb and ZODB: both use the `persistent` package."""

from __future__ import annotations

from persistent import Persistent

from benchmarks import shapes


class Item(Persistent, shapes.Item):
    pass


class Node(Persistent, shapes.Node):
    pass


class Module(Persistent, shapes.Module):
    pass


class Manual(Persistent, shapes.Manual):
    pass


class ComplexAssembly(Persistent, shapes.ComplexAssembly):
    pass


class BaseAssembly(Persistent, shapes.BaseAssembly):
    pass


class CompositePart(Persistent, shapes.CompositePart):
    pass


class Document(Persistent, shapes.Document):
    pass


class AtomicPart(Persistent, shapes.AtomicPart):
    pass


class Connection(Persistent, shapes.Connection):
    pass
