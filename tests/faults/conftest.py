"""The suite of faults: a short form, and more of it by the environment variable GPO_FAULTS, whose faults are counted.

`whole` injects every fault, a number so many of each kind at most in each test. The file that GPO_FAULTS_LOG names gets
a JSON line for each test and kind of fault: how many were injected, how many survived, and seconds. A test that fails
counts as one more fault, which was not survived. `benchmarks/reliability.py` makes the page of it.
"""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Callable, Generator, Iterator
from math import inf
from pathlib import Path
from random import Random
from typing import Any, TypeVar

import pytest

Item = TypeVar("Item")
ASKED = os.environ.get("GPO_FAULTS", "")
MOST = inf if ASKED == "whole" else float(ASKED or 0)  # 0: the short form
LOG = os.environ.get("GPO_FAULTS_LOG")
FAILED = pytest.StashKey[bool]()


def note(row: dict[str, Any]) -> None:
    if LOG:
        with Path(LOG).open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")


def pytest_sessionstart() -> None:
    note({"asked": ASKED or "short", "cores": os.cpu_count(), "python": platform.python_version()})


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.failed:
        item.stash[FAILED] = True
    return report


@pytest.fixture
def at_most() -> Callable[[int, int], int]:
    """How many faults to inject: so many in the short form, so many in the whole suite."""

    def choose(short: int, whole: int) -> int:
        return round(max(short, min(MOST, whole)))

    return choose


@pytest.fixture
def some(at_most: Callable[[int, int], int]) -> Callable[..., list[Item]]:
    """So many of the faults in the short form: the first, the last, and others at random."""

    def choose(faults: list[Item], short: int, whole: int | None = None) -> list[Item]:
        most = at_most(short, len(faults) if whole is None else whole)
        if len(faults) <= most:
            return faults
        between = sorted(Random(len(faults)).sample(range(1, len(faults) - 1), most - 2))
        return [faults[i] for i in (0, *between, len(faults) - 1)]

    return choose


@pytest.fixture
def survived(request: pytest.FixtureRequest) -> Iterator[Callable[[str, int], None]]:
    """Counts faults by what they are, once they were survived."""
    began, found = time.perf_counter(), dict[str, int]()

    def count(kind: str, faults: int) -> None:
        found[kind] = found.get(kind, 0) + faults

    yield count
    test, failed = f"{request.path.name}::{request.node.name}", request.node.stash.get(FAILED, False)
    if failed:
        found.setdefault(test, 0)
    for kind, faults in found.items():
        seconds = round((time.perf_counter() - began) / len(found), 3)
        injected = faults + (failed and kind == test)
        note({"test": test, "kind": kind, "injected": injected, "survived": faults, "seconds": seconds})
