"""`python -m objdb` is the `objdb` command."""

from objdb.tools.main import main

if __name__ == "__main__":
    main(prog_name="objdb")
