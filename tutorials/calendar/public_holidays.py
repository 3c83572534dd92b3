"""Public holidays, as the `holidays` package knows them: from the laws of each country.

A holiday becomes an appointment of a whole day that keeps nobody busy. Its uid is made from what it
is, so that asking for the same holidays again adds nothing.
"""

from __future__ import annotations

import difflib
from datetime import date, timedelta

import holidays

from .errors import CalendarError
from .model import Calendar

CATEGORY = "Holiday"


def holidays_of(country: str, year: int, region: str = "") -> list[tuple[date, str]]:
    """Return the public holidays of a country in a year, as (date, name), in order.

    `country` is a code of two letters such as ``DE``; `region` one of its parts, such as ``BY``.
    Names are in English where the package has them. Raises CalendarError, listing what there is,
    for a country, a region or a year that is not known.
    """
    country = country.upper()
    countries = holidays.list_supported_countries(include_aliases=False)
    if country not in countries:
        near = difflib.get_close_matches(country, countries, n=3)
        hint = f" (perhaps {' or '.join(near)})" if near else ""
        raise CalendarError(
            f"unknown country {country!r}{hint}; there is {', '.join(sorted(countries))}"
        )
    regions = {name.upper(): name for name in countries[country]}
    if region and region.upper() not in regions:
        known = ", ".join(sorted(regions.values())) or "none"
        raise CalendarError(f"{country} has no region {region!r}; there is {known}")
    found = holidays.country_holidays(
        country, subdiv=regions.get(region.upper()), years=year, language=_language(country)
    )
    if not found:
        first, last = found.start_year, found.end_year
        raise CalendarError(
            f"no holidays are known for {country} in {year} (the data cover {first} to {last})"
        )
    return sorted(found.items())


def add_holidays(calendar: Calendar, country: str, year: int, region: str = "") -> int:
    """Enter the holidays, in the caller's transaction; return how many are new."""
    new = 0
    for day, name in holidays_of(country, year, region):
        uid = "-".join(filter(None, ("holiday", country, region, day.isoformat()))).lower()
        if calendar.with_uid(uid) is None:
            calendar.make_appointment(
                day, timedelta(days=1), name, uid=uid, category=CATEGORY, busy=False
            )
            new += 1
    return new


def _language(country: str) -> str | None:
    """Return English as the package spells it for this country, or None for the country's own."""
    offered = holidays.country_holidays(country).supported_languages
    return next((language for language in offered if language.startswith("en")), None)
