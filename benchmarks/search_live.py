"""The same searches on the real engine and on the replay, on short trajectories: does the replay tell the truth?

python benchmarks/search_live.py [--results benchmarks/results]
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from gpo.contracts import Estimator
from gpo.engines.hf import HFEngine
from gpo.estimators.adaptive import Adaptive
from gpo.estimators.bisect import Bisect
from gpo.estimators.monte_carlo import MonteCarlo
from gpo.rollout.sampler import Sampler
from gpo.tasks.generated import Generated
from gpo.types import StepScores
from search import WORTH, merit
from search_grounds import MAX_TOKENS, WEIGHTS, Valued, load
from search_replay import Replay, batches

SHORT = ("boolean_expressions", "web_of_lies", "tracking_shuffled_objects_three_objects")
SEARCHES: dict[str, Estimator] = {
    "adaptive": Adaptive(),
    "adaptive N=4, certainty 0.9": Adaptive(rollouts=4, batch=8, certainty=0.9, smallest=0.05),
    "bisect N=8": Bisect(rollouts=8, share_path=True),
    "bisect N=8, to a token": Bisect(rollouts=8, share_path=True, level="token"),
    "monte_carlo N=32": MonteCarlo(rollouts=32),
}


def show(name: str, kind: str, rows: Sequence[Valued], scores: Sequence[StepScores], tokens: int) -> None:
    regrets = []
    for row, score in zip(rows, scores, strict=True):
        worth = merit(row, "advantage")
        regrets.append(worth.max() - (0.0 if score.critical_step is None else worth[score.critical_step]))
    hit = np.mean([regret < 1e-9 for regret in regrets])
    print(f"{name:<30}{kind:<8}{tokens / len(rows):>7.0f}{hit:>7.3f}{np.mean(regrets):>8.4f}", flush=True)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args(arguments)
    ground = load(options.results / "search_near_exact.jsonl.gz")
    rows = batches(
        [r for r in ground if r.problem.metadata["subtask"] in SHORT and merit(r, "advantage").max() > WORTH]
    )[0]
    trajectories = [row.trajectory for row in rows]
    problems = {row.problem.id: row.problem for row in rows}
    engine, task = HFEngine(WEIGHTS), Generated()
    print(f"{len(rows)} trajectories\n{'search':<30}{'':<8}{'tokens':>7}{'hit':>7}{'regret':>8}")
    for name, search in SEARCHES.items():
        live = Sampler(engine, task, problems, stream="live", max_tokens=MAX_TOKENS)
        show(name, "engine", rows, search(trajectories, live), live.tokens)
        if "token" not in name:  # the ground has steps only
            replay = Replay(rows, 7)
            show(name, "replay", rows, search(trajectories, replay), sum(replay.tokens.values()))


if __name__ == "__main__":
    main()
