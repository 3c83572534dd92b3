"""The calendar's objects: making, changing and finding appointments, inviting people."""

from datetime import date, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import objdb
from tutorials.calendar.check import double_bookings, index_faults
from tutorials.calendar.errors import (
    CalendarError,
    NoSuchAppointment,
    PersonBusy,
    UnknownPerson,
)
from tutorials.calendar.model import Appointment, Calendar


def test_an_appointment_is_found_by_subject_date_and_uid(calendar, at, hour):
    """An appointment is found by the beginning of its subject, by its day and by its uid."""
    made = calendar.make_appointment(at(2, 9), hour, "Board meeting", location="Room 1")
    assert calendar.find("board") == [made]
    assert [one.appointment for one in calendar.on(date(2026, 3, 2))] == [made]
    assert calendar.with_uid(made.uid) is made
    assert calendar.on(date(2026, 3, 3)) == []
    assert (made.location, len(calendar)) == ("Room 1", 1)


def test_everything_survives_reopening(tmp_path, at, hour):
    """What was committed is there when the file is opened again."""
    path = tmp_path / "cal.fs"
    with objdb.DB(path) as db, db.transaction() as connection:
        calendar = connection.root()["calendar"] = Calendar("Europe/Berlin")
        calendar.add_person("anna", "Anna Berger", "anna@example.org")
        calendar.make_appointment(
            at(2, 9),
            hour,
            "Standup",
            participants=["anna"],
            repeat="FREQ=DAILY;COUNT=5",
            skipped=[at(3, 9)],
        )
        calendar.make_appointment(date(2026, 3, 9), timedelta(days=2), "Fair", busy=False)
        before = [appointment.fields() for appointment in calendar]
    with objdb.DB(path) as db, db.transaction() as connection:
        calendar = connection.root()["calendar"]
        assert [appointment.fields() for appointment in calendar] == before
        (anna,) = calendar.pick("Standup").participants
        assert anna is calendar.person("anna")
        assert (anna.realname, anna.email) == ("Anna Berger", "anna@example.org")
        with pytest.raises(PersonBusy):
            calendar.make_appointment(at(4, 9, 30), hour, "Clash", participants=["anna"])


def test_nobody_is_booked_twice(calendar, at, hour):
    """Booking a busy person raises PersonBusy, naming person, subject and time."""
    calendar.make_appointment(at(2, 9), hour, "Board meeting", participants=["anna"])
    with pytest.raises(PersonBusy) as caught:
        calendar.make_appointment(at(2, 9, 30), hour, "Strategy", participants=["ben", "anna"])
    assert str(caught.value) == (
        "anna is busy with 'Board meeting' from 2026-03-02 09:00 to 2026-03-02 10:00 CET"
    )
    assert calendar.find("Strategy") == []
    calendar.make_appointment(at(2, 9, 30), hour, "Strategy", participants=["ben"])


def test_appointments_may_touch(calendar, at, hour):
    """An appointment may begin at the instant at which the one before ends."""
    for start in (9, 10, 8):
        calendar.make_appointment(at(2, start), hour, f"At {start}", participants=["anna"])
    assert len(calendar.on(date(2026, 3, 2))) == 3


def test_appointments_across_midnight_clash(calendar, at, hour):
    """An appointment that runs over midnight is in the way on both days."""
    calendar.make_appointment(at(2, 20), 8 * hour, "Night shift", participants=["anna"])
    for when in (at(2, 23), at(3, 1), at(3, 3, 59)):
        with pytest.raises(PersonBusy):
            calendar.make_appointment(when, hour, "Clash", participants=["anna"])
    calendar.make_appointment(at(3, 4), hour, "Breakfast", participants=["anna"])


def test_appointments_in_different_zones_clash(calendar, at, hour):
    """Two appointments at the same instant clash, whatever their zones call it."""
    tokyo = datetime(2026, 3, 3, 7, 30, tzinfo=ZoneInfo("Asia/Tokyo"))
    calendar.make_appointment(at(2, 23), hour, "Late call", participants=["anna"])
    with pytest.raises(PersonBusy):
        calendar.make_appointment(tokyo, hour, "Early call", participants=["anna"])


def test_what_keeps_nobody_busy_does_not_clash(calendar, at, hour):
    """A holiday or a reminder of no duration lets people do something else."""
    calendar.make_appointment(at(2, 9), hour, "Board meeting", participants=["anna"])
    calendar.make_appointment(
        date(2026, 3, 2), timedelta(days=1), "Birthday", participants=["anna"], busy=False
    )
    calendar.make_appointment(at(2, 9, 30), timedelta(), "Take the pill", participants=["anna"])
    assert len(calendar.on(date(2026, 3, 2))) == 3


def test_a_whole_day_keeps_busy_in_the_calendars_zone(calendar, at, hour):
    """A busy whole day lasts from midnight to midnight in the calendar's zone."""
    calendar.make_appointment(date(2026, 3, 3), timedelta(days=2), "Fair", participants=["anna"])
    for when in (at(3, 0), at(4, 23)):
        with pytest.raises(PersonBusy):
            calendar.make_appointment(when, hour, "Clash", participants=["anna"])
    for when in (at(2, 23), at(5, 0)):
        calendar.make_appointment(when, hour, "Fine", participants=["anna"])


