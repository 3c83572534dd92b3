"""Calendar files: those of other programs in, our own out, and broken ones refused."""

from datetime import date, datetime, timedelta, timezone
from pathlib import Path
from zoneinfo import ZoneInfo

import icalendar
import pytest

from tutorials.calendar.errors import BadFile
from tutorials.calendar.ics_read import import_entries, read_ics
from tutorials.calendar.ics_write import calendar_as_ics
from tutorials.calendar.model import Calendar
from tutorials.calendar.public_holidays import add_holidays

FILES = Path(__file__).parent / "ics"
BERLIN = ZoneInfo("Europe/Berlin")
NOW = datetime(2026, 1, 1, tzinfo=timezone.utc)


@pytest.fixture
def empty():
    """A calendar without people."""
    return Calendar("Europe/Berlin")


def bring_in(calendar, name):
    """Import one of the files."""
    return import_entries(calendar, read_ics(FILES / name, calendar.zone))


def times(calendar, subject, before):
    """Return when an appointment takes place, on the clock in Berlin."""
    found = calendar.pick(subject).occurrences(calendar.zone, before=before)
    return [f"{one.start.astimezone(BERLIN):%m-%d %H:%M}" for one in found]


def everything(calendar):
    """Return what a calendar says, as values that can be compared."""
    return {
        appointment.uid: (
            appointment.fields(),
            [(one.username, one.realname, one.email) for one in appointment.participants],
        )
        for appointment in calendar
    }


def test_a_file_from_google(empty):
    """Series, exceptions, moved and cancelled times, guests and all-day events come in."""
    report = bring_in(empty, "google.ics")
    assert (report.added, report.changed) == (4, 0)
    assert report.notes == ["event 'Team meeting': left out, it is cancelled"]
    meeting = empty.pick("Team meeting")
    assert meeting.location == "Room 1, second floor"
    end = datetime(2027, 1, 1, tzinfo=BERLIN)
    assert times(empty, "Team meeting", end) == [
        "03-03 10:00",
        "03-31 10:00",
        "04-07 10:00",
        "04-14 10:00",
        "04-21 10:00",
        "04-28 10:00",
    ]
    assert times(empty, "Team meeting (moved)", end) == ["03-18 14:00"]
    assert [(one.username, one.realname, one.email) for one in meeting.participants] == [
        ("anna.example.org", "anna@example.org", "anna@example.org"),
        ("ben.okafor", "Ben Okafor", "ben@example.org"),
    ]
    off = empty.pick("Easter week off")
    assert (off.date, off.duration, off.busy) == (date(2026, 4, 6), timedelta(days=5), False)
    assert empty.pick("Flight to Lisbon 🛫").duration == timedelta(minutes=90)


def test_a_file_from_outlook(empty):
    """Zones under Windows names and of the file's own making get their usual names."""
    assert bring_in(empty, "outlook.ics").added == 2
    numbers = empty.pick("Quarterly numbers")
    assert numbers.date == datetime(2026, 3, 27, 14, tzinfo=BERLIN)
    assert str(numbers.date.tzinfo) == "Europe/Berlin"
    assert times(empty, "Quarterly", NOW + timedelta(days=365)) == [
        "03-27 14:00",
        "04-03 14:00",
        "04-10 14:00",
    ]
    assert numbers.participants[0].realname == "Berger, Anna"
    assert times(empty, "Call", NOW + timedelta(days=365)) == ["03-09 15:00"]


def test_a_file_from_apple(empty):
    """Series without an end, durations, floating times and addresses that are no mail come in."""
    report = bring_in(empty, "apple.ics")
    assert report.added == 3
    assert report.notes == ["'Choir': has no end, so its people are booked for two years"]
    birthday = empty.pick("Grandmother")
    assert birthday.repeat == "FREQ=YEARLY"
    assert [one.appointment for one in empty.on(date(2050, 4, 14))] == [birthday]
    assert times(empty, "Choir", datetime(2026, 3, 20, tzinfo=BERLIN)) == [
        "03-03 00:00",
        "03-16 23:00",
    ]
    assert empty.pick("Lunch").date == datetime(2026, 3, 4, 12, 30, tzinfo=BERLIN)
    assert [one.username for one in empty.pick("Choir").participants] == ["dev"]


