"""Measure objdb beside its peers, on one machine, in one run.

    python -m benchmarks --help

How a run works, in reading order:

    sizes.py          how many objects, commits and rounds a quick, a default and a full run take
    shapes.py         the objects that are stored: items, tree nodes, the parts of OO7
    persistent_model.py, durus_model.py    the same shapes as persistent classes
    oo7.py            builds the OO7 database and walks it
    systems/          one adapter per system; all look the same to a measurement
    templates.py      the databases that are built once per run
    measurements/     what is timed, one function each; catalogue.py and of_files.py list them
    worker.py         runs one measurement in a process of its own, prints one line of JSON
    runner.py         builds the templates, then goes round robin over measurements and systems
    targets.py        what objdb promises to reach, and whether it did
    report.py         RESULTS.md; plot.py draws the growth; machine.py says where all this ran
    __main__.py       the command line

The numbers are honest when the systems take turns (a machine that slows down slows all of them),
when nothing is left over from an earlier measurement (a fresh process and a fresh copy of the
database each time), and when the report says what was missed. The notes on fairness are in
`report.py`, since readers of the results need them most.
"""
