"""Nobody is booked twice, however many try at once; and the naive way does book twice."""

import subprocess
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from datetime import date, timedelta
from random import Random
from threading import Barrier

import pytest
from click.testing import CliRunner

import objdb
from tutorials.calendar.app import main
from tutorials.calendar.check import double_bookings
from tutorials.calendar.errors import PersonBusy
from tutorials.calendar.model import Appointment, Calendar

THREADS = 6
ATTEMPTS = 50
TRIES = 6
PEOPLE = ("anna", "ben", "chiara", "dev")


def test_of_two_bookings_of_one_hour_the_second_conflicts(two_views, at, hour):
    """Two transactions that book one person for one hour cannot both commit."""
    (first, here), (second, there) = two_views
    here.make_appointment(at(2, 9), hour, "Budget", participants=["anna"])
    there.make_appointment(at(2, 9), hour, "Strategy", participants=["anna"])
    first.commit()
    with pytest.raises(objdb.ConflictError):
        second.commit()
    second.abort()
    second.begin()
    with pytest.raises(PersonBusy):
        there.make_appointment(at(2, 9), hour, "Strategy", participants=["anna"])


def test_a_day_that_exists_conflicts_too(db, two_views, at, hour):
    """The second commit also fails when the person already had something on that day."""
    with db.transaction() as connection:
        calendar = connection.root()["calendar"]
        calendar.make_appointment(at(2, 15), hour, "Dentist", participants=["anna"])
    for manager, _ in two_views:
        manager.begin()
    (first, here), (second, there) = two_views
    here.make_appointment(at(2, 9), hour, "Budget", participants=["anna"])
    there.make_appointment(at(2, 9), hour, "Strategy", participants=["anna"])
    first.commit()
    with pytest.raises(objdb.ConflictError, match="Day"):
        second.commit()
    second.abort()


def test_an_invitation_conflicts_with_a_booking(db, two_views, at, hour):
    """Inviting somebody conflicts with booking the same person elsewhere at that time."""
    with db.transaction() as connection:
        connection.root()["calendar"].make_appointment(at(2, 9), hour, "Budget")
    for manager, _ in two_views:
        manager.begin()
    (first, here), (second, there) = two_views
    here.invite(here.pick("Budget"), "anna")
    there.make_appointment(at(2, 9), hour, "Strategy", participants=["anna"])
    first.commit()
    with pytest.raises(objdb.ConflictError):
        second.commit()
    second.abort()


def test_removing_and_booking_conflict(db, two_views, at, hour):
    """Of a removal that empties a day and a booking on that day, only one commits."""
    with db.transaction() as connection:
        calendar = connection.root()["calendar"]
        calendar.make_appointment(at(2, 9), hour, "Budget", participants=["anna"])
    for manager, _ in two_views:
        manager.begin()
    (first, here), (second, there) = two_views
    here.remove(here.pick("Budget"))
    there.make_appointment(at(2, 10), hour, "Strategy", participants=["anna"])
    first.commit()
    with pytest.raises(objdb.ConflictError):
        second.commit()
    second.abort()


def test_different_people_do_not_conflict(db, two_views, at, hour):
    """Bookings of different people for the same hour are merged."""
    seed(db, at, hour)
    for manager, _ in two_views:
        manager.begin()
    (first, here), (second, there) = two_views
    here.make_appointment(at(2, 9), hour, "Budget", participants=["anna"])
    there.make_appointment(at(2, 9), hour, "Strategy", participants=["ben"])
    first.commit()
    second.commit()
    second.begin()
    assert there.find("Budget") and there.find("Strategy")


def test_the_naive_way_books_twice(at, hour):
    """Looking first and then inserting into the trees double-books: the trees merge it."""
    with objdb.DB(None) as db:
        with db.transaction() as connection:
            calendar = connection.root()["calendar"] = Calendar("Europe/Berlin")
            calendar.add_person("anna")
        seed(db, at, hour)
        barrier = Barrier(2)

        def book(subject):
            with db.transaction() as connection:
                naive(connection.root()["calendar"], at(2, 9), hour, subject)
                barrier.wait(60)

        with ThreadPoolExecutor(2) as pool:
            list(pool.map(book, ["Budget", "Strategy"]))
        with db.transaction() as connection:
            ((username, one, other),) = double_bookings(connection.root()["calendar"])
            assert username == "anna"
            assert {one.appointment.subject, other.appointment.subject} == {"Budget", "Strategy"}


