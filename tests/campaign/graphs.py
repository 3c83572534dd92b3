"""Graphs of persistent objects that go back and forth between ZODB and objdb."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import transaction
import ZODB
from BTrees.OOBTree import OOBTree
from persistent.mapping import PersistentMapping
from persistent.wref import WeakRef
from ZODB.FileStorage import FileStorage as ZODBFileStorage

import objdb
from objdb.check import check


@contextmanager
def in_zodb(path: Path, **options: Any) -> Iterator[Any]:
    """A ZODB connection with transactions of its own, committed at the end."""
    db = ZODB.DB(ZODBFileStorage(str(path), **options))
    manager = transaction.TransactionManager()
    connection = db.open(manager)
    try:
        yield connection
        manager.commit()
    finally:
        manager.abort()
        connection.close()
        db.close()


@contextmanager
def in_objdb(path: Path) -> Iterator[objdb.Connection]:
    """An objdb connection in a transaction; the file is checked at the end."""
    with objdb.DB(path) as db:
        with db.transaction() as connection:
            yield connection
        check(db.storage).raise_if_damaged()


class Graph:
    """A model of a graph of persistent nodes, applied to a root and compared with one."""

    def __init__(self, edges: list[tuple[int, int, int]], values: list[Any]) -> None:
        self.edges = edges
        self.values = values

    def build(self, root: Any) -> None:
        nodes: list[Any] = [PersistentMapping() if i % 3 else OOBTree() for i in range(8)]
        for i, node in enumerate(nodes):
            node["value"] = self.values[i % len(self.values)]
        for source, target, kind in self.edges:
            link = nodes[target]
            linked = {0: link, 1: [link], 2: WeakRef(link), 3: {"deep": (link, link)}}[kind]
            nodes[source][f"to {target} by {kind}"] = linked
        root["nodes"] = nodes[:4] if len(self.edges) % 2 else nodes

    def compare(self, root: Any) -> None:
        nodes = list(root["nodes"])
        for i, node in enumerate(nodes):
            assert node["value"] == self.values[i % len(self.values)]
        for source, target, kind in self.edges:
            if source >= len(nodes) or target >= len(nodes):
                continue
            found = nodes[source][f"to {target} by {kind}"]
            unwrap = {
                0: lambda x: x, 1: lambda x: x[0], 2: lambda x: x(), 3: lambda x: x["deep"][1]
            }
            assert unwrap[kind](found) is nodes[target]


def graph_goes_round(path: Path, seed: int) -> None:
    """Write a random graph with one, read, rewrite and pack it with the other, many times."""
    chance = random.Random(seed)
    edges = [
        (chance.randrange(8), chance.randrange(8), chance.randrange(4))
        for _ in range(chance.randrange(30))
    ]
    graph = Graph(edges, [chance.random(), chance.randbytes(20), [str(seed)] * 3])
    for number in range(12):
        with chance.choice([in_objdb, in_zodb])(path) as connection:
            if number:
                graph.compare(connection.root())
            if number > 1 and chance.random() < 0.3 and hasattr(connection.db(), "pack"):
                connection.db().pack()
            else:
                graph.build(connection.root())
