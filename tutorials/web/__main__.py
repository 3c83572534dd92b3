"""`python -m tutorials.web`."""

from .server import main

main(prog_name="python -m tutorials.web")
