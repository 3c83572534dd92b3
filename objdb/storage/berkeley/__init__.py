"""A storage in Berkeley DB; reading order: `directory` (what has to be right before it is opened),
`engine` (what errors mean), `environment` (tables), `change` (a transaction of the engine),
`reading`, `storage`, `backup`."""
