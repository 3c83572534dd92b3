"""Public holidays, from real data."""

from datetime import date, datetime, timedelta

import pytest

from tutorials.calendar.errors import CalendarError
from tutorials.calendar.public_holidays import add_holidays, holidays_of


def test_the_holidays_of_a_country():
    """The holidays of Germany in 2026 are those of the law, Easter worked out."""
    assert [(f"{day:%m-%d}", name) for day, name in holidays_of("de", 2026)] == [
        ("01-01", "New Year's Day"),
        ("04-03", "Good Friday"),
        ("04-06", "Easter Monday"),
        ("05-01", "Labor Day"),
        ("05-14", "Ascension Day"),
        ("05-25", "Pentecost Monday"),
        ("10-03", "German Unity Day"),
        ("12-25", "Christmas Day"),
        ("12-26", "Second Day of Christmas"),
    ]


def test_the_holidays_of_a_region():
    """A part of a country may have more."""
    more = set(holidays_of("DE", 2026, "by")) - set(holidays_of("DE", 2026))
    assert (date(2026, 1, 6), "Epiphany") in more
    assert date(2026, 8, 8) in dict(holidays_of("DE", 2026, "augsburg"))


def test_holidays_enter_the_calendar_once(calendar):
    """Holidays are whole days that keep nobody busy; asking again adds nothing."""
    assert add_holidays(calendar, "FR", 2026) == 11
    assert add_holidays(calendar, "fr", 2026) == 0
    (one,) = calendar.on(date(2026, 7, 14))
    assert one.appointment.whole_day and not one.appointment.busy
    assert one.appointment.category == "Holiday"
    calendar.make_appointment(
        datetime(2026, 7, 14, 9, tzinfo=calendar.zone),
        timedelta(hours=1),
        "On call",
        participants=["anna"],
    )


def test_an_unknown_country_is_answered_with_a_list():
    """An unknown country, region or year is refused with what there is."""
    with pytest.raises(CalendarError, match=r"unknown country 'XX'.*; there is AD, AE, AF, .*ZW$"):
        holidays_of("XX", 2026)
    with pytest.raises(CalendarError, match=r"DE has no region 'ZZ'; there is Augsburg, BB, .*TH$"):
        holidays_of("DE", 2026, "ZZ")
    with pytest.raises(CalendarError, match=r"for DE in 1500 \(the data cover \d+ to \d+\)"):
        holidays_of("DE", 1500)
