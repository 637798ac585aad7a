"""The suite of faults: a short form, and the whole of it with GPO_FAULTS=whole (`make faults`), which is counted."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import TypeVar

import pytest

Item = TypeVar("Item")
WHOLE = os.environ.get("GPO_FAULTS") == "whole"
COUNTS = Path(__file__).parents[2] / "benchmarks/results/faults.json"
_counted: dict[str, dict[str, float]] = {}


@pytest.fixture
def whole() -> bool:
    """Whether every fault is to be injected, and not a few of each kind."""
    return WHOLE


@pytest.fixture
def some() -> Callable[..., list[Item]]:
    """So many of the faults: the first, the last, and others at random. In the whole suite all, or up to `whole`."""

    def choose(faults: list[Item], most: int, whole: int | None = None) -> list[Item]:
        most = (len(faults) if whole is None else whole) if WHOLE else most
        if len(faults) <= most:
            return faults
        between = sorted(Random(len(faults)).sample(range(1, len(faults) - 1), most - 2))
        return [faults[i] for i in (0, *between, len(faults) - 1)]

    return choose


@pytest.fixture
def survived(request: pytest.FixtureRequest) -> Iterator[Callable[[str, int], None]]:
    """Counts faults by what they are, once they were survived; a test that fails counts none."""
    began, found = time.monotonic(), {}

    def count(kind: str, faults: int) -> None:
        found[kind] = found.get(kind, 0) + faults

    yield count
    for kind, faults in found.items():
        row = _counted.setdefault(kind, {"faults": 0, "seconds": 0.0})
        row["faults"] += faults
        row["seconds"] += (time.monotonic() - began) / len(found)


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    if WHOLE and exitstatus == 0 and _counted:
        rows = {kind: {name: round(value) for name, value in row.items()} for kind, row in _counted.items()}
        known = json.loads(COUNTS.read_text()) if COUNTS.exists() else {}
        COUNTS.write_text(json.dumps(dict(sorted((known | rows).items())), indent=2) + "\n")
