"""Errors on the wire, as ZEO's clients can rebuild them.

An error is a pair: the name of a class, and its attributes (a dict) or arguments (a tuple). The
names are those of ZODB's errors, and the keys those that ZODB's errors have. objdb's own facts are
in one key more, `objdb`: the name of the class in `objdb.errors`, the message, and the facts. So
this client raises the same error as the storage did, and ZEO's raises the one that it knows.
"""

from __future__ import annotations

from typing import Any

from objdb import errors
from objdb.errors import (
    ConflictError,
    MultipleUndoErrors,
    ObjdbError,
    POSKeyError,
    ReadConflictError,
    ReadOnlyError,
    StorageError,
    StorageTransactionError,
    UndoError,
)
from objdb_zeo.messages import plain

_ZODB = "ZODB.POSException."
_OURS = "objdb"
# Errors of Python itself that a call may end in, by the name on the wire.
_BUILTINS = {
    f"builtins.{cls.__name__}": cls
    for cls in (KeyError, TypeError, ValueError, AttributeError, AssertionError)
}


class ServerError(StorageError):
    """An error of the server of a class that this client does not know."""


class CommitInDoubtError(StorageError):
    """The connection was lost while a transaction was committed, and the server did not come back:
    it may be committed or not. No loop retries it."""


def to_wire(error: BaseException) -> tuple[str, Any]:
    """Return the pair that stands for an error."""
    if isinstance(error, POSKeyError):
        return f"{_ZODB}POSKeyError", (error.oid,)
    if isinstance(error, ConflictError):
        name = "ReadConflictError" if isinstance(error, ReadConflictError) else "ConflictError"
        return _ZODB + name, {
            "message": str(error), "oid": error.oid, "class_name": error.class_name,
            "serials": error.serials, _OURS: _facts(error),
        }
    if isinstance(error, MultipleUndoErrors):
        nested = tuple(
            (oid, (f"{_ZODB}UndoError", {"_reason": reason, "_oid": oid}))
            for oid, reason in error.reasons
        )
        return f"{_ZODB}MultipleUndoErrors", {
            "_errs": nested, "_reason": "Multiple errors", "_oid": None, _OURS: _facts(error),
        }
    if isinstance(error, UndoError):
        return f"{_ZODB}UndoError", {
            "_reason": error.reason, "_oid": error.oid, _OURS: _facts(error)
        }
    if isinstance(error, StorageTransactionError):
        return f"{_ZODB}StorageTransactionError", (str(error),)
    if type(error) is ReadOnlyError:
        return f"{_ZODB}ReadOnlyError", ()
    if isinstance(error, ObjdbError):
        return f"{_ZODB}StorageError", {"message": str(error), _OURS: _facts(error)}
    name = f"builtins.{type(error).__name__}"
    if name in _BUILTINS:
        return name, plain(error.args)
    return f"{_ZODB}StorageError", {"message": f"{type(error).__name__}: {error}"}


def _facts(error: ObjdbError) -> tuple[str, str, dict[str, Any]]:
    facts = {
        name: value for name, value in vars(error).items()
        if name in type(error)._all_facts() and plain(value) == value
    }
    return type(error).__name__, str(error), facts


def from_wire(found: Any, where: str) -> Exception:
    """Return the error that a pair stands for; *where* names the server in messages."""
    try:
        name, what = found
        ours = _from_facts(what[_OURS]) if isinstance(what, dict) and _OURS in what else None
        return ours or _from_zodb(str(name), what, where)
    except (TypeError, ValueError, AttributeError, LookupError):
        return ServerError(f"{where} answered with an error that cannot be read: {found!r}"[:500])


def _from_facts(found: Any) -> ObjdbError | None:
    try:
        name, message, facts = found
        cls = getattr(errors, name)
        if not (isinstance(cls, type) and issubclass(cls, ObjdbError)):
            return None
        error: ObjdbError = errors._rebuild(cls, message, {**cls._all_facts(), **facts})
        return error
    except (TypeError, ValueError, AttributeError):
        return None


def _from_zodb(name: str, what: Any, where: str) -> Exception:
    short = name.removeprefix(_ZODB)
    attributes = what if isinstance(what, dict) else {}
    arguments = what if isinstance(what, tuple) else ()
    if short == "POSKeyError":
        return POSKeyError(arguments[0] if arguments else b"", database=where)
    if short in ("ConflictError", "ReadConflictError", "BTreesConflictError"):
        cls = ReadConflictError if short == "ReadConflictError" else ConflictError
        serials = attributes.get("serials")
        return cls(
            oid=attributes.get("oid"), class_name=attributes.get("class_name"),
            serials=tuple(serials) if serials else None,
        )
    if short == "MultipleUndoErrors":
        reasons = tuple(
            (oid, str(nested[1].get("_reason"))) for oid, nested in attributes.get("_errs", ())
        )
        return MultipleUndoErrors(f"{where} cannot undo: {reasons}", reasons=reasons)
    if short == "UndoError":
        reason = str(attributes.get("_reason"))
        return UndoError(
            f"{where} cannot undo the transaction: {reason}", reason=reason,
            oid=attributes.get("_oid"),
        )
    if short == "ReadOnlyError":
        return ReadOnlyError(f"{where} is read-only. Open it for reading, or serve it for writing")
    if short == "StorageTransactionError":
        return StorageTransactionError(f"{where}: {' '.join(map(str, arguments))}")
    if name in _BUILTINS:
        return _BUILTINS[name](*arguments)
    told = attributes.get("message", what)
    return ServerError(f"{where}: {short}: {told}")