def test_importing_books_nobody_twice(empty):
    """Guests who are busy are left out; what cannot be taken over is reported, event by event."""
    report = bring_in(empty, "clashes.ics")
    assert report.added == 4
    assert [
        [one.username for one in empty.pick(subject).participants]
        for subject in ("First", "Second", "Overlaps")
    ] == [["anna", "ben"], ["chiara"], []]
    assert [note.partition(":")[0] for note in report.notes] == [
        "event 'Take the temperature'",
        "event 'Meet the Nowhere Man'",
        "'Second'",
        "'Overlaps itself'",
    ]
    assert "Nowhere/Land' is unknown, took Europe/Berlin" in report.notes[1]
    assert "without anna, for anna is busy with 'First'" in report.notes[2]


@pytest.mark.parametrize("name", ["google.ics", "outlook.ics", "apple.ics"])
def test_importing_again_changes_nothing(empty, name):
    """A file that is imported a second time adds and changes nothing."""
    bring_in(empty, name)
    before = everything(empty)
    again = bring_in(empty, name)
    assert (again.added, again.changed) == (0, 0)
    assert everything(empty) == before


def test_importing_a_newer_file_changes(empty, tmp_path):
    """An event with a known uid changes the appointment that is there."""
    bring_in(empty, "outlook.ics")
    newer = tmp_path / "newer.ics"
    text = (FILES / "outlook.ics").read_text(encoding="utf-8")
    newer.write_text(text.replace("Call with New York", "Call with Boston"), encoding="utf-8")
    report = import_entries(empty, read_ics(newer, BERLIN))
    assert (report.added, report.changed) == (0, 1)
    assert empty.pick("Call with Boston") and not empty.find("Call with New York")


@pytest.mark.parametrize("name", ["google.ics", "outlook.ics", "apple.ics", "clashes.ics"])
def test_round_trip_of_foreign_files(empty, tmp_path, name):
    """What was imported, exported and imported elsewhere says the same."""
    bring_in(empty, name)
    copy = tmp_path / "copy.ics"
    copy.write_bytes(calendar_as_ics(empty, NOW))
    other = Calendar("Europe/Berlin")
    report = import_entries(other, read_ics(copy, other.zone))
    assert report.notes == []
    assert everything(other) == everything(empty)


def test_round_trip_of_our_own(calendar, tmp_path, at, hour):
    """Everything an appointment can have survives export and import."""
    add_holidays(calendar, "DE", 2026)
    tokyo = ZoneInfo("Asia/Tokyo")
    calendar.make_appointment(
        at(2, 9), hour, "Ünïcode; commas, and \\ 🎉", location="a;b,c", participants=["anna", "dev"]
    )
    calendar.make_appointment(
        at(3, 9, 15),
        timedelta(minutes=5),
        "Series",
        participants=["ben"],
        repeat="FREQ=MONTHLY;BYDAY=-1FR;COUNT=5",
        skipped=[datetime(2026, 4, 24, 9, 15, tzinfo=BERLIN)],
        added=[datetime(2026, 5, 1, 16, tzinfo=tokyo)],
    )
    calendar.make_appointment(datetime(2026, 10, 25, 0, 30, tzinfo=timezone.utc), hour, "In UTC")
    calendar.make_appointment(
        date(2026, 7, 6),
        timedelta(days=12),
        "Away",
        category="Vacation",
        busy=False,
        repeat="FREQ=YEARLY",
        skipped=[date(2027, 7, 6)],
    )
    calendar.make_appointment(at(5, 9), timedelta(), "Reminder")
    copy = tmp_path / "copy.ics"
    copy.write_bytes(calendar_as_ics(calendar, NOW))
    other = Calendar("Europe/Berlin")
    report = import_entries(other, read_ics(copy, other.zone))
    assert (report.added, report.notes) == (len(calendar), [])
    assert everything(other) == everything(calendar)


