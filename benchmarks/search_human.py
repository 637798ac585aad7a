"""The located step against the one that people marked as the first mistake in BIG-Bench-Mistake.

    python benchmarks/search_human.py [--results benchmarks/results] [--steps]

Values are the reasoner's own rollouts (`search_grounds.py human`). Three ways to locate; each may say that no step is
wrong. `lasting` and `LEAST` were fixed on the first 12 Dyck traces.

    drop       the largest loss of value, if it is at least LEAST
    lasting    the first step that loses at least LEAST and half of the value it had: mistakes can cancel out later, and
               then a later loss is larger than the first
    surprisal  the first step that the reasoner would take with a probability below exp(-SURPRISE): no rollouts

A trace fits if the reasoner gives its steps before the mistake a median surprisal below FIT nats, and it can solve the
question from the beginning with probability above LEAST.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np

from gpo.statistics import wilson
from search_grounds import Valued, load

LEAST, SURPRISE, FIT = 0.1, 5.0, 3.0


def surprisals(row: Valued) -> list[float]:
    """(K,) of each step, in nats."""
    logprobs = row.trajectory.completion.logprobs
    assert logprobs is not None, "given when the ground was made"
    return [-sum(logprobs[begin:end]) for begin, end in pairwise(row.trajectory.boundaries)]


def drop(row: Valued) -> int | None:
    losses = -np.diff(row.values)
    return int(losses.argmax()) if losses.max() >= LEAST else None


def lasting(row: Valued) -> int | None:
    losses = -np.diff(row.values)
    found = np.flatnonzero(losses >= np.maximum(LEAST, row.values[:-1] / 2))
    return int(found[0]) if len(found) else None


def surprisal(row: Valued) -> int | None:
    return next((k for k, nats in enumerate(surprisals(row)) if nats > SURPRISE), None)


def fits(row: Valued) -> bool:
    before = surprisals(row)[: row.marked]
    return bool(row.values[0] > LEAST and (not before or np.median(before) < FIT))


def report(rows: Sequence[Valued], name: str) -> None:
    wrong = [row for row in rows if row.marked is not None]
    clean = [row for row in rows if row.marked is None]
    for locate in (drop, lasting, surprisal):
        found = [locate(row) for row in wrong]
        exact = sum(step == row.marked for step, row in zip(found, wrong, strict=True))
        near = sum(
            step is not None and row.marked is not None and abs(step - row.marked) <= 1
            for step, row in zip(found, wrong, strict=True)
        )
        quiet = sum(locate(row) is None for row in clean)
        counts = ((exact, len(wrong)), (near, len(wrong)), (quiet, len(clean)), (exact + quiet, len(rows)))
        cells = [f"{right}/{n} {_interval(right, n)}" for right, n in counts]
        print(f"| {name} | {locate.__name__} | {' | '.join(cells)} |")


def _interval(right: int, n: int) -> str:
    if not n:
        return ""
    interval = wilson(right, n)
    return f"{interval.estimate:.0%} [{interval.lower:.0%}, {interval.upper:.0%}]"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results")
    parser.add_argument("--steps", action="store_true", help="one line for each trace")
    options = parser.parse_args(arguments)
    rows = load(options.results / "search_human.jsonl.gz")
    print("| traces | by | exact | within one | unmarked, no mistake | all |\n|---|---|---|---|---|---|")
    for subtask in dict.fromkeys(row.problem.metadata["subtask"] for row in rows):
        mine = [row for row in rows if row.problem.metadata["subtask"] == subtask]
        report(mine, subtask)
        report([row for row in mine if fits(row)], f"{subtask}, those that fit")
    if options.steps:
        for row in rows:
            print(f"{row.problem.id} marked {row.marked} drop {drop(row)} lasting {lasting(row)}")
            print("  values    ", *(f"{value:.2f}" for value in row.values))
            print("  surprisals", *(f"{nats:.1f}" for nats in surprisals(row)))


if __name__ == "__main__":
    main()
