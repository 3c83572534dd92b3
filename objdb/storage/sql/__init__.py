"""Storages in SQL databases: what all have in common is in `storage`, SQLite in `sqlite`."""
