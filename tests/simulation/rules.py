"""The rules: what the server sends on each connection, and what each client knows.

The rules of order, on a connection:

    1  the tids of invalidations ascend, none is left out, and the reply to an own tpc_finish has
       the place of the invalidation; the oids are those that the transaction changed
    2  a load that was answered from the state before a transaction is sent before its invalidation
    3  one that was made from the state after it is sent behind
    4  when anybody has the reply to a tpc_finish, whoever calls ping then gets the invalidation
       first
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from objdb.testing.network import Connection
from objdb_zeo.messages import MSGPACK, REPLY, Frames, Message, Msgpack
from tests.simulation.model import Lineage, require, short

_CODEC = Msgpack()
_ERROR = 2


class Tap:
    """Looks at the messages of one connection, as the server takes and sends them."""

    def __init__(self, rules: Rules, server: Any, connection: Connection) -> None:
        self._rules = rules
        self._server = server
        self._lineage: Lineage = server.lineage
        self._connection, self._name = connection, connection.name
        self._up, self._down = Frames(), Frames()
        self._calls: dict[Any, tuple[str, Any, bytes]] = {}
        self._early: list[Any] = []  # invalidations before the reply to register
        self.last: bytes | None = None  # the last transaction that the client was told of

    def received(self, data: bytes) -> None:
        """Look at what the client sent."""
        for body in self._up.feed(data):
            if body != MSGPACK:
                message = _CODEC.decode(body)
                self._rules.note(f"{self._name} → {_told(message)}")
                if message.id:
                    required = self._rules.known.get(self._server.number, bytes(8))
                    self._calls[message.id] = message.name, message.arguments, required

    def sent(self, data: bytes) -> None:
        """Look at what the server sends."""
        for body in self._down.feed(data):
            if body != MSGPACK:
                self._look(_CODEC.decode(body))

    def _look(self, message: Message) -> None:
        if message.name != REPLY:
            self._rules.note(f"{self._name} ← {_told(message)}")
            if message.name == "invalidateTransaction":
                if self.last is None:
                    self._early.append(message.arguments)
                else:
                    self._invalidation(*message.arguments)
            return
        name, arguments, required = self._calls.pop(message.id)
        if name in ("tpc_finish", "objdb.commit") and self._rules.lose is not None:
            lose, self._rules.lose = self._rules.lose, None
            lose(self._connection)
        self._rules.note(f"{self._name} ← {name}: {_shown(message.arguments)}")
        if message.flag == _ERROR:
            if name == "loadBefore" and "POSKeyError" in message.arguments[0]:
                self._load(*arguments, None)
            return
        check = getattr(self, f"_{name.replace('.', '_')}", None)
        if check is not None:
            check(*arguments, message.arguments)
        if name == "ping":
            require(
                self._required() >= required, "order 4",
                lambda: f"{self._name} called ping, and was told {short(self.last)} only; somebody "
                f"had the reply to {short(required)}",
            )

    def _required(self) -> bytes:
        return self.last or bytes(8)

    def _next(self, tid: bytes) -> None:
        """Require that *tid* is the transaction after the last one."""
        last = self._required()
        require(
            tid > last, "order 1", f"{self._name} is told of {short(tid)} behind {short(last)}"
        )
        left_out = [each for each in self._lineage.tids if last < each < tid]
        require(
            not left_out, "order 1",
            lambda: f"{self._name} is told of {short(tid)}, and not of {short(left_out[0])}",
        )
        self.last = tid

    def _invalidation(self, tid: bytes, oids: Any) -> None:
        self._next(tid)
        changes = self._lineage.changes_of(tid)
        require(changes is not None, "order 1", f"{short(tid)} is told, and not committed")
        assert changes is not None
        require(
            set(oids) == changes.keys(), "all oids",
            lambda: f"the invalidation of {short(tid)} names {_all(oids)}, and {_all(changes)} "
            "were changed",
        )

    # -- replies, by the name of the call

    def _register(self, storage: Any, is_read_only: Any, tid: bytes) -> None:
        self.last = tid
        for arguments in self._early:
            self._invalidation(*arguments)

    def _tpc_finish(self, id: Any, tid: bytes) -> None:
        self._next(tid)
        known = self._rules.known
        known[self._server.number] = max(tid, known.get(self._server.number, tid))

    def _objdb_commit(self, id: Any, *arguments: Any) -> None:
        _, tid = arguments[-1]
        if tid is not None:
            self._tpc_finish(id, tid)

    def _objdb_load(self, oids: Any, bound: bytes, found: Any) -> None:
        for oid, revision in zip(oids, found, strict=True):
            self._load(oid, bound, revision)

    def _loadBefore(self, oid: bytes, bound: bytes, found: Any) -> None:
        self._load(oid, bound, found)

    def _load(self, oid: bytes, bound: bytes, found: Any) -> None:
        last = self._required()
        expected = self._lineage.before(oid, bound, last)
        if found == expected:
            return
        is_later = found is not None and (found[1] > last or (found[2] or last) > last)
        require(
            False, "order 3" if is_later else "order 2",
            f"{self._name} was told of {short(last)}; its load of {short(oid)} before "
            f"{short(bound)} is answered {_shown(found)}, and should be {_shown(expected)}",
        )

    def _lastTransaction(self, tid: bytes) -> None:
        last = self._required()
        require(
            tid == last, "order 3" if tid > last else "order 2",
            f"{self._name} was told of {short(last)}, and lastTransaction is {short(tid)}",
        )

    def _getInvalidations(self, since: bytes, found: Any) -> None:
        if found is not None:
            last, oids = found
            self._lastTransaction(last)
            wanted = {
                oid for each in self._lineage.commits if since < each.tid <= last
                for oid in each.changes
            }
            require(
                set(oids) == wanted, "all oids",
                lambda: f"what changed since {short(since)} is {_all(oids)}, not {_all(wanted)}",
            )


class Rules:
    """All rules. *note* writes into the log. `known`: by server, the largest tid of which anybody
    was sent the reply. `lose`: what is to be done with the connection of the next such reply."""

    def __init__(self, note: Any) -> None:
        self.note = note
        self.known: dict[int, bytes] = {}
        self.lose: Callable[[Connection], object] | None = None

    def tap(self, server: Any, connection: Connection) -> Tap:
        """Return what looks at a connection."""
        return Tap(self, server, connection)

    def check(self, client: Any) -> None:
        """Check what a client knows: its last transaction, and its cache."""
        storage = client.storage
        if storage is None:
            return
        last = storage.lastTransaction()
        require(
            last >= client.seen, "lastTransaction never goes back",
            f"{client.name}: {short(last)} after {short(client.seen)}",
        )
        client.seen = last
        link = storage._link
        if link._held is None and link._open.failure is None:
            check_cache(client.name, link.cache, last, client.lineage())


def check_cache(name: str, cache: Any, last: bytes, lineage: Lineage) -> None:
    """Require that what is cached was true, up to *last*."""
    for (oid, tid), entry in cache._entries.items():
        revisions = lineage.revisions(oid)
        if entry.end is None and revisions and revisions[-1] == (tid, entry.record):
            continue  # the last one
        at = next((i for i, each in enumerate(revisions) if each[0] == tid), None)
        require(
            at is not None and revisions[at][1] == entry.record, "cache",
            lambda oid=oid, tid=tid: f"{name} has {short(oid)} of {short(tid)}, which there is not",
        )
        assert at is not None
        following = revisions[at + 1][0] if at + 1 < len(revisions) else None
        is_right = entry.end == following
        if entry.end is None:
            is_right = following is None or following > last
        require(
            is_right, "cache",
            lambda oid=oid, tid=tid, end=entry.end, following=following:
            f"{name}, at {short(last)}, has {short(oid)} of {short(tid)} up to {short(end)}, and "
            f"it was changed by {short(following)}",
        )


def _told(message: Message) -> str:
    return f"{message.name} {_shown(message.arguments)}"


def _all(oids: Any) -> str:
    return " ".join(map(short, sorted(oids))) or "nothing"


def _shown(value: Any) -> str:
    """Return a value for the log; oids in their order."""
    if isinstance(value, bytes):
        is_id = len(value) == 8 and value[0] < 32
        return short(value) if is_id else value[:24].decode("ascii", "replace")
    if isinstance(value, tuple):
        parts = list(map(_shown, value))
        if len(value) > 1 and all(isinstance(each, bytes) and len(each) == 8 for each in value):
            parts.sort()
        return f"({' '.join(parts[:12])})"
    if isinstance(value, dict):
        return "{…}"
    return str(value)[:60]
