"""The examples run as a user runs them."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = sorted((Path(__file__).parents[1] / "examples").glob("*.py"))

LONG = {"images"}  # whose parts tests/images runs
MORE = {"probe": ["18"]}  # problems, in place of 90


def test_there_are_some() -> None:
    assert len(EXAMPLES) >= 3


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_runs(path: Path, tmp_path: Path) -> None:
    if path.stem in LONG and os.environ.get("GPO_EXAMPLES") != "whole":
        pytest.skip("takes half a minute of a processor; GPO_EXAMPLES=whole runs it")
    command = [sys.executable, str(path), str(tmp_path / "run"), *MORE.get(path.stem, [])]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()
