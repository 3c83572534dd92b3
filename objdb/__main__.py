"""`python -m objdb` is the `objdb` command."""

from objdb.tools.main import main

main(prog_name="objdb")
