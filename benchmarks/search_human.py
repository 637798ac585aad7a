"""The located step against the one that people marked as the first mistake in BIG-Bench-Mistake.

    python benchmarks/search_human.py [--results benchmarks/results] [--steps]

Values are the reader's own rollouts (`search_grounds.py marked`). Four ways to locate, each of which may
say that no step is wrong:

    drop       the largest loss of value, if it is at least LEAST
    lasting    the first step that loses at least LEAST and half of the value it had: mistakes can cancel out later, and
               then a later loss is larger than the first
    last       the last step before which the value was at least LEAST, if it is lower ever after
    surprisal  the first step that the reader would take with a probability below exp(-threshold): no rollouts

Every third trace of a file is for choosing: its wording shaped the reader's training (`gpo/reasoner/foreign.py`), and
the threshold of `surprisal` is the one that serves best there. The table tells of the others.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np

from gpo.statistics import wilson
from search_grounds import Valued, load

LEAST = 0.1
THRESHOLDS = (1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0, 10.0, 15.0, 20.0, 30.0)  # nats
Locate = Callable[[Valued], int | None]


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


def last(row: Valued) -> int | None:
    alive = np.flatnonzero(row.values >= LEAST)
    return int(alive[-1]) if len(alive) and alive[-1] < len(row.values) - 1 else None


def surprisal(threshold: float) -> Locate:
    def found(row: Valued) -> int | None:
        return next((k for k, nats in enumerate(surprisals(row)) if nats > threshold), None)

    return found


def chosen(rows: Sequence[Valued]) -> float:
    """The threshold with the most answers as people gave them."""
    return max(THRESHOLDS, key=lambda t: sum(surprisal(t)(row) == row.marked for row in rows))


def for_choosing(row: Valued) -> bool:
    return int(row.problem.id.rpartition("/")[2]) % 3 == 0


def report(rows: Sequence[Valued], name: str) -> None:
    threshold = chosen([row for row in rows if for_choosing(row)])
    ways: dict[str, Locate] = {"drop": drop, "lasting": lasting, "last": last}
    ways[f"surprisal above {threshold:g}"] = surprisal(threshold)
    tested = [row for row in rows if not for_choosing(row)]
    wrong = [row for row in tested if row.marked is not None]
    clean = [row for row in tested if row.marked is None]
    for way, locate in ways.items():
        found = [locate(row) for row in wrong]
        exact = sum(step == row.marked for step, row in zip(found, wrong, strict=True))
        near = sum(
            step is not None and row.marked is not None and abs(step - row.marked) <= 1
            for step, row in zip(found, wrong, strict=True)
        )
        quiet = sum(locate(row) is None for row in clean)
        counts = ((exact, len(wrong)), (near, len(wrong)), (quiet, len(clean)), (exact + quiet, len(tested)))
        cells = [f"{right}/{n} {_interval(right, n)}" for right, n in counts]
        print(f"| {name} | {way} | {' | '.join(cells)} |")


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
    rows = load(options.results / "search_marked.jsonl.gz")
    print("| traces | by | exact | within one | unmarked, no mistake | all |\n|---|---|---|---|---|---|")
    for subtask in dict.fromkeys(row.problem.metadata["subtask"] for row in rows):
        report([row for row in rows if row.problem.metadata["subtask"] == subtask], subtask)
    if options.steps:
        for row in rows:
            print(f"{row.problem.id} marked {row.marked} drop {drop(row)} lasting {lasting(row)} last {last(row)}")
            print("  values    ", *(f"{value:.2f}" for value in row.values))
            print("  surprisals", *(f"{nats:.1f}" for nats in surprisals(row)))


if __name__ == "__main__":
    main()