def test_inviting_books(calendar, at, hour):
    """Somebody invited is busy from then on, and cannot be invited twice or when busy."""
    meeting = calendar.make_appointment(at(2, 9), hour, "Board meeting", participants=["anna"])
    calendar.invite(meeting, "ben")
    assert [person.username for person in meeting.participants] == ["anna", "ben"]
    with pytest.raises(CalendarError, match="already takes part"):
        calendar.invite(meeting, "ben")
    with pytest.raises(UnknownPerson, match="there is anna, ben, chiara, dev"):
        calendar.invite(meeting, "zoe")
    calendar.make_appointment(at(2, 9), hour, "Dentist", participants=["chiara"])
    with pytest.raises(PersonBusy):
        calendar.invite(meeting, "chiara")
    with pytest.raises(PersonBusy):
        calendar.make_appointment(at(2, 9), hour, "Clash", participants=["ben"])


def test_moving_frees_the_old_time_and_books_the_new_one(calendar, at, hour):
    """A moved appointment leaves its old time free and keeps its people busy at the new one."""
    meeting = calendar.make_appointment(at(2, 9), hour, "Board meeting", participants=["anna"])
    calendar.change(meeting, date=at(2, 9, 30), subject="Strategy")
    assert calendar.find("Board") == [] and calendar.find("Strategy") == [meeting]
    calendar.make_appointment(at(2, 9), hour / 2, "Breakfast", participants=["anna"])
    with pytest.raises(PersonBusy):
        calendar.make_appointment(at(2, 10), hour, "Clash", participants=["anna"])


def test_a_move_that_clashes_changes_nothing(calendar, at, hour):
    """When a person is busy at the new time, the appointment stays as it was."""
    meeting = calendar.make_appointment(at(2, 9), hour, "Board meeting", participants=["anna"])
    calendar.make_appointment(at(3, 9), hour, "Dentist", participants=["anna"])
    before = meeting.fields()
    with pytest.raises(PersonBusy):
        calendar.change(meeting, date=at(3, 9), subject="Strategy")
    assert meeting.fields() == before
    assert calendar.pick("Board meeting") is meeting


def test_changing_the_zone_keeps_the_instant(calendar, at, hour):
    """A time may be moved to another zone although the instant is the same."""
    meeting = calendar.make_appointment(at(2, 9), hour, "Board meeting", participants=["anna"])
    calendar.change(meeting, date=at(2, 9).astimezone(ZoneInfo("Asia/Tokyo")))
    assert str(meeting.date.tzinfo) == "Asia/Tokyo"


def test_participants_can_be_exchanged(calendar, at, hour):
    """Those who no longer take part are free, the new ones are busy."""
    meeting = calendar.make_appointment(at(2, 9), hour, "Board", participants=["anna", "ben"])
    calendar.change(meeting, participants=["ben", "chiara"])
    calendar.make_appointment(at(2, 9), hour, "Dentist", participants=["anna"])
    with pytest.raises(PersonBusy):
        calendar.make_appointment(at(2, 9), hour, "Clash", participants=["chiara"])


def test_removing_frees(calendar, at, hour):
    """The people of an appointment that was called off are free."""
    meeting = calendar.make_appointment(at(2, 9), hour, "Board", participants=["anna"])
    calendar.remove(meeting)
    assert len(calendar) == 0
    calendar.make_appointment(at(2, 9), hour, "Dentist", participants=["anna"])


def test_free_slot_finds_the_first_gap(calendar, at, hour):
    """The first time is found at which all of several people are free."""
    calendar.make_appointment(at(2, 9), hour, "One", participants=["anna"])
    calendar.make_appointment(at(2, 10, 30), hour, "Two", participants=["ben"])
    assert calendar.free_slot(["anna", "ben"], at(2, 9), hour / 2) == at(2, 10)
    assert calendar.free_slot(["anna", "ben"], at(2, 9), hour) == at(2, 11, 30)
    assert calendar.free_slot(["chiara"], at(2, 9), hour) == at(2, 9)


def test_pick_wants_one_appointment(calendar, at, hour):
    """A subject that fits several appointments is refused, with the choices; an exact one wins."""
    review = calendar.make_appointment(at(2, 9), hour, "Review")
    calendar.make_appointment(at(3, 9), hour, "Review of the year")
    calendar.make_appointment(at(4, 9), hour, "Plan")
    other = calendar.make_appointment(at(5, 9), hour, "Plan")
    assert calendar.pick("review") is review
    with pytest.raises(NoSuchAppointment, match="'Plan' could be 2 appointments"):
        calendar.pick("Plan")
    assert calendar.pick(other.uid[:8]) is other
    with pytest.raises(NoSuchAppointment, match="no appointment 'Party'"):
        calendar.pick("Party")


