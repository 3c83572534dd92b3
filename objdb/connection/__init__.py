"""Objects bound to one snapshot in one transaction.

Reading order: `loading` (the first story), `connection` (the second: change and commit),
`changes` (what a transaction changed), `savepoint` (states that left memory), `aging` (what was
used when), `retry`.
"""
