"""Objects bound to one snapshot in one transaction.

Reading order: `connection` (two stories: load, commit), `changes` (what a transaction changed),
`savepoint` (states that left memory), `aging` (what was used when), `retry`.
"""
