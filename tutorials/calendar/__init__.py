"""A group calendar on objdb. The text that goes with it begins in README.md.

In reading order:

    zones.py             wall clocks and instants
    recurrence.py        "every second Tuesday"
    person.py            Day and Person: why nobody is booked twice
    appointment.py       Appointment: once or again and again
    model.py             Calendar: the trees that find appointments
    public_holidays.py   the holidays of a country
    ics_event.py         one event of an .ics file
    ics_read.py          .ics files of other calendars, in
    ics_write.py         and out
    views.py             a month and a day, drawn in the terminal
    inputs.py            what people type: dates, durations, files
    history.py           what was done, undoing it, and plans
    app.py, menu.py      the commands, and the menu
    opening.py           the file, or another storage
    check.py             is anybody double-booked after all?
    demo.py, crash.py    the story told by `demo`, and the process that it kills

Import it as `tutorials.calendar`, from the folder that holds `tutorials`: inside `tutorials`,
`import calendar` would find this package in place of the standard library's module.
"""
