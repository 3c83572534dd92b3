"""The tables, and the statements that find and change rows in them.

In a database with checksums each row has one in a column: see `rows`. Databases created by objdb
0.1 have none, and do not change: another process may have one open with that release.
"""

from __future__ import annotations

# {by_key}: the clause for a table in key order, where supported.
SCHEMA = (
    """CREATE TABLE facts (name TEXT PRIMARY KEY, value INTEGER NOT NULL)""",
    """CREATE TABLE objects (
        oid INTEGER PRIMARY KEY, tid INTEGER NOT NULL, data BLOB, version TEXT, outside INTEGER,
        repeat INTEGER, follows_gap INTEGER, crc INTEGER NOT NULL)""",
    """CREATE TABLE old_revisions (
        oid INTEGER NOT NULL, tid INTEGER NOT NULL, data BLOB, version TEXT, outside INTEGER,
        repeat INTEGER, follows_gap INTEGER, crc INTEGER NOT NULL, PRIMARY KEY (oid, tid)) {by_key}
        """,
    """CREATE TABLE transactions (
        tid INTEGER PRIMARY KEY, status TEXT NOT NULL, user TEXT NOT NULL,
        description TEXT NOT NULL, extension BLOB NOT NULL, oids BLOB NOT NULL,
        size INTEGER NOT NULL, crc INTEGER NOT NULL)""",
    "CREATE INDEX objects_in_versions ON objects (version) WHERE version IS NOT NULL",
    "CREATE INDEX old_in_versions ON old_revisions (version) WHERE version IS NOT NULL",
    "CREATE VIEW revisions AS SELECT oid, tid, version, data FROM objects"
    " UNION ALL SELECT oid, tid, version, data FROM old_revisions",
)

# Revisions that were replaced up to a transaction.
FORGET_OLD = (
    "DELETE FROM old_revisions WHERE EXISTS (SELECT 1 FROM objects AS newer WHERE"
    " newer.oid = old_revisions.oid AND newer.tid <= ?) OR EXISTS (SELECT 1 FROM old_revisions"
    " AS newer WHERE newer.oid = old_revisions.oid AND newer.tid > old_revisions.tid AND"
    " newer.tid <= ?)"
)
FORGET_TRANSACTIONS = (
    "DELETE FROM transactions WHERE tid <= ? AND tid < (SELECT max(tid) FROM transactions)"
)
NOTE_PACKED = (
    "INSERT INTO facts (name, value) VALUES ('packed_tid', ?) ON CONFLICT (name)"
    " DO UPDATE SET value = excluded.value WHERE excluded.value > facts.value"
)
SET_OIDS_ASIDE = (
    "UPDATE facts SET value = max(value, ?, coalesce((SELECT max(oid) FROM objects), 0)) + ?"
    " WHERE name = 'last_oid'"
)
NOTE_LAST_OID = "UPDATE facts SET value = ? WHERE name = 'last_oid' AND value < ?"
NEW_TRANSACTIONS = "SELECT tid, oids FROM transactions WHERE tid > ? ORDER BY tid"
REVISION_TABLES = ("objects", "old_revisions")


class Statements:
    """The statements of a database, with or without checksums.

    Columns are: of a revision `tid, data, version, outside, repeat, follows_gap[, crc]`, of a
    transaction `tid, status, user, description, extension, oids, size[, crc]`.
    """

    def __init__(self, has_checksums: bool) -> None:
        self.has_checksums = has_checksums
        crc = ", crc" if has_checksums else ""
        or_none = crc or ", NULL"
        mark = ", ?" if has_checksums else ""
        and_set = ", crc = excluded.crc" if has_checksums else ""
        self.revision_columns = revision = f"tid, data, version, outside, repeat, follows_gap{crc}"
        self.transaction_columns = f"tid, status, user, description, extension, oids, size{crc}"
        # -- finding
        self.current = f"SELECT oid, tid, data, version{or_none} FROM objects WHERE oid = ?"
        self.ahead = (
            f"SELECT oid, tid, data, version{or_none} FROM objects WHERE oid BETWEEN ? AND ?"
            " AND length(data) <= 4096 ORDER BY oid"
        )
        self.row = (
            f"SELECT {revision} FROM objects WHERE oid = ? AND tid = ?"
            f" UNION ALL SELECT {revision} FROM old_revisions WHERE oid = ? AND tid = ?"
        )
        self.before = (
            f"SELECT {revision} FROM objects WHERE oid = ? AND tid < ?"
            f" UNION ALL SELECT * FROM (SELECT {revision} FROM old_revisions WHERE oid = ? AND"
            " tid < ? ORDER BY tid DESC LIMIT 1) AS old ORDER BY tid DESC LIMIT 1"
        )
        self.after = (
            f"SELECT {revision} FROM objects WHERE oid = ? AND tid > ?"
            f" UNION ALL SELECT * FROM (SELECT {revision} FROM old_revisions WHERE oid = ? AND"
            " tid > ? ORDER BY tid LIMIT 1) AS old ORDER BY tid LIMIT 1"
        )
        self.transaction = f"SELECT {self.transaction_columns} FROM transactions WHERE tid = ?"
        # -- changing
        self.keep_old = (
            f"INSERT INTO old_revisions (oid, {revision}) SELECT oid, {revision} FROM objects"
            " WHERE oid = ?"
        )
        self.store = (
            f"INSERT INTO objects (oid, {revision}) VALUES (?, ?, ?, ?, ?, ?, ?{mark}) ON CONFLICT"
            " (oid) DO UPDATE SET tid = excluded.tid, data = excluded.data, version ="
            " excluded.version, outside = excluded.outside, repeat = excluded.repeat,"
            f" follows_gap = excluded.follows_gap{and_set}"
        )
        self.store_new = f"INSERT INTO objects (oid, tid, data{crc}) VALUES (?, ?, ?{mark})"
        self.store_plain = (
            f"{self.store_new} ON CONFLICT (oid) DO UPDATE SET tid = excluded.tid, data ="
            " excluded.data, version = NULL, outside = NULL, repeat = NULL, follows_gap = NULL"
            f"{and_set}"
        )
        set_crc = ", crc = ?" if has_checksums else ""
        self.change = (
            f"UPDATE {{}} SET version = ?, outside = ?, repeat = ?, follows_gap = ?{set_crc}"
            " WHERE oid = ? AND tid = ?"
        )
        self.note = (
            f"INSERT INTO transactions ({self.transaction_columns})"
            f" VALUES (?, ?, ?, ?, ?, ?, ?{mark})"
        )
        self.renote = (
            "UPDATE transactions SET status = ?, user = ?, description = ?, extension = ?,"
            f" oids = ?, size = ?{set_crc} WHERE tid = ?"
        )
