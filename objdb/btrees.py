"""BTrees, with their types: sorted mappings and sets of which a part is loaded at a time.

They are the classes of the package `BTrees`, which tells type checkers nothing; at run time nothing
else is here. `OOBTree[str, Person]` is for annotations: at run time it has no items in brackets.
The letters say what keys and values are:

    O   any object that compares      I, U   32-bit numbers, signed or not      F   32-bit floats
                                      L, Q   64-bit numbers, signed or not
"""

from __future__ import annotations

from importlib import import_module
from typing import Any


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    family = name if name == "Length" else f"{name[:2]}BTree"
    return getattr(import_module(f"BTrees.{family}"), name)


__all__ = [
    "Length",
    "OOBTree", "OIBTree", "OLBTree", "OUBTree", "OQBTree", "IOBTree", "LOBTree", "UOBTree",
    "QOBTree", "IIBTree", "LLBTree", "UUBTree", "QQBTree", "IFBTree", "LFBTree", "UFBTree",
    "QFBTree", "IUBTree", "UIBTree", "LQBTree", "QLBTree", "OOTreeSet", "OITreeSet",
    "OLTreeSet", "OUTreeSet", "OQTreeSet", "IOTreeSet", "LOTreeSet", "UOTreeSet", "QOTreeSet",
    "IITreeSet", "LLTreeSet", "UUTreeSet", "QQTreeSet",
]
