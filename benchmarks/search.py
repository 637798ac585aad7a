"""Ranks every critical-step search on the near-exact and on the human ground: one table and one plot.

    python benchmarks/search.py [--results benchmarks/results] [--repeats 8] [--only WORD] [--ground NAME]

For every search: sampled tokens a trajectory, the share of trajectories whose critical step was found, and the regret
(merit of the best step minus that of the found one; no step found counts as 0), averaged over repeats (one for those
that run a model), with 95% intervals over questions. Merit is what the rule maximises: `advantage` and `drop` on the
near-exact ground, `drop` on the human one. Trajectories on which no step has a merit above WORTH are left out. Grounds
are made by `search_grounds.py`, rollouts come from `search_replay.py`; a critic and the gradient run the reasoner
itself. Results go to search_ranks.jsonl, which `search_plot.py` and `search_budgets.py` read; a search that is there is
not ranked again.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gpo.contracts import Estimator, Sample
from gpo.estimators.adaptive import Adaptive
from gpo.estimators.bisect import Bisect
from gpo.estimators.critic import Critic
from gpo.estimators.entropy import Entropy
from gpo.estimators.gradient import Gradient, loaded
from gpo.estimators.monte_carlo import MonteCarlo
from gpo.estimators.random import RandomStep
from gpo.estimators.tally import NO_EVIDENCE, Rule
from gpo.statistics import bootstrap_mean
from gpo.types import Evidence, Group, StepScores, Trajectory
from search_grounds import WEIGHTS, Valued, load
from search_replay import Replay, batches, best_spending, told_which_two

WORTH = 0.02
RANKS: tuple[tuple[str, Rule], ...] = (("near_exact", "advantage"), ("near_exact", "drop"), ("human", "drop"))
SIGNS = {"advantage": 1, "drop": -1}
BUDGETS = (1, 2, 4, 8, 16, 32, 64)
SHARES = (0.125, 0.25, 0.5, *BUDGETS[:6])  # rollouts for each step on average
LESSONS = 8  # rollouts for each boundary that teach the critic

DIGITS = {"tokens": 0, "hit": 3, "regret": 4}

Search = tuple[str, float, Estimator]  # line of the plot, budget, estimator


@dataclass(frozen=True)
class Taught:
    """A critic that first learns Monte Carlo values of the other questions; its heads see none that they judge."""

    critic: Critic

    def __call__(
        self, trajectories: Sequence[Trajectory], sample: Sample, evidence: Evidence = NO_EVIDENCE
    ) -> list[StepScores]:
        scores = MonteCarlo(rollouts=LESSONS, share_path=True)(trajectories, sample)
        groups = tuple(Group(trajectory.start, (trajectory,)) for trajectory in trajectories)
        return self.critic(trajectories, sample, Evidence(groups, tuple(scores)))


def searches(rule: Rule) -> Iterator[Search]:
    model = loaded(WEIGHTS)
    critic = Critic(model, rule=rule)
    yield "random", 0, RandomStep()
    yield "entropy", 0, Entropy()
    yield "entropy, first tokens", 0, Entropy(first_tokens=3)
    yield "gradient", 0, Gradient(model)
    yield "gradient, deletion", 0, Gradient(model, influence="deletion")
    yield "critic", 0, critic
    yield "critic, taught", LESSONS, Taught(critic)
    for n in BUDGETS:
        yield "monte_carlo", n, MonteCarlo(rollouts=n, rule=rule)
    for share in SHARES:
        yield "adaptive", share, Adaptive(rollouts=share, rule=rule, batch=max(2, min(Adaptive.batch, int(2 * share))))
    for n in BUDGETS:
        yield "bisect", n, Bisect(rollouts=n, rule=rule, share_path=True)
    for n in BUDGETS[:5]:
        yield "adaptive, certainty 0.9", n, Adaptive(rollouts=n, rule=rule, batch=8, certainty=0.9, smallest=0.05)
    for n in BUDGETS[:5]:
        yield "adaptive, critic", n, Adaptive(rollouts=n, rule=rule, batch=2 * min(n, 8), critic="fitted", model=model)
    for n in BUDGETS[:6]:
        yield "monte_carlo, shared path", n, MonteCarlo(rollouts=n, rule=rule, share_path=True)
    for n in BUDGETS[2:5]:
        yield "authors", n, MonteCarlo(rollouts=n, rule="authors", early_stop=True)


def runs_model(estimator: Estimator) -> bool:
    return isinstance(estimator, Critic | Gradient | Taught) or (
        isinstance(estimator, Adaptive) and estimator.critic != "none"
    )


def merit(row: Valued, rule: Rule) -> np.ndarray:
    """(K,) what the rule maximises."""
    worth: np.ndarray = SIGNS[rule] * np.diff(row.values)
    return worth


def rank(rows: Sequence[Valued], rule: Rule, estimator: Estimator, repeats: int) -> dict[str, list[float]]:
    """For each row, averaged over repeats: tokens, hit, regret."""
    columns: dict[str, list[float]] = {name: [0.0] * len(rows) for name in ("tokens", "hit", "regret")}
    place = {row.trajectory.id: i for i, row in enumerate(rows)}
    for seed in range(repeats):
        for part in batches(rows):
            sample = Replay(part, seed)
            for row, score in zip(part, estimator([row.trajectory for row in part], sample), strict=True):
                i = place[row.trajectory.id]
                worth = merit(row, rule)
                found = 0.0 if score.critical_step is None else float(worth[score.critical_step])
                columns["tokens"][i] += sample.tokens[row.trajectory.id] / repeats
                columns["hit"][i] += (worth.max() - found < 1e-9) / repeats
                columns["regret"][i] += (worth.max() - found) / repeats
    return columns


def summary(rows: Sequence[Valued], columns: dict[str, list[float]]) -> dict[str, list[float]]:
    """Estimate and interval of each column, resampling questions."""
    found = {}
    for name, column in columns.items():
        by_question: dict[str, list[float]] = {}
        for row, x in zip(rows, column, strict=True):
            by_question.setdefault(row.problem.id, []).append(x)
        interval = bootstrap_mean(list(by_question.values()), resamples=2000)
        found[name] = [round(x, 4) for x in (interval.estimate, interval.lower, interval.upper)]
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results")
    parser.add_argument("--repeats", type=int, default=8)
    parser.add_argument("--only", default="", help="only searches whose name holds this")
    parser.add_argument("--ground", default="", help="only this ground")
    options = parser.parse_args(arguments)
    ranks = options.results / "search_ranks.jsonl"
    done = [json.loads(line) for line in ranks.read_text().splitlines()] if ranks.exists() else []
    known = {(d["ground"], d["rule"], d["search"], d["budget"]) for d in done}
    for ground, rule in RANKS:
        if options.ground not in ground:
            continue
        rows = [row for row in load(options.results / f"search_{ground}.jsonl.gz") if merit(row, rule).max() > WORTH]
        print(f"\n{ground}, rule {rule}: {len(rows)} trajectories with a critical step", flush=True)
        effects = np.array([told_which_two(row, SIGNS[rule]) for row in rows])
        for tokens in (30, 100, 300, 1000, 3000, 10_000):
            key = (ground, rule, "told which two", tokens)
            if key not in known:
                line = {"hit": [round(best_spending(effects, tokens), 4)] * 3, "tokens": [tokens] * 3}
                _write(ranks, key, line)
        for search, budget, estimator in searches(rule):
            key = (ground, rule, search, budget)
            if key in known or options.only not in search:
                continue
            columns = rank(rows, rule, estimator, 1 if runs_model(estimator) else options.repeats)
            found = summary(rows, columns)
            each = {name: [round(x, digits) for x in columns[name]] for name, digits in DIGITS.items()}
            _write(ranks, key, {**found, "each": each, "questions": [row.problem.id for row in rows]})
            print(f"{search:<28}{budget:>6}" + "".join(f"  {name} {x}" for name, x in found.items()), flush=True)


def _write(path: Path, key: tuple[str, str, str, float], values: dict[str, Any]) -> None:
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(dict(zip(("ground", "rule", "search", "budget"), key, strict=True)) | values) + "\n")


if __name__ == "__main__":
    main()
