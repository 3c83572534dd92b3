"""The Python in the tutorials' chapters runs, in order, each chapter in an empty folder."""

import re
import sys
from pathlib import Path
from types import FunctionType

import pytest

TUTORIALS = Path(__file__).resolve().parents[2] / "tutorials"
CHAPTERS = sorted(TUTORIALS.glob("*/*.md"))
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("chapter", CHAPTERS, ids=lambda path: f"{path.parent.name} {path.stem}")
def test_the_snippets_run(chapter, tmp_path, monkeypatch):
    """Every block of a chapter runs, after the blocks before it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    modules = set(sys.modules)
    text = chapter.read_text(encoding="utf-8")
    namespace = {"__name__": "chapter"}
    try:
        for block in BLOCK.finditer(text):
            # The empty lines make the line numbers of a traceback those of the chapter.
            source = "\n" * text.count("\n", 0, block.start(1)) + block[1]
            FunctionType(compile(source, str(chapter), "exec"), namespace)()
    finally:
        for name in set(sys.modules) - modules:
            if str(getattr(sys.modules[name], "__file__", "")).startswith(str(tmp_path)):
                del sys.modules[name]


@pytest.mark.parametrize("chapter", CHAPTERS, ids=lambda path: f"{path.parent.name} {path.stem}")
def test_links_lead_somewhere(chapter):
    """Every link to a file of the tutorial names one that is there."""
    for target in re.findall(r"\]\(([^)#:]+)\)", chapter.read_text(encoding="utf-8")):
        assert (chapter.parent / target).exists(), target


def test_there_are_nine_chapters():
    """The talk has nine chapters, and a page that leads to them."""
    assert [path.stem for path in CHAPTERS if path.parent.name == "calendar"] == [
        "1-persistence",
        "2-transactions",
        "3-conflicts",
        "4-evolution",
        "5-history",
        "6-plans",
        "7-packing",
        "8-storages",
        "9-offices",
        "README",
    ]
