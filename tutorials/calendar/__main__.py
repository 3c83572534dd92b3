"""`python -m tutorials.calendar`."""

from .app import main

main(prog_name="python -m tutorials.calendar")