def test_series_are_booked_time_by_time(calendar, at, hour):
    """Each time of a series is booked, apart from the skipped ones, with the added ones."""
    calendar.make_appointment(
        at(2, 9),
        hour,
        "Standup",
        participants=["anna"],
        repeat="FREQ=DAILY;COUNT=4",
        skipped=[at(4, 9)],
        added=[at(9, 9)],
    )
    for day in (2, 3, 5, 9):
        with pytest.raises(PersonBusy):
            calendar.make_appointment(at(day, 9), hour, "Clash", participants=["anna"])
    for day in (4, 6):
        calendar.make_appointment(at(day, 9), hour, "Fine", participants=["anna"])


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"subject": " \n "}, "needs a subject"),
        ({"date": datetime(2026, 3, 2, 9)}, "needs a zone"),
        ({"duration": timedelta(hours=-1)}, "must last from 0"),
        ({"duration": timedelta(days=5000)}, "must last from 0"),
        ({"date": date(2026, 3, 2)}, "must last whole days"),
        ({"date": date(12, 3, 2), "duration": timedelta(days=1)}, "out of reach"),
        ({"repeat": "FREQ=WEEKLY"}, "goes on for ever"),
        ({"repeat": "FREQ=DAILY;COUNT=1001"}, "more than 1000 times"),
        ({"repeat": "FREQ=DAILY;COUNT=3", "duration": timedelta(hours=25)}, "before it is over"),
        ({"repeat": "every day"}, "needs FREQ"),
        ({"repeat": "FREQ=HOURLY"}, "needs FREQ"),
        ({"repeat": "FREQ=DAILY;COUNT=x"}, "cannot be read"),
        ({"repeat": "FREQ=DAILY;COLOUR=red"}, "cannot be read"),
        ({"repeat": "FREQ=DAILY;INTERVAL=0"}, "must be 1 or more"),
        ({"repeat": "FREQ=DAILY;COUNT=0"}, "must be 1 or more"),
        ({"repeat": "FREQ=DAILY;BYHOUR=9,12;COUNT=3"}, "more than once a day"),
        ({"repeat": "FREQ=DAILY;UNTIL=20200101"}, "never comes true"),
        ({"participants": ["zoe"]}, "no person 'zoe'"),
    ],
)
def test_nonsense_is_refused(calendar, at, hour, fields, problem):
    """An appointment that makes no sense is refused with the reason, and leaves no trace."""
    wanted = {"date": at(2, 9), "duration": hour, "subject": "Board", "participants": ["anna"]}
    with pytest.raises(CalendarError, match=problem):
        calendar.make_appointment(**{**wanted, **fields})
    assert len(calendar) == 0


def test_a_series_without_end_needs_no_people(calendar, at, hour):
    """A series may go on for ever when nobody takes part, but nobody can be invited to it."""
    birthday = calendar.make_appointment(
        date(2000, 2, 29), timedelta(days=1), "Birthday", repeat="FREQ=YEARLY"
    )
    assert [one.appointment for one in calendar.on(date(2096, 2, 29))] == [birthday]
    with pytest.raises(CalendarError, match="goes on for ever"):
        calendar.invite(birthday, "anna")


def test_subjects_are_one_line_of_text(at, hour):
    """Control characters, which a terminal would obey, do not get into a subject."""
    assert Appointment(at(2, 9), hour, " a\n b\x1b[31m\x00 ").subject == "a b [31m"


def test_people_have_names_of_their_own(calendar):
    """A username cannot be given twice, nor be empty."""
    with pytest.raises(CalendarError, match="already a person"):
        calendar.add_person("anna")
    with pytest.raises(CalendarError, match="needs a username"):
        calendar.add_person("  ")


def test_zones_that_do_not_exist_are_refused():
    """An unknown zone is refused, with similar names."""
    with pytest.raises(CalendarError, match="did you mean Europe/Berlin"):
        Calendar("Europe/Berln")
    with pytest.raises(CalendarError, match=r"no time zone '\.\./etc'"):
        Calendar("../etc")


INTERVALS = st.lists(
    st.tuples(st.integers(0, 100), st.integers(0, 60), st.sampled_from(["anna", "ben"])),
    max_size=25,
)


@settings(max_examples=60, deadline=None)
@given(INTERVALS)
def test_bookings_agree_with_a_list(wanted):
    """Over three days, exactly those bookings are refused that a plain list finds overlapping."""
    calendar = Calendar("Asia/Kathmandu")
    for username in ("anna", "ben"):
        calendar.add_person(username)
    begin = datetime(2026, 3, 2, tzinfo=calendar.zone)
    accepted = []
    for start, length, username in wanted:
        clash = length and any(
            start < other + lasts and other < start + length and username == who
            for other, lasts, who in accepted
        )
        when, duration = begin + timedelta(hours=start), timedelta(hours=length)
        try:
            calendar.make_appointment(when, duration, "x", participants=[username])
        except PersonBusy:
            assert clash
        else:
            assert not clash
            if length:
                accepted.append((start, length, username))
    assert double_bookings(calendar) == []
    assert index_faults(calendar) == []
