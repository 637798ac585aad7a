"""Does an adaptive search keep the engine's batches as full as uniform Monte Carlo? Sampled tokens a second of both.

    python benchmarks/search_batches.py [--questions 8] [--repeats 3] [--batch 8]

One process, the two in turn, so that a busy machine slows both. Time is processor time, the search's own arithmetic
included. `model` is the share of it that the engine takes.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from gpo.engines.hf import HFEngine
from gpo.estimators.adaptive import Adaptive
from gpo.estimators.monte_carlo import MonteCarlo
from gpo.prompting import question_start
from gpo.sampling import Sampler
from gpo.tasks.generated import Generated
from gpo.types import Completion, Estimator, Request
from search_grounds import WEIGHTS


@dataclass
class Timed:
    """An engine that knows how long it was at work."""

    engine: HFEngine
    seconds: float = 0.0
    calls: int = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.engine, name)

    def generate(self, requests: Sequence[Request], **settings: Any) -> list[list[Completion]]:
        begin = time.process_time()
        found = self.engine.generate(requests, **settings)
        self.seconds += time.process_time() - begin
        self.calls += 1
        return found


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--questions", type=int, default=8, help="of each sub-task, 4 trajectories each")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--batch", type=int, default=Adaptive.batch, help="the adaptive search's rollouts in a round")
    options = parser.parse_args(arguments)
    engine = HFEngine(WEIGHTS)
    task = Generated(seed=3, dev_problems=options.questions)
    problems = {problem.id: problem for problem in task.problems("dev")}
    starts = [question_start(problem, task, engine.tokenizer) for problem in problems.values()]
    first = Sampler(engine, task, problems, stream="first", logprobs=True, max_tokens=900)(starts, 4)
    trajectories = [trajectory for group in first for trajectory in group.trajectories]
    searches: dict[str, Estimator] = {
        "monte_carlo": MonteCarlo(rollouts=4),
        "adaptive": Adaptive(rollouts=4, batch=options.batch),
    }
    rates: dict[str, list[float]] = {name: [] for name in searches}
    print(
        f"{len(trajectories)} trajectories\n"
        f"{'search':<14}{'tokens':>9}{'calls':>7}{'seconds':>9}{'model':>7}{'tokens/s':>10}"
    )
    for repeat in range(options.repeats):
        for name, search in searches.items():
            timed = Timed(engine)
            sample = Sampler(timed, task, problems, stream=f"{name}/{repeat}", max_tokens=900)
            begin = time.process_time()
            search(trajectories, sample)
            seconds = time.process_time() - begin
            rates[name].append(sample.tokens / seconds)
            print(
                f"{name:<14}{sample.tokens:>9}{timed.calls:>7}{seconds:>9.1f}{timed.seconds / seconds:>7.0%}"
                f"{rates[name][-1]:>10.0f}",
                flush=True,
            )
    ratios = [a / b for a, b in zip(rates["adaptive"], rates["monte_carlo"], strict=True)]
    print(f"adaptive / monte_carlo: {statistics.median(ratios):.2f} ({', '.join(f'{ratio:.2f}' for ratio in ratios)})")


if __name__ == "__main__":
    main()
