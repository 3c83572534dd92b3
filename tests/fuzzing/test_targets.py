"""The targets of the fuzzer, on inputs at random; `./dev fuzz` looks for those that matter."""

from __future__ import annotations

import random
import subprocess
import sys
from pathlib import Path

import pytest

from tests.fuzzing.__main__ import TARGETS

ROOT = Path(__file__).parents[2]
PROGRAM = """
import logging, random, sys
from tests.fuzzing.__main__ import target
from tests.fuzzing.targets import corpus

logging.disable(logging.CRITICAL)
run, chance = target(sys.argv[1]), random.Random(int(sys.argv[2]))
given = corpus()
for data in given:
    run(data)
for _ in range(400):
    data = bytearray(chance.choice(given) if chance.random() < 0.5 else b"")
    data += chance.randbytes(chance.randrange(1, 200))
    for _ in range(chance.randrange(4)):
        data[chance.randrange(len(data))] = chance.randrange(256)
    run(bytes(data))
print("done")
"""
HOSTILE = """
import sys
from tests.fuzzing import targets
audit = targets.Audit()
audit.is_on = True
try:
    __import__("pickle").loads(b"cos\\nsystem\\n(S'true'\\ntR.")
except targets.CodeRunError as error:
    print("found")
"""


def run(program: str, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments], cwd=ROOT, text=True, timeout=100,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )
    return done.stdout


@pytest.mark.parametrize("name", TARGETS)
def test_inputs_at_random(name: str) -> None:
    """Whatever arrives, nothing is raised that is not expected, and no code is run."""
    seed = str(random.randrange(10**9))
    assert run(PROGRAM, name, seed) == "done\n", f"seed {seed}"


def test_the_audit_hook_finds_code() -> None:
    """The hook under which the targets run notices a pickle that names a function."""
    assert run(HOSTILE) == "found\n"
