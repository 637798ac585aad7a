"""Ranks the searches on solutions of a model that reasons in prose: the grounds `prose` and `prose_large` of
`search_grounds.py`.

    python benchmarks/search_prose.py [--ground prose_large] [--results benchmarks/results] [--repeats 8]

As `search.py` does, by replay of stored rollouts. Searches that read the model are replayed from what
`search_prose_states.py` kept: log-probabilities of forced answers, and hidden states, on which a ridge regression is
fitted to the values of the other questions. How well each tells the stored values is printed first. A line of JSON for
each search is printed and goes to search_GROUND_ranks.jsonl. Three minutes on one core.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import count
from math import nan
from pathlib import Path
from typing import Any

import numpy as np

from gpo.contracts import Estimator, Sample
from gpo.estimators.adaptive import Adaptive
from gpo.estimators.bisect import Bisect
from gpo.estimators.branches import follow_probabilities
from gpo.estimators.entropy import Entropy
from gpo.estimators.monte_carlo import MonteCarlo
from gpo.estimators.random import RandomStep
from gpo.estimators.tally import NO_EVIDENCE, Rule, Tally, choose
from gpo.types import Evidence, StepScores, Trajectory
from search import WORTH, merit, rank, summary
from search_grounds import Valued, load

RULES: tuple[Rule, ...] = ("advantage", "drop")


Values = Mapping[str, np.ndarray]  # (K + 1,) by trajectory


@dataclass(frozen=True)
class AnyStep:
    """Another random step at each call."""

    calls: Iterator[int] = field(default_factory=count)

    def __call__(
        self, trajectories: Sequence[Trajectory], sample: Sample, evidence: Evidence = NO_EVIDENCE
    ) -> list[StepScores]:
        return RandomStep(seed=next(self.calls))(trajectories, sample)


@dataclass(frozen=True)
class Known:
    """Goes by values that somebody else has given."""

    values: Values
    rule: Rule

    def __call__(
        self, trajectories: Sequence[Trajectory], sample: Sample, evidence: Evidence = NO_EVIDENCE
    ) -> list[StepScores]:
        return [Tally(t).scores(choose(self.values[t.id].tolist(), self.rule), "before", 0.95) for t in trajectories]

    def judge(self, trajectories: Sequence[Trajectory], evidence: Evidence) -> list[tuple[Any, float, float]]:
        return [(self.values[t.id], nan, nan) for t in trajectories]


@dataclass(frozen=True)
class Leaning(Adaptive):
    """With such values as a part of the prior."""

    critic: Any = "fitted"
    known: Any = None

    @cached_property
    def _judge(self) -> Any:
        return self.known


def probed(rows: Sequence[Valued], nats: Mapping[str, Mapping[str, list[float]]], name: str) -> Values:
    """Values of `Probe` by the answer of the response; of "right", the probability of the reference answer itself."""
    form, kind = name.split()
    found = {}
    for row in rows:
        told = nats[row.trajectory.id]
        q = np.append(np.exp(told.get(name, told[f"{form} right"])[:-1]), 1.0)
        q[-1] = row.reward if kind == "right" else 1.0
        found[row.trajectory.id] = q if kind == "right" else 0.5 + (row.reward - 0.5) * q
    return found


def regressed(rows: Sequence[Valued], states: np.ndarray, penalty: float, folds: int = 10) -> Values:
    """Ridge regression on hidden states (boundaries of all rows, features), without the question that is judged."""
    question = np.concatenate([[i] * len(row.values) for i, row in enumerate(rows)])
    values = np.concatenate([row.values for row in rows])
    open_ = np.concatenate([np.arange(len(row.values)) < len(row.values) - 1 for row in rows])
    inputs, told = states / states[open_].std(), np.zeros(len(values))
    for fold in range(folds):
        learn, test = open_ & (question % folds != fold), question % folds == fold
        centre, mean = inputs[learn].mean(0), values[learn].mean()
        seen = inputs[learn] - centre
        weights = np.linalg.solve(seen.T @ seen + penalty * np.eye(seen.shape[1]), seen.T @ (values[learn] - mean))
        told[test] = np.clip((inputs[test] - centre) @ weights + mean, 0, 1)
    told[~open_] = values[~open_]
    return {row.trajectory.id: told[question == i] for i, row in enumerate(rows)}


def told_values(rows: Sequence[Valued], folder: Path, ground: str) -> dict[str, Values]:
    """What each way of reading the model says of all boundaries."""
    lines = (folder / f"search_{ground}_probe.jsonl").read_text(encoding="utf-8").splitlines()
    nats = {line["id"]: line["nats"] for line in map(json.loads, lines)}
    states = np.load(folder / f"search_{ground}_states.npz")["states"].astype(float)
    return {
        "probe": probed(rows, nats, "hashes own"),
        "probe, boxed": probed(rows, nats, "boxed own"),
        "probe, reference": probed(rows, nats, "hashes right"),
        "probe, reference, boxed": probed(rows, nats, "boxed right"),
        "hidden states, last layer": regressed(rows, states[:, 6], 300),
        "hidden states, four layers": regressed(rows, states.reshape(len(states), -1), 2400),
    }


def print_quality(rows: Sequence[Valued], told: Mapping[str, Values]) -> None:
    """R2 and AUC (values above .5) against the stored values before the last step, beside the reward alone."""
    truth = np.concatenate([row.values[:-1] for row in rows])
    rewards = np.concatenate([[row.reward] * (len(row.values) - 1) for row in rows])
    position = np.concatenate([np.linspace(0, 1, len(row.values))[:-1] for row in rows])
    said = {name: np.concatenate([values[row.trajectory.id][:-1] for row in rows]) for name, values in told.items()}
    for name, guess in {"the reward": rewards, "the position": position, **said}.items():
        above, below = guess[truth > 0.5], guess[truth <= 0.5]
        auc = (above[:, None] > below).mean() + (above[:, None] == below).mean() / 2
        print(f"{name:<28} R2 {1 - ((guess - truth) ** 2).mean() / truth.var():+.2f}, AUC {auc:.2f}")


def searches(rule: Rule, told: Mapping[str, Values]) -> Iterator[tuple[str, int, Estimator]]:
    yield "random", 0, AnyStep()
    yield "entropy", 0, Entropy()
    yield "entropy, first tokens", 0, Entropy(first_tokens=3)
    for name, values in told.items():
        yield name, 0, Known(values, rule)
    for n in (2, 4, 8, 16, 32):
        yield "monte_carlo", n, MonteCarlo(rollouts=n, rule=rule)
    for n in (1, 2, 4, 8, 16):
        yield "adaptive", n, Adaptive(rollouts=n, rule=rule, batch=max(2, min(16, 2 * n)))
    for n in (2, 8):
        yield "adaptive, probe", n, Leaning(rollouts=n, rule=rule, batch=2 * n, known=Known(told["probe"], rule))
    for n in (4, 8, 16, 32):
        yield "bisect", n, Bisect(rollouts=n, rule=rule, share_path=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results")
    parser.add_argument("--repeats", type=int, default=32)
    parser.add_argument("--ground", default="prose", choices=["prose", "prose_large"])
    options = parser.parse_args()
    ground = load(options.results / f"search_{options.ground}.jsonl.gz")
    follow = np.quantile([p for row in ground for p in follow_probabilities(row.trajectory)], [0.25, 0.5, 0.75])
    print(f"{len(ground)} solutions, probability of a step: quartiles {follow.round(4).tolist()}")
    told = told_values(ground, options.results, options.ground)
    print_quality(ground, told)
    lines = []
    for rule in RULES:
        rows = [row for row in ground if merit(row, rule).max() > WORTH]
        for name, budget, estimator in searches(rule, told):
            found = summary(rows, rank(rows, rule, estimator, options.repeats))
            line = {"ground": options.ground, "rule": rule, "search": name, "budget": budget, **found}
            lines.append(json.dumps(line) + "\n")
            print(lines[-1], end="", flush=True)
    (options.results / f"search_{options.ground}_ranks.jsonl").write_text("".join(lines), encoding="utf-8")


if __name__ == "__main__":
    main()
