"""Values in messages: short, and without calling code of the values' classes, whose `__repr__` may
raise, be endless, or load objects."""

from __future__ import annotations

import reprlib
import types
from typing import Any

from objdb.records.broken import class_name

_MOST = 200  # characters
_PLAIN = frozenset({
    type(None), bool, int, float, complex, str, bytes, bytearray, type(...),
    types.FunctionType, types.BuiltinFunctionType, types.ModuleType,
})


class _Shown(reprlib.Repr):
    def __init__(self) -> None:
        super().__init__()
        self.maxstring = self.maxother = 80
        self.maxlevel = 3

    def repr1(self, x: Any, level: int) -> str:
        cls = type(x)
        if cls in (list, tuple, dict, set, frozenset):
            return super().repr1(x, level)
        if cls in _PLAIN:
            if cls in (str, bytes, bytearray):
                x = x[: 2 * self.maxstring]
            elif cls is int and x.bit_length() > 256:
                return f"<int of {x.bit_length()} bits>"
            return super().repr1(x, level)
        if isinstance(x, type):
            return f"<class {class_name(x)}>"
        return f"<{class_name(cls)} object>"


_shown = _Shown()


def shown(value: Any) -> str:
    """Return the text that stands for *value* in a message, at most 200 characters."""
    text = _shown.repr(value)
    return text if len(text) <= _MOST else text[: _MOST - 1] + "…"
