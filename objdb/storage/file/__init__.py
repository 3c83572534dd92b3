"""A storage in one file, in ZODB's format; reading order: `format`, `log`, `index`, `recovery`,
`opening`, `seeking`, `medium`, `history`, `survey`, `transfer`,
`pack`, `following`, `storage`, `checking`."""
