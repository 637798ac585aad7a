"""Ranks the searches on solutions of a model that reasons in prose: the ground `prose` of `search_grounds.py`.

    python benchmarks/search_prose.py [--results benchmarks/results] [--repeats 8]

As `search.py` does, by replay of stored rollouts, for the searches that run no model. A line of JSON for each is
printed and goes to search_prose_ranks.jsonl. Two minutes on one core.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from gpo.contracts import Estimator
from gpo.estimators.adaptive import Adaptive
from gpo.estimators.bisect import Bisect
from gpo.estimators.branches import follow_probabilities
from gpo.estimators.entropy import Entropy
from gpo.estimators.monte_carlo import MonteCarlo
from gpo.estimators.random import RandomStep
from gpo.estimators.tally import Rule
from search import WORTH, merit, rank, summary
from search_grounds import load

RULES: tuple[Rule, ...] = ("advantage", "drop")


def searches(rule: Rule) -> Iterator[tuple[str, int, Estimator]]:
    yield "random", 0, RandomStep()
    yield "entropy", 0, Entropy()
    for n in (2, 4, 8, 16, 32):
        yield "monte_carlo", n, MonteCarlo(rollouts=n, rule=rule)
    for n in (1, 2, 4, 8, 16):
        yield "adaptive", n, Adaptive(rollouts=n, rule=rule, batch=max(2, min(16, 2 * n)))
    for n in (4, 8, 16, 32):
        yield "bisect", n, Bisect(rollouts=n, rule=rule, share_path=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results")
    parser.add_argument("--repeats", type=int, default=8)
    options = parser.parse_args()
    ground = load(options.results / "search_prose.jsonl.gz")
    follow = np.quantile([p for row in ground for p in follow_probabilities(row.trajectory)], [0.25, 0.5, 0.75])
    print(f"{len(ground)} solutions, probability of a step: quartiles {follow.round(4).tolist()}")
    lines = []
    for rule in RULES:
        rows = [row for row in ground if merit(row, rule).max() > WORTH]
        for name, budget, estimator in searches(rule):
            found = summary(rows, rank(rows, rule, estimator, options.repeats))
            line = {"ground": "prose", "rule": rule, "search": name, "budget": budget, **found}
            lines.append(json.dumps(line) + "\n")
            print(lines[-1], end="", flush=True)
    (options.results / "search_prose_ranks.jsonl").write_text("".join(lines), encoding="utf-8")


if __name__ == "__main__":
    main()
