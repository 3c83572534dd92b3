"""Objects of earlier releases go on living in the present one."""

import pickle

import pytest

import objdb
from tutorials.calendar.errors import PersonBusy
from tutorials.calendar.model import Appointment, Calendar, Person

# A state of the first release's Person, as the file has it.
FIRST_RELEASE = pickle.dumps({"name": "anna", "days": None}, protocol=3)


def old_person(name):
    """Return a person whose state is that of the first release."""
    person = Person(name)
    days = person.days
    vars(person).clear()
    vars(person).update({"name": name, "days": days})
    return person


def test_an_old_state_takes_the_new_shape():
    """A name becomes a username and a real name, and the attribute itself is gone."""
    person = Person.__new__(Person)
    person.__setstate__(pickle.loads(FIRST_RELEASE))
    assert vars(person) == {"username": "anna", "realname": "anna", "days": None}
    assert (person.name, person.email) == ("anna", "")


def test_setstate_leaves_the_given_state_alone():
    """The state that is handed in belongs to the caller and is not changed."""
    state = {"name": "anna", "days": None}
    Person.__new__(Person).__setstate__(state)
    assert state == {"name": "anna", "days": None}


def test_an_old_object_in_a_file(tmp_path, at, hour):
    """An old object is read without being written, then written in its new shape when changed."""
    path = tmp_path / "cal.fs"
    with objdb.DB(path) as db, db.transaction() as connection:
        calendar = connection.root()["calendar"] = Calendar("Europe/Berlin")
        calendar.people["anna"] = old_person("anna")
    with objdb.DB(path) as db:
        with db.transaction() as connection:
            anna = connection.root()["calendar"].person("anna")
            assert (anna.username, anna.realname, anna.name) == ("anna", "anna", "anna")
            assert anna._p_changed is False
            before = anna._p_serial
        with db.transaction() as connection:
            anna = connection.root()["calendar"].person("anna")
            anna.realname = "Anna Berger"
            assert anna._p_serial == before
    with objdb.DB(path) as db, db.transaction() as connection:
        anna = connection.root()["calendar"].person("anna")
        assert (anna.username, anna.realname) == ("anna", "Anna Berger")
        assert "name" not in vars(anna)
        assert anna._p_serial > before


def test_an_old_person_can_be_booked(db, two_views, at, hour):
    """Someone from the first release is protected from double booking like everybody."""
    with db.transaction() as connection:
        connection.root()["calendar"].people["old"] = old_person("old")
    for manager, _ in two_views:
        manager.begin()
    (first, here), (second, there) = two_views
    here.make_appointment(at(2, 9), hour, "Budget", participants=["old"])
    there.make_appointment(at(2, 9), hour, "Strategy", participants=["old"])
    first.commit()
    with pytest.raises(objdb.ConflictError):
        second.commit()
    second.abort()
    second.begin()
    with pytest.raises(PersonBusy):
        there.make_appointment(at(2, 9), hour, "Strategy", participants=["old"])


def test_an_old_appointment_has_todays_attributes(at, hour):
    """An appointment from before there were series has none of what came later, and works."""
    old = Appointment.__new__(Appointment)
    old.__setstate__(
        {
            "uid": "1",
            "date": at(2, 9),
            "duration": hour,
            "subject": "x",
            "location": "",
            "participants": (),
        }
    )
    assert (old.repeat, old.skipped, old.added, old.category, old.busy) == (None, (), (), "", True)
    (one,) = old.occurrences(at(2, 9).tzinfo)
    assert one.end - one.start == hour
