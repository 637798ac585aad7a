"""Ranks the critical-step searches on toy chains whose values are known exactly.

    python benchmarks/search_toy.py [--rule advantage] [--questions 24] [--samples 8] [--seed 0] [--ground NAME ...]

For every ground and search: sampled tokens a trajectory, the share of trajectories whose critical step was found (with
its 95% interval; a step as good as the best counts), and the regret (advantage of the best step minus that of the found
one; no step found counts as advantage 0). Trajectories on which no step stands out are left out. Grounds:

    mistakes   12 decisions, each with its own small chance of a mistake that cannot be undone
    long       the same with 30 decisions
    recovery   12 decisions; a mistake can be undone later
    random     10 decisions, three states and three choices at random
    wording    `recovery` where every choice can be written in eight ways: rollouts seldom repeat a trajectory
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence

import numpy as np

from gpo.contracts import Estimator
from gpo.estimators.adaptive import Adaptive
from gpo.estimators.bisect import Bisect
from gpo.estimators.entropy import Entropy
from gpo.estimators.monte_carlo import MonteCarlo
from gpo.estimators.random import RandomStep
from gpo.estimators.tally import Rule
from gpo.rollout.prompting import question_start
from gpo.rollout.sampler import Sampler
from gpo.statistics import bootstrap_mean, wilson
from gpo.toy import ChainEngine, ChainTask, Process, random_process
from gpo.types import Trajectory


def two_states(decisions: int, recovers: bool, wordings: int, rng: np.random.Generator) -> Process:
    """State 0 is sound, state 1 is not; a decision errs, or recovers, with its own probability."""
    probabilities = []
    for _ in range(decisions):
        error = rng.beta(0.4, 3.0)
        recovery = rng.beta(0.3, 3.0) if recovers else 0.0
        rows = [(1 - error, error), (recovery, 1 - recovery)]
        shares = rng.dirichlet(np.ones(wordings), size=(2, 2)) if wordings > 1 else np.ones((2, 2, 1))
        probabilities.append(
            tuple(
                tuple(float(p * s) for p, share in zip(row, shares[i], strict=True) for s in share)
                for i, row in enumerate(rows)
            )
        )
    successors = ((0,) * wordings + (1,) * wordings,) * 2
    return Process(tuple(probabilities), (successors,) * decisions, (True, False))


WORTH = 0.02  # a step whose merit is not above this does not stand out

GROUNDS: dict[str, Callable[[np.random.Generator], Process]] = {
    "mistakes": lambda rng: two_states(12, False, 1, rng),
    "long": lambda rng: two_states(30, False, 1, rng),
    "recovery": lambda rng: two_states(12, True, 1, rng),
    "random": lambda rng: random_process(int(rng.integers(2**31)), decisions=10),
    "wording": lambda rng: two_states(12, True, 8, rng),
}


def searches(rule: Rule) -> dict[str, Estimator]:
    """The estimators by the name they have in the table."""
    table: dict[str, Estimator] = {"random": RandomStep(), "entropy": Entropy(first_tokens=1)}
    for n in (4, 8, 16, 32):
        table[f"monte_carlo N={n}"] = MonteCarlo(rollouts=n, rule=rule)
    for n in (4, 8, 16, 32):
        table[f"monte_carlo N={n} shared"] = MonteCarlo(rollouts=n, rule=rule, share_start=True, share_path=True)
    for n in (4, 8, 16, 32):
        table[f"bisect N={n}"] = Bisect(rollouts=n, rule=rule, share_start=True, share_path=True)
    for n in (8, 32):
        table[f"bisect N={n} all halves"] = Bisect(
            rollouts=n, rule=rule, share_start=True, share_path=True, threshold=0.2
        )
    for n, certainty in ((1, 0.9), (2, 0.9), (4, 0.9), (8, 0.9), (8, 0.97), (32, 0.97)):
        table[f"adaptive N={n} {certainty}"] = Adaptive(
            rollouts=n, batch=8, rule=rule, certainty=certainty, smallest=WORTH, share_start=True
        )
    return table


def criterion(engine: ChainEngine, trajectory: Trajectory, rule: Rule) -> np.ndarray:
    """(K,) what the rule maximises, exactly."""
    values = np.array([engine.value(trajectory.prefix(k).token_ids) for k in range(len(trajectory.boundaries))])
    advantages = np.diff(values)
    return {"advantage": advantages, "magnitude": abs(advantages), "drop": -advantages, "authors": values[:-1]}[rule]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rule", default="advantage", choices=["advantage", "magnitude", "drop", "authors"])
    parser.add_argument("--questions", type=int, default=24)
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--ground", nargs="*", default=list(GROUNDS), choices=list(GROUNDS))
    parser.add_argument("--only", default="", help="only searches whose name holds this")
    options = parser.parse_args(arguments)
    for ground in options.ground:
        rng = np.random.default_rng(options.seed)
        engine = ChainEngine(tuple(GROUNDS[ground](rng) for _ in range(options.questions)))
        task = ChainTask(options.questions)
        problems = {problem.id: problem for problem in task.problems("train")}

        def sampler(stream: str) -> Sampler:
            return Sampler(engine, task, problems, stream=stream, seed=options.seed, logprobs=True)  # noqa: B023

        starts = [question_start(problem, task, engine.tokenizer) for problem in problems.values()]
        trajectories = [t for group in sampler("rollout")(starts, options.samples) for t in group.trajectories]
        truth = [criterion(engine, t, options.rule) for t in trajectories]
        print(f"\n{ground}: {len(trajectories)} trajectories, best step {np.mean([t.max() for t in truth]):.3f}")
        print(f"{'search':<28}{'tokens':>8}  {'found':<30}regret")
        for name, estimator in searches(options.rule).items():
            if options.only not in name:
                continue
            sample = sampler(f"search/{name}")
            scores = estimator(trajectories, sample)
            regrets: list[list[float]] = [[] for _ in starts]
            for position, (score, merit) in enumerate(zip(scores, truth, strict=True)):
                if merit.max() > WORTH:
                    found = 0.0 if score.critical_step is None else float(merit[score.critical_step])
                    regrets[position // options.samples].append(float(merit.max()) - found)
            flat = [regret for row in regrets for regret in row]
            hits = wilson(sum(regret < 1e-9 for regret in flat), len(flat))
            regret = bootstrap_mean(regrets, resamples=1000)
            print(f"{name:<28}{sample.tokens / len(trajectories):>8.0f}  {hits!s:<30}{regret.estimate:.3f}", flush=True)


if __name__ == "__main__":
    main()
