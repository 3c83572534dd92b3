"""Keys as bytes: keys that are equal in a dict have the same bytes.

    s  text                UTF-8                       the bytes are the key
    b  bytes               themselves                  the bytes are the key
    i  whole number        sign, digits, hexadecimal   the key, if its type is int
    r  other number        numerator/denominator
    f  inf, -inf, nan      their names
    c  complex             its two numbers
    n  None
    t  tuple               each item: length (4 bytes, big-endian), bytes
    z  frozenset           the same, in the order of the bytes
    p  anything else       its pickle, without a memo

If the bytes do not determine the key (1, 1.0 and True are one key), the *original* is its pickle;
otherwise it is empty. A subclass with a comparison of its own is "anything else". All NaN are one
key: a dict distinguishes them by identity, which a file cannot keep.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Iterable
from decimal import Decimal
from fractions import Fraction
from typing import Any, cast

from objdb.errors import UnpicklableError

_PROTOCOL = 4


def encode(key: Any) -> bytes:
    """Return the bytes of a key.

    Raises TypeError for a key that is not hashable, `UnpicklableError` for one that cannot be
    pickled.
    """
    kind = type(key)
    if kind is str:
        return b"s" + cast(str, key).encode("utf-8", "surrogatepass")
    if kind is int:
        return b"i%x" % key
    if kind is bytes:
        return b"b" + cast(bytes, key)
    hash(key)
    return _encode(key)


def original_of(key: Any) -> bytes:
    """Return the original of a key: its pickle, or b"". Raises the errors of `encode`."""
    return b"" if type(key) in (str, int, bytes) else _pickled(key)


def decode(encoded: bytes, original: bytes) -> Any:
    """Return the key. Raises the errors of unpickling."""
    if original:
        return pickle.loads(original)
    kind, rest = encoded[:1], encoded[1:]
    if kind == b"s":
        return rest.decode("utf-8", "surrogatepass")
    return int(rest, 16) if kind == b"i" else rest


def _encode(key: Any) -> bytes:
    if key is None:
        return b"n"
    if _is_like(key, str):
        return b"s" + str.encode(key, "utf-8", "surrogatepass")
    if _is_like(key, bytes):
        return b"b" + bytes(key)
    if _is_like(key, bool, int, float, Decimal, Fraction):
        return _real(key)
    if _is_like(key, complex):
        return _real(key.real) if key.imag == 0 else b"c" + _joined(map(_real, _parts(key)))
    if _is_like(key, tuple):
        return b"t" + _joined(map(_encode, tuple.__iter__(key)))
    if _is_like(key, frozenset):
        return b"z" + _joined(sorted(map(_encode, key)))
    return b"p" + _pickled(key)


def _is_like(key: Any, *kinds: type) -> bool:
    """Whether *key* is compared like the instances of one of these classes."""
    kind = type(key)
    return any(
        isinstance(key, base)
        and kind.__eq__ is base.__eq__
        and kind.__hash__ is base.__hash__
        for base in kinds
    )


def _real(number: Any) -> bytes:
    try:
        numerator, denominator = number.as_integer_ratio()
    except (OverflowError, ValueError):
        return b"f" + str(float(number)).encode()
    if denominator == 1:
        return b"i%x" % numerator
    return b"r%x/%x" % (numerator, denominator)


def _parts(number: complex) -> tuple[float, float]:
    return number.real, number.imag


def _joined(parts: Iterable[bytes]) -> bytes:
    return b"".join(len(part).to_bytes(4, "big") + part for part in parts)


def _pickled(key: Any) -> bytes:
    """Return a pickle without back references, so that it is the same whether equal parts are
    one object or several."""
    file = io.BytesIO()
    pickler = pickle.Pickler(file, _PROTOCOL)
    pickler.fast = True
    try:
        pickler.dump(key)
    except Exception as error:
        raise UnpicklableError(
            f"the key {shown(key)} cannot be pickled: {error}. Nothing was changed",
            class_name=f"{type(key).__module__}.{type(key).__qualname__}",
        ) from error
    return file.getvalue()


def shown(key: Any) -> str:
    """Return a key as shown in messages."""
    try:
        text = repr(key)
    except Exception:
        text = f"<{type(key).__qualname__}>"
    return text if len(text) <= 100 else text[:97] + "..."
