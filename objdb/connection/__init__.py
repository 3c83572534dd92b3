"""Objects bound to one snapshot in one transaction.

Reading order: `connection` (how objects are reached and changed), `loadpath` and `loading`, `view`,
`work` (a transaction's changes, and their commit) with `changes` and `savepoint`, `cache` with
`access_epochs`, `isolation` (what was read), `retry` with `transactions` and `turns`. Beside the
way: `mutations`, `partial_commit`, `subtransactions`, `root`; for asyncio `tasks`, `workers`,
`loops` and `prefetch`. `jar` is what all of them ask of a connection.
"""
