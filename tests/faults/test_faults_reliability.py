"""The suite's own bookkeeping: what is noted of each test, and the page that is made of it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
SUITE = """
import pytest

def test_good(survived):
    survived("cut", 3)
    survived("torn", 1)

@pytest.mark.parametrize("n", [1, 2], ids=["a/b", "2"])
def test_bad(n, survived):
    survived("cut", 2)
    assert n == 1

def test_quiet():
    pass
"""


def test_every_fault_is_noted_and_one_that_is_not_survived_shows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(HERE.parents[1] / "benchmarks"))
    from reliability import page, read

    shutil.copy(HERE / "conftest.py", tmp_path)
    (tmp_path / "test_faults_kills.py").write_text(SUITE)
    log = tmp_path / "log.jsonl"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(tmp_path)]
    environment = os.environ | {"GPO_FAULTS": "7", "GPO_FAULTS_LOG": str(log)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert "1 failed, 3 passed" in done.stdout
    rows = [row for row in read(log) if "kind" in row]
    counts = [(row["test"].rpartition("::")[2], row["kind"], row["injected"], row["survived"]) for row in rows]
    assert counts == [
        ("test_good", "cut", 3, 3),
        ("test_good", "torn", 1, 1),
        ("test_bad[a/b]", "cut", 2, 2),
        ("test_bad[2]", "cut", 2, 2),
        ("test_bad[2]", "test_faults_kills.py::test_bad[2]", 1, 0),
    ]
    load = [
        {"load": "store", "trajectories": 100_000, "seconds": 12.34, "megabytes": 512.0},
        {"what": "200 annotators at once", "measured": "median 5 ms"},
    ]
    text = page(read(log), load)
    lines = text.splitlines()
    assert "Of 9 that were injected for this page 8\nsurvived" in text
    assert "`GPO_FAULTS` 7)" in text
    assert any(line.startswith("| cut | 7 | 7 |") for line in lines)
    assert any(line.startswith("| test_faults_kills.py::test_bad[2] | 1 | 0 |") for line in lines)
    assert "| store | 100,000 | 12.3 | 512 |" in lines
    assert "| 200 annotators at once | median 5 ms |" in lines
    with pytest.raises(SystemExit, match=r"No section for test_faults_new\.py::test_it"):
        page([{**rows[0], "test": "test_faults_new.py::test_it"}], [])


def test_no_test_of_faults_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(HERE.parents[1] / "benchmarks"))
    from reliability import SECTIONS

    counting = [path for path in HERE.glob("test_faults_*.py") if f"survived: {'Survived'}" in path.read_text()]
    assert {path.stem.removeprefix("test_faults_") for path in counting} <= set(SECTIONS)
    assert counting


def test_the_page_in_the_repository_is_of_the_numbers_beside_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(HERE.parents[1] / "benchmarks"))
    from reliability import page, read

    results, written = HERE.parents[1] / "benchmarks/results", HERE.parents[1] / "docs/reliability.md"
    faults = read(results / "faults.jsonl")
    assert written.read_text(encoding="utf-8") == page(faults, read(results / "load.jsonl"))
    assert all(row["injected"] == row["survived"] > 0 for row in faults if "kind" in row)
