"""Handing out connections: `db` (the database), `pool`, `invalidations`, `opening` (by path or
URI), `statistics`."""
