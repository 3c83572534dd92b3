"""Storages whose revisions are rows of a table: what they share, however the rows are kept."""
