"""Storages over storages: each adds one thing, and passes the rest through."""
