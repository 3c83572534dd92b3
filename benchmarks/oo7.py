"""The OO7 benchmark: its database, and the traversals T1 and T2b.

    module ── complex assembly ──3── … ──3── base assembly ──3──▸ composite part ── document
                   (levels 1 … n-1)            (level n)               │ 20
                                                                  atomic part ──3──▸ atomic part
                                                                       (through connections)

The small configuration has 7 levels of assemblies, 500 composite parts of 20 atomic parts, three
connections out of each atomic part, documents of 2,000 bytes, a manual of 100 KB. The connections
of a composite part make a ring first, so that its whole graph can be reached, then go to random
parts of the same composite.

T1 walks the assembly tree; at each base assembly it walks, depth first, the atomic parts of each
composite part it uses. T2b does the same, and swaps `x` and `y` of each atomic part at each visit.
The classes come from a model (`persistent_model` or `durus_model`), so all systems run this code.
"""

from __future__ import annotations

import random
from typing import Any

from benchmarks.shapes import text_of

ATOMIC_PARTS = 20
CONNECTIONS = 3
CHILDREN = 3
MANUAL_BYTES = 100_000


def build(model: Any, composite_parts: int, levels: int) -> Any:
    """Make the module, from which everything is reachable."""
    rng = random.Random(7)
    composites = [_composite(model, number, rng) for number in range(composite_parts)]
    module = model.Module(0)
    module.manual = model.Manual(text_of(0, MANUAL_BYTES))
    module.top = _assembly(model, composites, levels, None, rng)
    return module


def _composite(model: Any, number: int, rng: random.Random) -> Any:
    composite = model.CompositePart(number)
    composite.document = model.Document(number)
    first = number * ATOMIC_PARTS
    parts = [model.AtomicPart(first + index, composite) for index in range(ATOMIC_PARTS)]
    for index, source in enumerate(parts):
        targets = [parts[(index + 1) % ATOMIC_PARTS]]
        targets += [rng.choice(parts) for _ in range(CONNECTIONS - 1)]
        for target in targets:
            connection = model.Connection(source, target, rng.randrange(1000))
            source.outgoing.append(connection)
            target.incoming.append(connection)
    composite.parts = parts
    composite.root = parts[0]
    return composite


def _assembly(model: Any, composites: list[Any], levels: int, parent: Any, rng: Any) -> Any:
    number = rng.randrange(1_000_000)
    if levels == 1:
        base = model.BaseAssembly(number)
        base.parent = parent
        base.parts = [rng.choice(composites) for _ in range(CHILDREN)]
        return base
    assembly = model.ComplexAssembly(number)
    assembly.parent = parent
    assembly.children = [
        _assembly(model, composites, levels - 1, assembly, rng) for _ in range(CHILDREN)
    ]
    return assembly


def visits(levels: int) -> int:
    """How many atomic parts a traversal visits."""
    base_assemblies: int = CHILDREN ** (levels - 1)
    return base_assemblies * CHILDREN * ATOMIC_PARTS


def traverse(module: Any, levels: int, update: bool = False) -> int:
    """T1, or T2b with `update`; returns the number of visits to atomic parts."""
    return _walk_assembly(module.top, levels, update)


def _walk_assembly(assembly: Any, levels: int, update: bool) -> int:
    if levels == 1:
        return sum(_walk_parts(composite.root, set(), update) for composite in assembly.parts)
    return sum(_walk_assembly(child, levels - 1, update) for child in assembly.children)


def _walk_parts(part: Any, seen: set[int], update: bool) -> int:
    seen.add(part.number)
    if update:
        part.x, part.y = part.y, part.x
    count = 1
    for connection in part.outgoing:
        target = connection.target
        if target.number not in seen:
            count += _walk_parts(target, seen, update)
    return count
