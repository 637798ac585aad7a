"""The suite of faults: a short form, and more of it by the environment variable GPO_FAULTS, whose faults are counted.

`whole` injects every fault, a number so many of each kind at most in each test.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from math import inf
from pathlib import Path
from random import Random
from typing import TypeVar

import pytest

Item = TypeVar("Item")
ASKED = os.environ.get("GPO_FAULTS", "")
MOST = inf if ASKED == "whole" else float(ASKED or 0)  # 0: the short form
COUNTS = Path(__file__).parents[2] / "benchmarks/results/faults.json"


@pytest.fixture
def at_most() -> Callable[[int, int], int]:
    """How many faults to inject: so many in the short form, so many in the whole suite."""

    def choose(short: int, whole: int) -> int:
        return round(min(MOST, whole)) if MOST else short

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
    """Counts faults by what they are, once they were survived, for the page of numbers; not in the short form."""
    began, found = time.monotonic(), dict[str, int]()

    def count(kind: str, faults: int) -> None:
        found[kind] = found.get(kind, 0) + faults

    yield count
    if MOST and found:
        rows = json.loads(COUNTS.read_text()) if COUNTS.exists() else {}
        for kind, faults in found.items():
            seconds = round((time.monotonic() - began) / len(found), 1)
            rows.setdefault(kind, {})[request.node.nodeid] = {"faults": faults, "seconds": seconds}
        COUNTS.write_text(json.dumps(rows, indent=1, sort_keys=True) + "\n")
