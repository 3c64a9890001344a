"""The short form of the fuzzer: a few hundred inputs in a process of their own, and no area may fail."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]
INPUTS = 300
AREAS = ("parsers", "options", "configs", "documents", "caches", "runs", "images", "sources", "checkpoints", "imports",
         "classifier", "names", "methods", "addresses")  # fmt: skip


@pytest.fixture(scope="module")
def reports():
    """What the fuzzer reports of all areas."""
    path = os.pathsep.join((str(TESTS), str(TESTS.parent), os.environ.get("PYTHONPATH", "")))
    command = [sys.executable, "-m", "fuzz", "--inputs", str(INPUTS), "--processes", "1", "--json"]
    ran = subprocess.run(command, env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    return json.loads(ran.stdout)


@pytest.mark.parametrize("area", AREAS)
def test_every_input_ends_in_success_or_in_a_message_of_ours(reports, area):
    own = [line for line in reports if line["area"] == area]
    assert own
    assert [(line["why"], line["where"], line["lines"]) for line in own if line.get("why")] == []


def test_every_area_is_tested(reports):
    assert {line["area"] for line in reports} == set(AREAS)
