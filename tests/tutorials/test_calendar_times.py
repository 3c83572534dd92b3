"""Wall clocks and instants: daylight saving time, zones, rules."""

from datetime import date, datetime, timedelta, timezone
from itertools import islice
from zoneinfo import ZoneInfo

import pytest

from tutorials.calendar.errors import CalendarError, PersonBusy
from tutorials.calendar.model import Calendar
from tutorials.calendar.recurrence import checked_rule, has_end, iter_starts, rule_until
from tutorials.calendar.zones import local_zone_name, midnight, utc_days, zone_like, zone_named

UTC = timezone.utc


def starts(appointment, zone, count=10):
    """Return the first starts of an appointment, in UTC, as text."""
    found = islice(appointment.occurrences(zone), count)
    return [f"{one.start:%m-%d %H:%M}" for one in found]


def test_a_series_stays_on_the_wall_clock_in_spring(calendar, at, hour, berlin):
    """A weekly appointment at nine stays at nine when daylight saving time begins."""
    made = calendar.make_appointment(at(22, 9), hour, "Swim", repeat="FREQ=WEEKLY;COUNT=3")
    assert starts(made, berlin) == ["03-22 08:00", "03-29 07:00", "04-05 07:00"]


def test_a_series_stays_on_the_wall_clock_in_autumn(calendar, hour, berlin):
    """A daily appointment at nine stays at nine when daylight saving time ends."""
    first = datetime(2026, 10, 24, 9, tzinfo=berlin)
    made = calendar.make_appointment(first, hour, "Swim", repeat="FREQ=DAILY;COUNT=3")
    assert starts(made, berlin) == ["10-24 07:00", "10-25 08:00", "10-26 08:00"]


def test_a_skipped_hour_moves_a_series_by_that_hour(calendar, at, hour, berlin):
    """At a time that the clock skips, an appointment begins at the instant an hour later says."""
    made = calendar.make_appointment(at(28, 2, 30), hour, "Watch", repeat="FREQ=DAILY;COUNT=3")
    found = [one.start.astimezone(berlin) for one in made.occurrences(berlin)]
    assert [f"{one:%d %H:%M}" for one in found] == ["28 02:30", "29 03:30", "30 02:30"]


def test_an_hour_that_comes_twice_is_two_hours(calendar, hour, berlin):
    """In the hour that comes twice, the first and the second are different times to book."""
    first = datetime(2026, 10, 25, 2, tzinfo=berlin)
    second = first.replace(fold=1)
    calendar.make_appointment(first, hour, "First", participants=["anna"])
    calendar.make_appointment(second, hour, "Second", participants=["anna"])
    with pytest.raises(PersonBusy, match="'Second'"):
        calendar.make_appointment(second, hour / 2, "Clash", participants=["anna"])
    assert [one.appointment.subject for one in calendar.on(first.date())] == ["First", "Second"]


def test_a_duration_is_time_that_passes(calendar, at, hour):
    """An appointment of two hours that begins before the skipped hour ends three hours later."""
    made = calendar.make_appointment(at(29, 1, 30), 2 * hour, "Night", participants=["anna"])
    (one,) = made.occurrences(calendar.zone)
    assert one.end.astimezone(calendar.zone) == at(29, 4, 30).astimezone(UTC)
    with pytest.raises(PersonBusy):
        calendar.make_appointment(at(29, 4), hour, "Clash", participants=["anna"])
    calendar.make_appointment(at(29, 4, 30), hour, "Fine", participants=["anna"])


def test_series_in_two_zones_clash_only_while_the_clocks_differ(calendar, at, hour):
    """Two weekly series of two zones clash in the weeks in which one of them has changed clocks."""
    new_york = ZoneInfo("America/New_York")
    calendar.make_appointment(
        at(2, 15), hour, "Berlin", participants=["anna"], repeat="FREQ=WEEKLY;COUNT=8"
    )
    # 10:00 in New York is 16:00 in Berlin, but 15:00 from 8 to 29 March.
    with pytest.raises(PersonBusy, match="2026-03-09 15:00"):
        calendar.make_appointment(
            datetime(2026, 3, 2, 10, tzinfo=new_york),
            hour,
            "New York",
            participants=["anna"],
            repeat="FREQ=WEEKLY;COUNT=8",
        )
    calendar.make_appointment(
        datetime(2026, 3, 2, 10, tzinfo=new_york),
        hour,
        "New York",
        participants=["anna"],
        repeat="FREQ=WEEKLY;COUNT=8",
        skipped=[datetime(2026, 3, day, 10, tzinfo=new_york) for day in (9, 16, 23)],
    )


def test_a_day_without_midnight_begins_later():
    """Where the clock skips midnight, the day begins when the clock goes on."""
    calendar = Calendar("America/Santiago")
    day = date(2026, 9, 6)
    assert midnight(day, calendar.zone) == datetime(2026, 9, 6, 4, tzinfo=UTC)
    made = calendar.make_appointment(day, timedelta(days=1), "Fair")
    (one,) = made.occurrences(calendar.zone)
    assert one.end - one.start == timedelta(hours=23)
    assert calendar.on(day - timedelta(days=1)) == []
    assert calendar.on(day + timedelta(days=1)) == []


