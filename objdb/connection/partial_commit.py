"""Partial commits: a two-phase commit across several participants that ended halfway.

After the votes each participant is asked to finish, in the order of their sort keys. There is no
log of decisions across them. If one of them fails then, against the rules:

    finished       failing        not asked
    committed      unknown        not committed          when a connection fails
    committed      unknown, all that come later          when a data manager of others does

Connections to one database are one participant here: they are committed together.
"""

from __future__ import annotations

import logging
import sys
from typing import Any

from objdb.errors import PartialCommitError

_COMMITTED = object()  # the key under which a transaction keeps the connections that finished

logger = logging.getLogger("objdb.connection")


def note_committed(txn: Any, connection: Any) -> None:
    """Note that *connection* has finished, if it is not the only participant."""
    if len(txn._resources) > 1 and _party(connection) not in map(_party, _committed(txn)):
        txn.set_data(_COMMITTED, [*_committed(txn), connection])


def _committed(txn: Any) -> list[Any]:
    try:
        connections: list[Any] = txn.data(_COMMITTED)
        return connections
    except KeyError:
        return []


def failed_to_finish(txn: Any, connection: Any) -> PartialCommitError | None:
    """Return the error for a *connection* whose `tpc_finish` has failed; None if it is the only
    participant."""
    participants = _participants(txn)
    if len(participants) < 2:
        return None
    position = _position(participants, connection)
    return _error(participants[:position], [connection], participants[position + 1 :])


def committed_in_part(txn: Any) -> PartialCommitError | None:
    """Return the error for a commit of *txn* that has failed after a connection had finished;
    None if none had."""
    finished = _committed(txn)
    if not finished:
        return None
    participants = _participants(txn)
    position = _position(participants, finished[-1]) + 1
    return _error(participants[:position], participants[position:], [])


def tell_after_the_fact(txn: Any, connection: Any) -> None:
    """Log, and add to the error that is being handled, that *connection* and maybe others have
    committed what is now to be aborted (once for the transaction)."""
    error = sys.exc_info()[1]
    if isinstance(error, PartialCommitError) or _committed(txn)[:1] != [connection]:
        return
    message = str(committed_in_part(txn))
    logger.critical(message)
    if error is not None and hasattr(error, "add_note"):
        error.add_note(message)


def _participants(txn: Any) -> list[Any]:
    found: dict[int, Any] = {}
    for participant in sorted(txn._resources, key=lambda participant: participant.sortKey()):
        found.setdefault(_party(participant), participant)
    return list(found.values())


def _party(participant: Any) -> int:
    return id(participant.db() if hasattr(participant, "db") else participant)


def _position(participants: list[Any], one: Any) -> int:
    return [_party(participant) for participant in participants].index(_party(one))


def _error(committed: list[Any], unknown: list[Any], aborted: list[Any]) -> PartialCommitError:
    names = [tuple(map(_name, group)) for group in (committed, unknown, aborted)]
    words = ("is committed in", "may be committed or not in", "is not committed in")
    told = "; ".join(
        f"{text} {', '.join(group)}" for text, group in zip(words, names, strict=True) if group
    )
    return PartialCommitError(
        f"the transaction ended halfway, and was not the same for all who took part: it {told}. "
        "Compare them, and bring them together by hand; trying again would do the first part twice",
        committed=names[0], unknown=names[1], not_committed=names[2],
    )


def _name(participant: Any) -> str:
    if hasattr(participant, "db"):
        return str(participant.db().name)
    return f"{type(participant).__qualname__} ({participant.sortKey()})"
