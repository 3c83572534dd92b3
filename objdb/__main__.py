"""`python -m objdb` is the `objdb` command, and this is where both begin."""

import sys


def run(name: str = "objdb") -> None:
    """Run the command, and exit; Ctrl-C ends it quietly, while it is being imported, too."""
    try:
        from objdb.tools.main import main

        main(prog_name=name)
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    run()
