"""The README's program works as a file, run twice, and pasted at the prompt."""

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = re.search(
    r"^```python\n(.*?)^```$", (ROOT / "README.md").read_text(encoding="utf-8"),
    re.MULTILINE | re.DOTALL,
)[1]


def python(*arguments, folder, text=""):
    """Run Python in *folder*; return what it printed."""
    done = subprocess.run(
        [sys.executable, "-W", "error", *arguments], input=text, cwd=folder, text=True,
        capture_output=True, timeout=60,
        env=os.environ | {"PYTHONPATH": str(ROOT), "PYTHONSTARTUP": ""},
    )
    assert done.returncode == 0, done.stderr
    assert "Error" not in done.stderr
    return done.stdout


def test_the_program_works_as_a_file_and_at_the_prompt(tmp_path):
    """Two runs of the file and one at the prompt count to three, in one database."""
    script = tmp_path / "visitors.py"
    script.write_text(PROGRAM, encoding="utf-8")
    assert python(script, folder=tmp_path) == "Ann was here 1 times\n"
    assert python(script, folder=tmp_path) == "Ann was here 2 times\n"
    assert "Ann was here 3 times" in python("-i", "-q", folder=tmp_path, text=PROGRAM + "\n")


def test_the_program_has_ten_lines():
    """It is as short as the README says."""
    assert len([line for line in PROGRAM.splitlines() if line]) == 10