def test_run_books_the_second_one_elsewhere(db, at, hour):
    """Of two threads that want the same hour, one gets it and the other the next one."""
    barrier = Barrier(2)
    attempts = Counter()

    def book(subject):
        def once(connection):
            calendar = connection.root()["calendar"]
            when = calendar.free_slot(["anna"], at(2, 9), hour)
            calendar.make_appointment(when, hour, subject, participants=["anna"])
            attempts[subject] += 1
            if attempts[subject] == 1:
                barrier.wait(60)
            return when

        return db.run(once)

    with ThreadPoolExecutor(2) as pool:
        times = list(pool.map(book, ["Budget", "Strategy"]))
    assert sorted(times) == [at(2, 9), at(2, 10)]
    assert sorted(attempts.values()) == [1, 2]


def test_many_threads_never_book_anybody_twice(db, at, dice):
    """Hundreds of attempts by many threads leave nobody double-booked, and lose no booking."""
    start = Barrier(THREADS)
    seeds = [dice.random() for _ in range(THREADS)]

    def work(seed):
        dice = Random(seed)
        outcomes = Counter()
        start.wait(60)
        for number in range(ATTEMPTS):
            outcomes[attempt(db, dice, at, f"{seed} {number}")] += 1
        return outcomes

    with ThreadPoolExecutor(THREADS) as pool:
        total = sum(pool.map(work, seeds), Counter())
    assert total.total() == THREADS * ATTEMPTS
    assert total["booked"] and total["busy"]
    with db.transaction() as connection:
        calendar = connection.root()["calendar"]
        assert len(calendar) == total["booked"] - total["removed"]
        assert double_bookings(calendar) == []


def test_a_second_process_is_told_who_has_the_file(tmp_path):
    """While another process has the file, a command says so in one line, naming that process."""
    path = tmp_path / "cal.fs"
    runner = CliRunner()
    assert runner.invoke(main, ["init", "--zone", "UTC", "--file", str(path)]).exit_code == 0
    script = (
        "import objdb, sys\n"
        "with objdb.DB(sys.argv[1]):\n"
        "    print('open', flush=True)\n"
        "    sys.stdin.read()\n"
    )
    other = subprocess.Popen(
        [sys.executable, "-c", script, str(path)],
        text=True,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    with other:
        assert other.stdout.readline() == "open\n"
        result = runner.invoke(main, ["add", "Board", "2026-03-02", "--file", str(path)])
        assert result.exit_code == 1
        assert isinstance(result.exception, SystemExit)
        assert result.output.count("\n") == 1
        assert str(other.pid) in result.output
        with pytest.raises(objdb.StorageLockedError) as caught:
            objdb.DB(path)
        assert int(caught.value.pid) == other.pid
        assert caught.value.host
        other.stdin.close()
    result = runner.invoke(main, ["add", "Board", "2026-03-02", "--file", str(path)])
    assert result.exit_code == 0, result.output


def seed(db, at, hour):
    """Fill the trees, so that they have several leaves and none is about to be split.

    Two first insertions into an empty tree, and two that both split a leaf, are not merged.
    """
    with db.transaction() as connection:
        calendar = connection.root()["calendar"]
        for number in range(40):
            calendar.make_appointment(at(10 + number % 20, 9), hour, f"{number:02}")


def naive(calendar, when, lasts, subject):
    """Book anna if she is free, without anything that two such bookings would both change."""
    anna = calendar.person("anna")
    for one in calendar.between(when, when + lasts):
        assert anna not in one.appointment.participants
    appointment = Appointment(when, lasts, subject)
    appointment.participants = (anna,)
    calendar.by_uid[appointment.uid] = appointment
    calendar.by_subject[subject.casefold(), appointment.uid] = appointment
    calendar.by_date[date(2026, 3, 2), appointment.uid] = appointment


def attempt(db, dice, at, subject):
    """Book, move or remove at random among few people and hours; return what came of it."""
    when = at(dice.choice([2, 3]), dice.randrange(8, 18), dice.choice([0, 30]))
    lasts = timedelta(minutes=dice.choice([30, 60, 90]))
    people = dice.sample(PEOPLE, dice.choice([1, 1, 2, 3]))
    deed = dice.choice(["make", "make", "make", "move", "remove"])
    number = dice.random()

    def once(connection):
        calendar = connection.root()["calendar"]
        appointments = list(calendar)
        if deed == "make" or not appointments:
            calendar.make_appointment(when, lasts, subject, participants=people)
            return "booked"
        chosen = appointments[int(number * len(appointments))]
        if deed == "remove":
            calendar.remove(chosen)
            return "removed"
        calendar.change(chosen, date=when, participants=people)
        return "moved"

    try:
        return db.run(once, tries=TRIES)
    except PersonBusy:
        return "busy"
    except objdb.ConflictError:
        return "gave up"
