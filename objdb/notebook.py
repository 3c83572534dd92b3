"""IPython and Jupyter: what is shown of objects there, and what is completed. `import objdb`
installs it, where IPython is running.

    completion    a ghost is loaded first: its attributes are in its record
    shown         a PersistentMapping or PersistentList with its first items, and how many there are
"""

from __future__ import annotations

import sys
from itertools import islice
from typing import Any

_MOST_SHOWN = 10


def install() -> None:
    """Teach the IPython that is running about persistent objects; does nothing without one."""
    ask: Any = getattr(sys.modules.get("IPython"), "get_ipython", None)
    shell = None if ask is None else ask()
    if shell is None:
        return
    from IPython.utils.generics import complete_object
    from persistent import Persistent
    from persistent.list import PersistentList
    from persistent.mapping import PersistentMapping

    complete_object.register(Persistent, _complete)
    shown = shell.display_formatter.formatters["text/plain"]
    shown.for_type(PersistentMapping, _show_mapping)
    shown.for_type(PersistentList, _show_list)


def _complete(obj: Any, names: list[str]) -> list[str]:
    obj._p_activate()
    return sorted({*names, *getattr(obj, "__dict__", ())})


def _show_mapping(mapping: Any, printer: Any, cycle: bool) -> None:
    pairs = [f"{key!r}: {_short(value)}" for key, value in islice(mapping.items(), _MOST_SHOWN)]
    printer.text("{" + ", ".join(pairs) + _rest(mapping) + "}")


def _show_list(items: Any, printer: Any, cycle: bool) -> None:
    shown = map(_short, islice(items, _MOST_SHOWN))
    printer.text("[" + ", ".join(shown) + _rest(items) + "]")


def _short(value: Any) -> str:
    """Return what is shown of a value, without loading it if it is a ghost."""
    if getattr(value, "_p_changed", False) is None:
        return f"<{type(value).__name__}, not loaded>"
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _rest(container: Any) -> str:
    more = len(container) - _MOST_SHOWN
    return f", … {more} more" if more > 0 else ""
