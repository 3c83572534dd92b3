"""A storage in one file, in ZODB's format; reading order: `format`, `log`, `index`, `recovery`,
`generation`, `opening`, `find_tid`, `scan`, `history`, `versions`, `engine`, `storage`, `follower`,
`copying`, `mark`, `rewrite`, `pack`, `verify`."""
