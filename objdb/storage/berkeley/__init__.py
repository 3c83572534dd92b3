"""A storage in Berkeley DB; reading order: `directory` (its files, and checks before opening),
`engine` (rows), `environment` (tables), `change` (a transaction of the engine),
`reading`, `storage`, `backup`."""
