"""Logging every call to a storage, with arguments and result, in a line each.

    load           0x2a                                        8.1 µs  150 bytes, 0x0406…
    tpc_vote                                                 120.4 µs  no entries
    load           0xbb                                        2.0 µs  POSKeyError: no object 0xbb …
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sized
from functools import wraps
from typing import Any

from zope.interface import providedBy
from zope.interface.interface import Method

from objdb.errors import UsageError
from objdb.ids import format_oid, format_tid
from objdb.storage.layers.layer import Layer

# The names, in the interfaces, of arguments that are oids, and of those that are tids.
_OIDS = ("oid",)
_TIDS = ("serial", "tid", "prev_txn", "start", "stop", "unchanged_since")
_RECORD_FIRST = ("load", "loadBefore", "loadSerial")
_LEFT_OUT = ("transaction", "callback", "progress", "referencesf", "db")
_WIDTH = 40
_LONGEST = 100  # characters of a value, or of an error's message


class LoggedStorage(Layer):
    """Passes every call to *base*, and logs it to *logger*: its time, oids and tids, bytes, and the
    result or error.

    *logger*: a function that takes a line, a stream to write to, or a `logging.Logger`; by default
    the one named `objdb.storage.calls`, at the level INFO.
    """

    def __init__(self, base: Any, logger: Any = None) -> None:
        super().__init__(base)
        self._tell = _teller(logger)
        names: dict[str, tuple[str, ...]] = {}
        for interface in providedBy(self):
            for name, element in interface.namesAndDescriptions(all=True):
                if isinstance(element, Method) and not name.startswith("_"):
                    names[name] = max(names.get(name, ()), element.positional, key=len)
        for name, positional in names.items():
            self.__dict__[name] = self._logged(getattr(self, name), name, positional)

    def _logged(
        self, call: Callable[..., Any], name: str, names: tuple[str, ...]
    ) -> Callable[..., Any]:
        @wraps(call)
        def logged(*arguments: Any, **options: Any) -> Any:
            given = dict(zip(names, arguments, strict=False)) | options
            begin = time.perf_counter()
            try:
                result = call(*arguments, **options)
            except BaseException as error:
                self._line(begin, name, given, _short(f"{type(error).__name__}: {error}"))
                raise
            self._line(begin, name, given, _result(name, result))
            return result

        return logged

    def _line(self, begin: float, name: str, given: dict[str, Any], result: str) -> None:
        micro = (time.perf_counter() - begin) * 1e6
        shown = [_argument(key, value) for key, value in given.items() if key not in _LEFT_OUT]
        words = " ".join(word for word in shown if word)
        self._tell(f"{name:<14} {words:<{_WIDTH}} {micro:>10.1f} µs  {result}")


def _teller(logger: Any) -> Callable[[str], object]:
    if logger is None:
        logger = logging.getLogger("objdb.storage.calls")
    if isinstance(logger, logging.Logger):
        of_logger = logger
        return lambda line: of_logger.info("%s", line)
    if callable(logger):
        tell: Callable[[str], object] = logger
        return tell
    if callable(getattr(logger, "write", None)):
        return lambda line: logger.write(line + "\n")
    raise UsageError(f"{logger!r} is not a logger: give a function, a stream or a logging.Logger")


def _argument(name: str, value: Any) -> str:
    if name in _OIDS:
        return format_oid(value)
    if name in _TIDS:
        return "" if value is None else f"{name} {format_tid(value)}"
    if name == "data":
        return _bytes(value)
    if value is None or value == "":
        return ""
    return f"{name} {_value(value)}"


def _result(name: str, result: Any) -> str:
    if name == "new_oid":
        return format_oid(result)
    if name in _RECORD_FIRST:
        parts = result if isinstance(result, tuple) else (result,)
        return ", ".join([_bytes(parts[0]), *(_value(part) for part in parts[1:])])
    return "" if result is None else _value(result)


def _value(value: Any) -> str:
    if isinstance(value, bytes):
        return format_tid(value) if len(value) == 8 else _bytes(value)
    if isinstance(value, (list, dict)):
        return f"{len(value) or 'no'} entries"
    return _short(repr(value)) if value is not None else "nothing"


def _bytes(record: Any) -> str:
    return f"{len(record)} bytes" if isinstance(record, Sized) else "nothing"


def _short(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= _LONGEST else text[: _LONGEST - 1] + "…"