@pytest.mark.parametrize("zone", ["Pacific/Kiritimati", "Asia/Kathmandu", "Pacific/Pago_Pago"])
def test_days_are_those_of_the_calendars_zone(zone):
    """An appointment at one minute to midnight belongs to the day of the calendar's own zone."""
    calendar = Calendar(zone)
    late = datetime(2026, 3, 2, 23, 59, tzinfo=calendar.zone)
    calendar.make_appointment(late, timedelta(minutes=1), "Late")
    assert len(calendar.on(date(2026, 3, 2))) == 1
    assert calendar.on(date(2026, 3, 1)) == calendar.on(date(2026, 3, 3)) == []


def test_whole_days_recur_as_days(calendar, berlin):
    """A series of whole days has whole days, also the one with 23 hours."""
    made = calendar.make_appointment(
        date(2026, 3, 28),
        timedelta(days=1),
        "Fair",
        repeat="FREQ=DAILY;UNTIL=20260330",
        skipped=[date(2026, 3, 30)],
    )
    spans = [one.end - one.start for one in made.occurrences(berlin)]
    assert spans == [timedelta(hours=24), timedelta(hours=23)]


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ("FREQ=MONTHLY;BYDAY=1TH;COUNT=3", ["03-05 08:00", "04-02 07:00", "05-07 07:00"]),
        ("FREQ=MONTHLY;BYMONTHDAY=-1;COUNT=2", ["03-31 07:00", "04-30 07:00"]),
        (
            "FREQ=WEEKLY;INTERVAL=2;BYDAY=MO,WE;COUNT=4",
            ["03-02 08:00", "03-04 08:00", "03-16 08:00", "03-18 08:00"],
        ),
        ("FREQ=WEEKLY;UNTIL=20260316", ["03-02 08:00", "03-09 08:00", "03-16 08:00"]),
        ("FREQ=WEEKLY;UNTIL=20260316T080000Z", ["03-02 08:00", "03-09 08:00", "03-16 08:00"]),
        ("FREQ=WEEKLY;UNTIL=20260316T075959Z", ["03-02 08:00", "03-09 08:00"]),
        ("FREQ=WEEKLY;UNTIL=20260316T090000", ["03-02 08:00", "03-09 08:00", "03-16 08:00"]),
        ("RRULE:FREQ=YEARLY;COUNT=2", ["03-02 08:00", "03-02 08:00"]),
    ],
)
def test_rules(calendar, at, hour, berlin, rule, expected):
    """The rules of RFC 5545 give the times they should, with every way of writing an end."""
    assert starts(calendar.make_appointment(at(2, 9), hour, "x", repeat=rule), berlin) == expected


def test_a_rule_can_be_cut(at):
    """An end set later takes the place of a count or an earlier end."""
    rule = rule_until(checked_rule("FREQ=DAILY;COUNT=100", at(2, 9)), at(4, 9))
    assert has_end(rule)
    assert list(iter_starts(at(2, 9), rule)) == [at(2, 9), at(3, 9), at(4, 9)]


def test_utc_days_are_half_open(at):
    """A time that ends at midnight does not touch the next day; a moment touches its own day."""
    zero = datetime(2026, 3, 2, tzinfo=UTC)
    assert utc_days(zero, zero + timedelta(days=1)) == [date(2026, 3, 2)]
    assert utc_days(zero, zero) == [date(2026, 3, 2)]
    assert utc_days(at(2, 23), at(3, 2)) == [date(2026, 3, 2), date(2026, 3, 3)]


def test_a_zone_of_a_file_gets_a_name(berlin):
    """A home-made zone is recognised by what its clocks show; one like no other is not."""
    same = zone_like(ZoneInfo("Europe/Vienna"), 2026, berlin)
    assert same is berlin
    assert zone_like(timezone(timedelta(hours=5, minutes=45)), 2026, berlin) == ZoneInfo(
        "Asia/Kathmandu"
    )
    assert zone_like(timezone.utc, 2026, berlin) == ZoneInfo("UTC")
    assert zone_like(timezone(timedelta(hours=5, minutes=17)), 2026, berlin) is None


@pytest.mark.parametrize("name", ["Nowhere/Land", "", "/etc/passwd", "../x", "Europe", "a\0b"])
def test_bad_zone_names(name):
    """What is no name of a zone is refused, whatever the zone library makes of it."""
    with pytest.raises(CalendarError, match="there is no time zone"):
        zone_named(name)


def test_the_machines_zone_is_a_zone(monkeypatch):
    """The zone of the machine comes from TZ where that names one, and always exists."""
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    assert local_zone_name() == "Asia/Tokyo"
    monkeypatch.setenv("TZ", "nonsense")
    assert zone_named(local_zone_name())