def test_exports_define_their_zones(calendar, at, hour):
    """An exported file defines the zones it uses, and icalendar reads it without complaint."""
    calendar.make_appointment(at(2, 9), hour, "Board meeting")
    file = icalendar.Calendar.from_ical(calendar_as_ics(calendar, NOW))
    assert [zone["TZID"] for zone in file.timezones] == ["Europe/Berlin"]
    assert [(event.start, event.duration, event.errors) for event in file.events] == [
        (at(2, 9), hour, [])
    ]


EVENT = "BEGIN:VCALENDAR\nVERSION:2.0\nPRODID:x\nBEGIN:VEVENT\n{}\nEND:VEVENT\nEND:VCALENDAR\n"


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "is no calendar file"),
        ("hello\nworld\n", "is no calendar file"),
        ("BEGIN:VCALENDAR\nVERSION:2.0\nBEGIN:VEVENT\nUID:1\n", "is cut off"),
        ("BEGIN:VCALENDAR\nBEGIN:VEVENT\nUID:1\nEND:VCALENDAR\n", "line 4: END:VCALENDAR without"),
        ("BEGIN:VCALENDAR\nno colon here\nEND:VCALENDAR\n", "is no valid calendar file"),
        (EVENT.format("UID:1\nSUMMARY:Board"), "event 'Board': DTSTART is missing"),
        (EVENT.format("SUMMARY:Board\nDTSTART:20260302T090000Z"), "event 'Board': UID is missing"),
        (EVENT.format("UID:1\nDTSTART:yesterday"), "event '1': DTSTART: "),
        (EVENT.format("UID:1\nDTSTART:20260230T090000Z"), "event '1': DTSTART: "),
        (EVENT.format("UID:1\nDTSTART:20260302T090000Z\nDTSTART:20260303T090000Z"), "given twice"),
        (EVENT.format("UID:1\nDTSTART:20260302T090000Z\nDTEND:20260301T090000Z"), "ends before"),
        (
            EVENT.format("UID:1\nDTSTART:20260302T090000Z\nDTEND;VALUE=DATE:20260303"),
            "is a day and",
        ),
        (EVENT.format("UID:1\nDTSTART:20260302T090000Z\nDURATION:an hour"), "DURATION: "),
        (EVENT.format("UID:1\nDTSTART:20260302T090000Z\nDURATION:-PT1H"), "ends before"),
        (EVENT.format("UID:1\nDTSTART:20260302T090000Z\nRRULE:FREQ=SOMETIMES"), "RRULE: "),
        (EVENT.format("UID:1\nDTSTART:20260302T090000Z\nEXDATE:never"), "EXDATE: "),
    ],
)
def test_broken_files_are_refused(tmp_path, text, problem):
    """A file that breaks the format is refused, naming the file, the event and the problem."""
    path = tmp_path / "broken.ics"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(BadFile) as caught:
        read_ics(path, BERLIN)
    assert str(caught.value).startswith(f"{path}: ")
    assert problem in str(caught.value)


def test_files_that_cannot_be_read(tmp_path):
    """A file that is missing, a folder, or no text is refused with its name."""
    binary = tmp_path / "binary.ics"
    binary.write_bytes(b"BEGIN:VCALENDAR\n\xff\xfe")
    for path, problem in (
        (tmp_path / "none.ics", "No such file"),
        (tmp_path, "Is a directory"),
        (binary, "no text in UTF-8 (at byte 16)"),
    ):
        with pytest.raises(BadFile) as caught:
            read_ics(path, BERLIN)
        assert str(path) in str(caught.value) and problem in str(caught.value)


def test_a_truncated_file_is_refused_or_whole(tmp_path):
    """A real file cut off anywhere is refused with BadFile, and never read in part."""
    whole = (FILES / "google.ics").read_bytes()
    path = tmp_path / "cut.ics"
    for length in range(0, len(whole) - len(b"END:VCALENDAR\r\n"), 97):
        path.write_bytes(whole[:length])
        with pytest.raises(BadFile):
            read_ics(path, BERLIN)


def test_a_calendar_without_events_is_fine(tmp_path, empty):
    """A calendar file without events brings nothing in."""
    path = tmp_path / "empty.ics"
    path.write_text("BEGIN:VCALENDAR\nVERSION:2.0\nPRODID:x\nEND:VCALENDAR\n", encoding="utf-8")
    assert import_entries(empty, read_ics(path, BERLIN)).added == 0
