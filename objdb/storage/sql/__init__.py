"""A storage in SQLite; reading order: `statements`, `rows` (tables), `sqlite_engine`, `sqlite`."""
