"""The source distribution, as somebody gets it who packages objdb for a system."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

HOME = Path(__file__).parent.parent
CONTENTS = [
    "dev", "LICENSE", "README.md", "CHANGELOG.md", "objdb/py.typed", "objdb/_accelerator.c",
    "objdb/_unpickle.h", "tests/test_distribution.py", "tests/skips.txt", "docs/index.md",
    "docs/growth.svg", "tutorials/calendar/README.md",
]


def test_the_source_distribution(tmp_path: Path) -> None:
    """It has the tests, the documents and the tutorials, nothing that was built, and its metadata
    name the licence and the system."""
    home = tmp_path / "home"
    left_out = shutil.ignore_patterns(".*", "__pycache__", "*.so", "*.egg-info", "build", "dist")
    shutil.copytree(HOME, home, ignore=left_out)
    build = "from setuptools.build_meta import build_sdist; build_sdist('made')"
    subprocess.run(
        [sys.executable, "-c", build], cwd=home, check=True, capture_output=True, timeout=100
    )
    (archive,) = (home / "made").glob("*.tar.gz")
    with tarfile.open(archive) as tar:
        names = {name.partition("/")[2] for name in tar.getnames()}
        metadata = tar.extractfile(f"{archive.name.removesuffix('.tar.gz')}/PKG-INFO")
        assert metadata
        lines = metadata.read().decode().splitlines()
    assert [name for name in CONTENTS if name not in names] == []
    assert not [name for name in names if name.endswith((".pyc", ".so"))]
    assert "License-Expression: MIT" in lines and "Classifier: Typing :: Typed" in lines
    assert "Classifier: Operating System :: POSIX :: Linux" in lines
